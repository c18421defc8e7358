"""Low-rank factorisation: several small layers in place of a large one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..checks import check_int
from .blocks import Network
from .quantised import get_layer


class FactorisedLayer(nn.Module):
    """A sequence of layers that approximates one layer; ``kind`` names its decomposition in FACTORISATIONS."""

    def __init__(self, kind: str, ranks: Sequence[int], layers: Mapping[str, nn.Module]):
        super().__init__()
        self.kind, self.ranks = kind, tuple(ranks)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """The approximated output of the original layer."""
        for layer in self.children():
            x = layer(x)
        return x

    def extra_repr(self) -> str:
        """Kind and ranks, for ``repr``."""
        return f"{self.kind}, ranks {self.ranks}"


def _sub_convolution(
    layer: nn.Conv2d,
    inputs: int,
    outputs: int,
    *,
    down: bool = False,
    along: bool = False,
    groups: int = 1,
    bias: bool = False,
) -> nn.Conv2d:
    """A convolution with the kernel and stride of ``layer`` in the chosen directions and 1 in the others."""
    looks = (down, along)

    def given(values: Sequence[int], otherwise: int) -> tuple[int, int]:
        first, second = (value if look else otherwise for value, look in zip(values, looks, strict=True))
        return first, second

    padding = layer.padding if isinstance(layer.padding, str) else given(layer.padding, 0)
    return nn.Conv2d(
        inputs,
        outputs,
        given(layer.kernel_size, 1),
        given(layer.stride, 1),
        padding,
        given(layer.dilation, 1),
        groups,
        bias,
    )


def svd_layers(layer: nn.Module, rank: int) -> dict[str, nn.Module]:
    """Truncated SVD of a linear layer or a 1x1 convolution: inputs -> ``rank`` -> outputs."""
    if isinstance(layer, nn.Linear):
        narrow = nn.Linear(layer.in_features, rank, bias=False)
        return {"narrow": narrow, "wide": nn.Linear(rank, layer.out_features, layer.bias is not None)}
    layer = _require_plain_convolution(layer)
    narrow = _sub_convolution(layer, layer.in_channels, rank, down=True, along=True)
    return {
        "narrow": narrow,
        "wide": _sub_convolution(layer, rank, layer.out_channels, bias=layer.bias is not None),
    }


def tucker_layers(layer: nn.Module, first: int, second: int) -> dict[str, nn.Module]:
    """Tucker-2: 1x1 to ``first`` channels, the original kernel to ``second`` channels, 1x1 to the outputs."""
    layer = _require_plain_convolution(layer)
    return {
        "narrow": _sub_convolution(layer, layer.in_channels, first),
        "core": _sub_convolution(layer, first, second, down=True, along=True),
        "wide": _sub_convolution(layer, second, layer.out_channels, bias=layer.bias is not None),
    }


def cp_layers(layer: nn.Module, rank: int) -> dict[str, nn.Module]:
    """CP: 1x1 to ``rank`` channels, depthwise k x 1 and 1 x k, 1x1 to the outputs."""
    layer = _require_plain_convolution(layer)
    return {
        "narrow": _sub_convolution(layer, layer.in_channels, rank),
        "down": _sub_convolution(layer, rank, rank, down=True, groups=rank),
        "along": _sub_convolution(layer, rank, rank, along=True, groups=rank),
        "wide": _sub_convolution(layer, rank, layer.out_channels, bias=layer.bias is not None),
    }


def spatial_layers(layer: nn.Module, rank: int) -> dict[str, nn.Module]:
    """Spatial SVD: k x 1 to ``rank`` channels, then 1 x k to the outputs."""
    layer = _require_plain_convolution(layer)
    return {
        "down": _sub_convolution(layer, layer.in_channels, rank, down=True),
        "along": _sub_convolution(layer, rank, layer.out_channels, along=True, bias=layer.bias is not None),
    }


FACTORISATIONS: Mapping[str, Callable[..., dict[str, nn.Module]]] = {
    "svd": svd_layers,
    "tucker": tucker_layers,
    "cp": cp_layers,
    "spatial": spatial_layers,
}
"""Name -> ``(layer, *ranks) -> {name: smaller layer}``, in order, freshly initialised; the last has the bias."""


def _require_plain_convolution(layer: nn.Module) -> nn.Conv2d:
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1:
        raise ValueError("only ungrouped convolutions can be factorised this way")
    return layer


def factorise_layer(layer: nn.Module, kind: str, ranks: Sequence[int]) -> FactorisedLayer:
    """Freshly initialised small layers for ``layer``, on its device and in its dtype and mode.

    Raises ValueError for an unknown kind or ranks that do not fit the layer.
    """
    if kind not in FACTORISATIONS:
        raise ValueError(f"there is no factorisation '{kind}'")
    for rank in ranks:
        check_int("rank", rank, 1)
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        raise ValueError("only convolutions and linear layers can be factorised")
    made = FactorisedLayer(kind, ranks, FACTORISATIONS[kind](layer, *ranks))
    return made.to(layer.weight.device, layer.weight.dtype).train(layer.training)


def factorise_layers(network: Network, layers: Mapping[str, Mapping[str, Any]]) -> Network:
    """The same network with these layers factorised: name -> ``{"kind": "tucker", "ranks": [8, 12]}``.

    Raises ValueError for a layer that cannot be factorised this way.
    """
    for name, how in layers.items():
        network.set_submodule(name, factorise_layer(get_layer(network, name), how["kind"], how["ranks"]))
    return network
