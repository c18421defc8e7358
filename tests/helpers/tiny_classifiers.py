"""Words for every network, small where its own form is too large for a law that is about its kind."""

from sightline.models import NETWORKS

SETTLED = {"precision": "float32", "memory_format": "contiguous", "cpu_replicas": 1}
"""Fields of a recipe that a small training need not measure the machine for."""

WORDS = [f"{name}:{entry.small}" if entry.small else name for name, entry in NETWORKS.items()]
"""A word for each member of ``NETWORKS``, in order."""

_SAME_BLOCKS = ("resnet32", "resnet44", "resnet56", "vgg13", "vgg16")
DISTINCT_WORDS = [word for word in WORDS if word.partition(":")[0] not in _SAME_BLOCKS]
"""Those of ``WORDS`` without the deeper ones of a kind, which repeat its blocks: for laws about layers."""
