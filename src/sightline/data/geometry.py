"""What a geometry does to a picture's area: where it is cut, bent, padded or enlarged."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Shaped
from numpy import ndarray

from ..types import Geometry


@dataclass(frozen=True, eq=False)
class Loss:
    """One kind of loss, for every image."""

    amounts: Float64[ndarray, " N"]
    says: str
    """A sentence's beginning, with a place for the amount."""
    remedy: str
    worth: float
    """Mean from which it is remarked."""
    apart: float
    """Difference between classes from which it is a warning."""
    shows: Callable[[float], str] = "{:.0%}".format

    def tells(self, amount: float) -> str:
        """The sentence with this amount in it."""
        return self.says.format(self.shows(amount))


def losses(height: Shaped[ndarray, " N"], width: Shaped[ndarray, " N"], geometry: Geometry) -> dict[str, Loss]:
    """What is lost of images of these sizes (upright, in pixels), by the kinds that the fit can have.

    ``cropped`` is the share of a picture's area cut off, ``padding`` the share of the working area
    left black, ``bend`` the factor by which squashing changes the aspect (1 is none), ``enlarged``
    is 1 where a picture has fewer pixels than it is shown with.
    """
    tall, wide = geometry.size
    down, across = tall / height, wide / width
    bend = np.maximum(down, across) / np.minimum(down, across)
    scale = {"squash": np.sqrt(down * across), "crop": np.maximum(down, across)}.get(
        geometry.fit, np.minimum(down, across)
    )
    enlarged = Loss(
        (scale > 1).astype(np.float64),
        "{} of the images are smaller than the working size and are enlarged",
        ": a smaller --size would lose nothing and be faster.",
        0.5,
        0.5,
    )
    own = {
        "squash": ("bend", Loss(bend, "Squashing bends the aspect by a factor of {} on average",
                    ": --fit crop or pad keeps it.", 1.15, 0.25, "{:.2f}".format)),
        "crop": ("cropped", Loss(1 - 1 / bend, "Cropping cuts away {} of the area on average",
                    ": --fit squash or pad keeps it.", 0.1, 0.15)),
        "pad": ("padding", Loss(1 - 1 / bend, "Padding leaves {} of the working area black on average",
                    ": --fit squash or crop fills it.", 0.1, 0.15)),
    }  # fmt: skip
    name, loss = own[geometry.fit]
    return {name: loss, "enlarged": enlarged}
