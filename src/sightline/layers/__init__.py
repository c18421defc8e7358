"""What networks are made of: attention, sparse, factorised and int8 layers, initialisations."""

from collections.abc import Callable

from torch import nn

from ..choose import lookup
from .blocks import (
    ImageSize,
    Network,
    SqueezeExcite,
    cbam_block,
    conv_norm,
    downscaling_notes,
    get_head,
    init_he_fan_out,
    is_large,
    make_dropout,
    no_attention,
    scale_widths,
    se_block,
    stem_pools,
    upsample_to_side,
)
from .factors import FactorisedLayer, factorise_layers
from .folding import UseCounter, fold_replica, match_norms, norm_affine, replicate
from .fused_norm import (
    FusableSequential,
    FusedKernels,
    are_kernels_compiled,
    count_fusable,
    kernel_layout,
    max_pool2,
    norm_act,
    open_kernels,
)
from .heads import CosineHead, PreparedHead, PrototypeHead, RandomFeatureHead, head_kind
from .initialisation import glorot_normal, glorot_uniform, he_normal, he_uniform, lecun_normal, lecun_uniform
from .noise import WeightNoise, noisy_weight_names
from .pruned import (
    SPARSE_LAYERS,
    SparseConv2d,
    SparseLinear,
    is_narrowable,
    keep_channels,
    keep_zeros,
    layer_widths,
    narrow_layers,
)
from .quantised import (
    MAX_WEIGHT_CODE,
    Int8Conv2d,
    Int8Layer,
    Int8Linear,
    has_same_padding,
    quantise_layers,
    quantise_weight,
    same_margin,
)
from .rounding import (
    MAX_ACTIVATION_CODE,
    ActivationGrid,
    ActivationRounding,
)
from .whitening import Whitening

ATTENTIONS: dict[str, Callable[[int], nn.Module]] = {"none": no_attention, "se": se_block, "cbam": cbam_block}
"""Name -> ``(channels) -> module``: the choices of ``attention=`` in residual networks."""

HEADS: dict[str, Callable[..., nn.Linear]] = {
    "linear": nn.Linear,
    "prototypes": PrototypeHead,
    "random-features": RandomFeatureHead,
    "cosine": CosineHead,
}
"""Kind -> ``(features, classes, ...) -> last layer``."""

INITIALISATIONS: dict[str, Callable[[nn.Module], None]] = {
    "glorot-uniform": glorot_uniform,
    "glorot-normal": glorot_normal,
    "he-uniform": he_uniform,
    "he-normal": he_normal,
    "lecun-uniform": lecun_uniform,
    "lecun-normal": lecun_normal,
}
"""Name -> ``(module) -> None``: draws the weights of every convolution and linear layer of a module."""


def initialise(network: nn.Module, how: str | Callable[[nn.Module], None]) -> None:
    """Draw new initial weights in place, by a name or a function; raises ChoiceError for an unknown name."""
    (lookup(INITIALISATIONS, how, "initialisation") if isinstance(how, str) else how)(network)
