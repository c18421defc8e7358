"""What networks are made of: attention, sparse, factorised and int8 layers, initialisations."""

from .attention import ATTENTIONS, SqueezeExcite
from .blocks import (
    ImageSize,
    Network,
    conv_norm,
    downscaling_notes,
    get_head,
    init_he_fan_out,
    is_large,
    make_dropout,
    scale_widths,
    stem_pools,
    upsample_to_side,
)
from .factors import FactorisedLayer, factorise_layers
from .initialise import INITIALISATIONS, he_normal, initialise
from .noise import WeightNoise, noisy_weight_names
from .quantised import (
    MAX_ACTIVATION_CODE,
    MAX_WEIGHT_CODE,
    ActivationGrid,
    ActivationRounding,
    Int8Conv2d,
    Int8Layer,
    Int8Linear,
    collect_tensors,
    is_query,
    quantise_layers,
    quantise_weight,
)
from .sparse import SPARSE_LAYERS, SparseConv2d, SparseLinear, keep_zeros
from .whitening import Whitening
from .widths import is_narrowable, keep_channels, layer_widths, narrow_layers

__all__ = [
    "ATTENTIONS",
    "INITIALISATIONS",
    "MAX_ACTIVATION_CODE",
    "MAX_WEIGHT_CODE",
    "SPARSE_LAYERS",
    "ActivationGrid",
    "ActivationRounding",
    "FactorisedLayer",
    "ImageSize",
    "Int8Conv2d",
    "Int8Layer",
    "Int8Linear",
    "Network",
    "SparseConv2d",
    "SparseLinear",
    "SqueezeExcite",
    "WeightNoise",
    "Whitening",
    "collect_tensors",
    "conv_norm",
    "downscaling_notes",
    "factorise_layers",
    "get_head",
    "he_normal",
    "init_he_fan_out",
    "initialise",
    "is_large",
    "is_narrowable",
    "is_query",
    "keep_channels",
    "keep_zeros",
    "layer_widths",
    "make_dropout",
    "narrow_layers",
    "noisy_weight_names",
    "quantise_layers",
    "quantise_weight",
    "scale_widths",
    "stem_pools",
    "upsample_to_side",
]
