"""Several small layers in place of a large one: what a low-rank decomposition leaves of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..checks import check_int
from .blocks import Network
from .pruned import get_layer


class FactorisedLayer(nn.Module):
    """Layers used one after the other, in place of one.

    ``kind`` says how it was taken apart: see ``KINDS``.
    """

    def __init__(self, kind: str, ranks: Sequence[int], layers: Mapping[str, nn.Module]):
        super().__init__()
        self.kind, self.ranks = kind, tuple(ranks)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """What the one layer would give, nearly."""
        for layer in self.children():
            x = layer(x)
        return x

    def extra_repr(self) -> str:
        """What it is."""
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
    """A convolution that looks as ``layer`` does down the image, or along it, or both; otherwise 1 pixel wide."""
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


def _svd_layers(layer: nn.Module, rank: int) -> dict[str, nn.Module]:
    """Inputs -> rank -> outputs: a linear layer, or a 1x1 convolution."""
    if isinstance(layer, nn.Linear):
        narrow = nn.Linear(layer.in_features, rank, bias=False)
        return {"narrow": narrow, "wide": nn.Linear(rank, layer.out_features, layer.bias is not None)}
    layer = _require_plain_convolution(layer)
    narrow = _sub_convolution(layer, layer.in_channels, rank, down=True, along=True)
    return {
        "narrow": narrow,
        "wide": _sub_convolution(layer, rank, layer.out_channels, bias=layer.bias is not None),
    }


def _tucker_layers(layer: nn.Module, first: int, second: int) -> dict[str, nn.Module]:
    """1x1 to ``first`` channels, the convolution itself to ``second``, 1x1 to the outputs."""
    layer = _require_plain_convolution(layer)
    return {
        "narrow": _sub_convolution(layer, layer.in_channels, first),
        "core": _sub_convolution(layer, first, second, down=True, along=True),
        "wide": _sub_convolution(layer, second, layer.out_channels, bias=layer.bias is not None),
    }


def _cp_layers(layer: nn.Module, rank: int) -> dict[str, nn.Module]:
    """1x1 to ``rank`` channels, each looked at down and then along by itself, 1x1 to the outputs."""
    layer = _require_plain_convolution(layer)
    return {
        "narrow": _sub_convolution(layer, layer.in_channels, rank),
        "down": _sub_convolution(layer, rank, rank, down=True, groups=rank),
        "along": _sub_convolution(layer, rank, rank, along=True, groups=rank),
        "wide": _sub_convolution(layer, rank, layer.out_channels, bias=layer.bias is not None),
    }


def _spatial_layers(layer: nn.Module, rank: int) -> dict[str, nn.Module]:
    """K x 1 to ``rank`` channels, then 1 x k to the outputs."""
    layer = _require_plain_convolution(layer)
    return {
        "down": _sub_convolution(layer, layer.in_channels, rank, down=True),
        "along": _sub_convolution(layer, rank, layer.out_channels, along=True, bias=layer.bias is not None),
    }


FACTORISATIONS: Mapping[str, Callable[..., dict[str, nn.Module]]] = {
    "svd": _svd_layers,
    "tucker": _tucker_layers,
    "cp": _cp_layers,
    "spatial": _spatial_layers,
}
"""Name -> ``(layer, *ranks) -> its smaller layers``, freshly initialised; the last one has the bias."""


def _require_plain_convolution(layer: nn.Module) -> nn.Conv2d:
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1:
        raise ValueError("only a convolution that is not grouped can be taken apart so")
    return layer


def factorise_layer(layer: nn.Module, kind: str, ranks: Sequence[int]) -> FactorisedLayer:
    """Small layers in place of ``layer``, freshly initialised, where its weights are.

    Raises ValueError for a kind or ranks that do not fit it.
    """
    if kind not in FACTORISATIONS:
        raise ValueError(f"there is no kind of factors '{kind}'")
    for rank in ranks:
        check_int("rank", rank, 1)
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        raise ValueError("only convolutions and linear layers can be taken apart")
    made = FactorisedLayer(kind, ranks, FACTORISATIONS[kind](layer, *ranks))
    return made.to(layer.weight.device, layer.weight.dtype).train(layer.training)


def factorise_layers(network: Network, layers: Mapping[str, Mapping[str, Any]]) -> Network:
    """The same network with these layers in factors: name -> ``{"kind": "tucker", "ranks": [8, 12]}``.

    Raises ValueError for a layer that cannot be taken apart so.
    """
    for name, how in layers.items():
        network.set_submodule(name, factorise_layer(get_layer(network, name), how["kind"], how["ranks"]))
    return network
