"""An index of images by their features: which images of a collection are most like another one?"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from ..errors import DataError
from ..files import atomic_replace, explain_write_errors

INDEX_SUFFIX = ".safetensors"
INDEX_VERSION = 1

_FORMAT = "sightline image index"
_CHUNK_COSINES = 2**24


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """The features of N images, in a file that needs neither the images nor the network to be read.

    Arguments:
        features: of unit length, float32.
        files: where each image lies.
        labels: name of the class of each image; empty where it has none.
        facts: whose images these are and what computed their features, for whoever opens the index again.
    """

    features: Float[ndarray, "N D"]
    files: ndarray
    labels: ndarray
    facts: dict[str, Any]

    @classmethod
    def build(cls, features: Float[ndarray, "N D"], files: ndarray, labels: ndarray, **facts: Any) -> "ImageIndex":
        """An index of features of any length."""
        length = np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
        return cls((features / length).astype(np.float32), np.asarray(files, str), np.asarray(labels, str), facts)

    def __len__(self) -> int:
        return len(self.files)

    def search(self, features: Float[ndarray, "Q D"], k: int) -> tuple[Int[ndarray, "Q k"], Float[ndarray, "Q k"]]:
        """The k images nearest to each of Q others, the nearest first, and the cosines of their features.

        k is at most the number of images. Raises DataError where the features are of another length than those of the
        index.
        """
        if features.shape[1] != self.features.shape[1]:
            raise DataError(
                f"The index has {self.features.shape[1]} features an image and these images {features.shape[1]}: both "
                "must come from the same network."
            )
        unit = (features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)).astype(np.float32)
        k, rows, near = min(k, len(self)), [], []
        for some in np.array_split(unit, max(1, len(unit) * len(self) // _CHUNK_COSINES)):
            cosines = some @ self.features.T
            best = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
            values = np.take_along_axis(cosines, best, 1)
            order = np.lexsort((best, -values), axis=1)
            rows.append(np.take_along_axis(best, order, 1))
            near.append(np.take_along_axis(values, order, 1))
        return np.concatenate(rows), np.concatenate(near)

    def save(self, path: Path) -> Path:
        """Write the index to one file, atomically. Raises OutputError where it cannot be written."""
        from safetensors.numpy import save_file

        words = {"format": _FORMAT, "version": INDEX_VERSION, "facts": self.facts}
        texts = {"files": self.files.tolist(), "labels": self.labels.tolist()}
        with explain_write_errors(path), atomic_replace(path) as temporary:
            save_file({"features": self.features}, temporary, {"index": json.dumps(words | texts)})
        return path

    @classmethod
    def load(cls, path: Path) -> "ImageIndex":
        """Read what ``save`` wrote; raises DataError where it is damaged, of a newer release or no index."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as stored:
                words = json.loads((stored.metadata() or {})["index"])
                features = stored.get_tensor("features")
            if words["format"] != _FORMAT or features.ndim != 2 or len(features) != len(words["files"]):
                raise ValueError("another kind of file")
            if words["version"] > INDEX_VERSION:
                raise DataError(
                    f"'{path}' is an index of a newer release: update Sightline, or build the index again."
                )
            return cls(features, np.array(words["files"], str), np.array(words["labels"], str), words["facts"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"'{path}' is not an index of images, or is damaged: build it again with sightline nearest DATA --save."
            ) from error
