"""What an answer costs."""

import torch
from torch import Tensor, nn

from .blocks import Size


def multiply_adds(network: nn.Module, channels: int, size: Size) -> int:
    """Multiplications with addition that the answer about one image of ``size`` takes, in eval mode.

    Convolutions and linear layers, exactly; norms, activations, pools and biases are not counted, as is usual.
    One multiply-add is two floating-point operations. The network stays as it is.
    """
    counted = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal counted
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        counted += output.numel() * layer.weight[0].numel()

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    modes = [(module, module.training) for module in network.modules()]
    try:
        with torch.no_grad():
            # Real numbers: torch's shape-only tensors load its compiler, two seconds for nothing.
            network.eval()(torch.zeros(1, channels, *size, device=next(network.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return counted
