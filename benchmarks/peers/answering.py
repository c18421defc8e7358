"""What every service here does with an image: the same decoder, the same exported file, the same answer.

Needs onnxruntime, simplejpeg and numpy, which every peer's environment has. The images are of the working size
already, so that no peer's way of resizing is measured.
"""

import base64
import json
import os
from typing import Any

import numpy as np
import onnxruntime
import simplejpeg

TOP = 5


class Model:
    """An exported file: ``images`` uint8 (N H W C) to ``probabilities`` (N K)."""

    def __init__(self, path: str, threads: int = 1):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.classes = json.loads(self.session.get_modelmeta().custom_metadata_map["classes"])

    def answers(self, images: "list[np.ndarray]") -> list[dict[str, Any]]:
        """The likeliest classes of each."""
        rows = self.session.run(None, {"images": np.stack(images)})[0]
        return [self._answer(row) for row in rows.tolist()]

    def _answer(self, row: list[float]) -> dict[str, Any]:
        best = sorted(range(len(row)), key=row.__getitem__, reverse=True)[:TOP]
        top = [(self.classes[k], row[k]) for k in best]
        return {"label": top[0][0], "confidence": top[0][1], "top": top}


def decode(data: bytes) -> np.ndarray:
    """JPEG to pixels."""
    return simplejpeg.decode_jpeg(data, "RGB")


def decode64(text: str) -> np.ndarray:
    """JPEG in base64 to pixels."""
    return decode(base64.b64decode(text))


def setting(name: str, default: str = "") -> str:
    """How this service is to run: environment variables say so, which worker processes inherit."""
    return os.environ.get(f"PEER_{name.upper()}", default)
