"""Parametric noise injection: noise in the weights, with a trained strength per layer."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from .. import runtime
from .whitening import Whitening

N_ANSWER_DRAWS = 16
"""Draws of the noise at inference; an image's pixels pick one, so that a batch takes at most this many passes."""


class WeightNoise(nn.Module):
    """``w + alpha std(w) n`` in place of each layer's weights w, n ~ N(0, 1), alpha trained, one per layer.

    n is drawn for every pass in training and whenever gradients are recorded, so in every attack. At inference the
    image's pixels pick the draw, so its answer is the same each time and in every batch. He, Rakin and Fan 2019
    (arXiv 1811.09310), equations 1 and 2, layer-wise, on weights.

    Arguments:
        names: The layers' weights, by their names in the network.
        alpha: Initial strength, in standard deviations of each layer's weights.
    """

    stochastic = True

    def __init__(self, names: Sequence[str], alpha: float):
        super().__init__()
        self.names = tuple(names)
        self.alpha = nn.Parameter(torch.full((len(self.names),), float(alpha)))

    def forward_noisy(
        self, network: nn.Module, look: Callable[[Tensor], Tensor], pixels: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B K"]:
        """``look(pixels)``, a pass through ``network``, with noise in its weights."""
        if network.training or torch.is_grad_enabled():
            return self._forward_with_draw(network, look, pixels, None)
        # Hardly any two images share this number, and rounding errors do not change it.
        chosen = (pixels.double().abs().mean((1, 2, 3)) * 2**16).long() % N_ANSWER_DRAWS
        answers: Tensor | None = None
        for draw in chosen.unique().tolist():
            rows = (chosen == draw).nonzero().squeeze(1)
            some = self._forward_with_draw(network, look, pixels[rows], draw)
            answers = some.new_empty(len(pixels), *some.shape[1:]) if answers is None else answers
            answers[rows] = some
        assert answers is not None
        return answers

    def _forward_with_draw(
        self, network: nn.Module, look: Callable[[Tensor], Tensor], pixels: Tensor, draw: int | None
    ) -> Tensor:
        noisy = {f"network.{name}": weight for name, weight in self._noisy_weights(network, draw)}
        return functional_call(_CleanForward(network, look), noisy, (pixels,))

    def _noisy_weights(self, network: nn.Module, draw: int | None) -> Iterator[tuple[str, Tensor]]:
        chance = None if draw is None else runtime.make_generator(draw)
        for name, alpha in zip(self.names, self.alpha, strict=True):
            weight = network.get_parameter(name)
            where = weight.device if chance is None else "cpu"
            drawn = torch.randn(weight.shape, generator=chance, device=where, dtype=weight.dtype)
            spread = weight.detach().std(correction=0)
            yield name, weight + alpha * (spread * drawn.to(weight.device))


class _CleanForward(nn.Module):
    """A pass through a network as a module, so that ``functional_call`` can replace its weights."""

    def __init__(self, network: nn.Module, look: Callable[[Tensor], Tensor]):
        super().__init__()
        self.network, self.look = network, look

    def forward(self, pixels: Tensor) -> Tensor:
        return self.look(pixels)


def noisy_weight_names(network: nn.Module) -> list[str]:
    """Names of the weights of every convolution and linear layer but frozen whitenings."""
    return [
        f"{name}.weight"
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and not isinstance(layer, Whitening)
    ]
