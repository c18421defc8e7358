"""Facts about an answer, and the one or two plain sentences they make."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

MAX_FOCUSED_SHARE = 0.35
"""Share of the image from which half of the evidence is spread, not somewhere."""

ROW_NAMES, COLUMN_NAMES = ("upper", "middle", "lower"), ("left", "centre", "right")


@dataclass(frozen=True)
class HeatLocation:
    """Where the evidence for an answer lies."""

    share: float
    """Of the image: the smallest part that holds half of the evidence; 1 where there is none."""
    place: str
    """Ninth of the image that holds most of it: upper left, centre, ...; "" where there is none."""
    inside: float
    """Share of all evidence in that ninth."""


def locate_heat(heat: Float[Tensor, "H W"]) -> HeatLocation:
    """Where the heat of a map lies."""
    total = float(heat.sum())
    if total <= 0:
        return HeatLocation(1.0, "", 0.0)
    ordered = heat.flatten().sort(descending=True).values.cumsum(0)
    count = int((ordered < total / 2).sum()) + 1
    height, width = heat.shape
    rows, columns = (torch.arange(side, device=heat.device) * 3 // side for side in (height, width))
    ninth = torch.zeros(9, device=heat.device).index_add(
        0, (rows[:, None] * 3 + columns).flatten(), heat.flatten()
    )
    best = int(ninth.argmax())
    return HeatLocation(count / heat.numel(), _name_ninth(best // 3, best % 3), float(ninth[best]) / total)


def _name_ninth(row: int, column: int) -> str:
    if (row, column) == (1, 1):
        return "centre"
    if row == 1:
        return f"{COLUMN_NAMES[column]} side"
    return f"{ROW_NAMES[row]} {'middle' if column == 1 else COLUMN_NAMES[column]}"


@dataclass(frozen=True, kw_only=True)
class AnswerFacts:
    """What was measured about the answer for one image."""

    answer: str
    confidence: float
    """Calibrated probability of the answer."""
    runner_up: str
    margin: float
    """Probability of the answer less that of the runner-up."""
    target: str
    """The class that was explained."""
    target_probability: float
    by: str
    share: float
    """Of the image: the smallest part that holds half of the evidence for the target."""
    place: str
    """Ninth of the image that holds most of it."""
    inside: float
    """Share of the evidence in that ninth."""
    label: str | None = None
    """The true class, where it is known."""
    neighbours: tuple[Mapping[str, Any], ...] = ()
    """Nearest training images: ``file``, ``label``, ``distance``."""

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self) | {"neighbours": [dict(one) for one in self.neighbours]}


def describe_answer(facts: AnswerFacts) -> str:
    """One or two plain sentences, every word of them measured."""
    said = f"'{facts.answer}' with {format_probability(facts.confidence)}"
    if facts.margin < 0.2:
        said += f", hardly more than '{facts.runner_up}' ({format_probability(facts.confidence - facts.margin)})"
    else:
        said += f", {round(facts.margin * 100)} points ahead of '{facts.runner_up}'"
    if facts.label is not None and facts.label != facts.answer:
        said += f"; it is labelled '{facts.label}'"
    if facts.target != facts.answer:
        said += f". Asked about '{facts.target}' ({format_probability(facts.target_probability)})"
    said += f": {_describe_evidence(facts)}."
    return said + (f" {_describe_neighbours(facts)}" if facts.neighbours else "")


def _describe_evidence(facts: AnswerFacts) -> str:
    if not facts.place:
        return f"{facts.by} finds nothing in the image that speaks for it"
    if facts.share > MAX_FOCUSED_SHARE:
        return (
            f"the evidence is spread: half of it takes {format_probability(facts.share)} of the image ({facts.by})"
        )
    return (
        f"half of the evidence lies on {format_probability(facts.share)} of the image, the largest part in the {facts.place} "
        f"({facts.by})"
    )


def _describe_neighbours(facts: AnswerFacts) -> str:
    first, count = facts.neighbours[0], len(facts.neighbours)
    agreeing = sum(one["label"] == facts.answer for one in facts.neighbours)
    said = f"The nearest training image is '{first['label']}' ({first['file']})"
    if count == 1:
        return f"{said}."
    among = "all" if agreeing == count else "none" if not agreeing else f"{agreeing}"
    return f"{said}; {among} of the {count} nearest {'is' if agreeing == 1 else 'are'} '{facts.answer}'."


def format_probability(share: float) -> str:
    """0.982 as "98 %"; near the ends more digits, never a rounded 0 or 100."""
    if share < 0.0001:
        return "under 0.01 %" if share else "0 %"
    if share > 0.9999:
        return "over 99.99 %" if share < 1 else "100 %"
    if 0.01 <= share <= 0.99:
        return f"{share * 100:.0f} %"
    return f"{share * 100:.2g} %" if share < 0.01 else f"{share * 100:.4g} %"
