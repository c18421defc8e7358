"""Exports one after another: the exporter reads the source of its five hundred operators once."""

from functools import cache

from torch.onnx._internal._lazy_import import onnxscript_apis

onnxscript_apis.get_torchlib_ops = cache(onnxscript_apis.get_torchlib_ops)
