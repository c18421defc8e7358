"""Noise in the weights, whose strength in each layer is trained: parametric noise injection."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from .. import runtime
from .whitening import Whitening

N_ANSWER_DRAWS = 16
"""Draws of the weights that answers choose from, each image by its own pixels: whole groups go in one pass."""


class WeightNoise(nn.Module):
    """``w + alpha std(w) n`` in place of each layer's weights w, n ~ N(0, 1), alpha trained, one for each layer.

    n is drawn anew for each pass in training and wherever gradients are asked for, so by every attack. An answer
    takes the draw that its image chooses: the same each time and in every batch. He, Rakin and Fan 2019
    (arXiv 1811.09310), equations 1 and 2, layer-wise, on weights.
    """

    stochastic = True

    def __init__(self, names: Sequence[str], alpha: float):
        super().__init__()
        self.names = tuple(names)
        """The layers' weights, by their names in the network."""
        self.alpha = nn.Parameter(torch.full((len(self.names),), float(alpha)))

    def forward_noisy(
        self, network: nn.Module, look: Callable[[Tensor], Tensor], pixels: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B K"]:
        """``look(pixels)``, a pass through ``network``, with noise in its weights."""
        if network.training or torch.is_grad_enabled():
            return self._forward_with_draw(network, look, pixels, None)
        chosen, answers = _draw_of_each_image(pixels), None
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
    """A pass through a network, for torch to swap the weights in."""

    def __init__(self, network: nn.Module, look: Callable[[Tensor], Tensor]):
        super().__init__()
        self.network, self.look = network, look

    def forward(self, pixels: Tensor) -> Tensor:
        return self.look(pixels)


def noisy_weight_names(network: nn.Module) -> list[str]:
    """The names of the weights of every convolution and linear layer that trains."""
    return [
        f"{name}.weight"
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and not isinstance(layer, Whitening)
    ]


def _draw_of_each_image(pixels: Float[Tensor, "B C H W"]) -> Int[Tensor, " B"]:
    """Which draw each image takes: a number that hardly any two images share, and rounding does not change."""
    return (pixels.double().abs().mean((1, 2, 3)) * 2**16).long() % N_ANSWER_DRAWS
