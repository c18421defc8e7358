"""What a backbone sees in every image: computed once for each data, geometry and weights, and kept.

>>> import numpy as np
>>> from sightline.features import nearest_images
>>> nearest_images(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], np.float32), 1)[0][:2, 0].tolist()
[1, 0]
"""

from .embedding import embedding_precision, time_embedding
from .index import INDEX_SUFFIX, ImageIndex
from .knn import predict_knn
from .shards import merge_features, write_features
from .similarity import find_lookalikes, nearest_images, rank_outliers
from .store import backbone_fingerprint, embed_cached, feature_key, predict_logits_cached

__all__ = [
    "INDEX_SUFFIX",
    "ImageIndex",
    "backbone_fingerprint",
    "embed_cached",
    "embedding_precision",
    "feature_key",
    "find_lookalikes",
    "merge_features",
    "nearest_images",
    "predict_knn",
    "predict_logits_cached",
    "rank_outliers",
    "time_embedding",
    "write_features",
]
