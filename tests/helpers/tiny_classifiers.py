"""Words for every network, small where its own form is too large for a law that is about its kind."""

from sightline.models import NETWORKS

SMALL = {
    "alexnet": "alexnet:width=0.05",
    "alexnet-small": "alexnet-small:width=0.25",
    "vgg11": "vgg11:width=0.25",
    "vgg13": "vgg13:width=0.25",
    "vgg16": "vgg16:width=0.25",
    "inception": "inception:width=0.25",
    "densenet": "densenet:depth=22:growth=8",
    "mobilenet": "mobilenet:width=0.25",
    "efficientnet": "efficientnet:width=0.25",
    "vit": "vit:depth=2:width=48:heads=2",
    "timm": "timm:test_resnet",
}
"""Name -> word."""

SETTLED = {"precision": "float32", "memory_format": "contiguous", "replicas": 1}
"""Fields of a recipe that a small training need not measure the machine for."""

WORDS = [SMALL.get(name, name) for name in NETWORKS]
"""A word for each member of ``NETWORKS``, in order."""
