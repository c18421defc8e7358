"""Curves, matrices, diagrams and contact sheets, as Pillow images in one house look.

Imports no torch; Pillow and matplotlib come in only when a picture is drawn. Colours are
Okabe and Ito's (2008), told apart by colour-blind eyes, and never the only sign of a difference.
"""

import base64
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int, UInt8
from numpy import ndarray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

PALETTE = {
    "ink": "#1f2a37",
    "faint": "#6b7684",
    "line": "#d9dee5",
    "paper": "#ffffff",
    "blue": "#0072b2",
    "orange": "#d55e00",
    "green": "#00876c",
}
"""The house colours: blue is training and count, orange is validation and wrong, green is right."""


def contact_sheet(
    images: Sequence[UInt8[ndarray, "H W C"]],
    captions: Sequence[str],
    *,
    columns: int = 8,
    cell: int = 112,
    notes: Sequence[str] | None = None,
) -> "Image":
    """A grid of images with a caption under each, at most ``columns`` wide, ``cell`` pixels a cell.

    Small images are enlarged by whole factors without smoothing, so that their pixels show; large ones
    are shrunk. ``notes`` are second lines, in orange: what was answered, for example.
    """
    from PIL import Image, ImageDraw

    if len(captions) != len(images) or (notes is not None and len(notes) != len(images)):
        raise ValueError("a contact sheet needs one caption, and one note if any, for each image")
    font, gap = _font(13), 10
    line = 20 if notes is None else 37
    across = max(1, min(columns, len(images)))
    down = -(-len(images) // across)
    size = (across * (cell + gap) + gap, down * (cell + line + gap) + gap)
    sheet = Image.new("RGB", size, PALETTE["paper"])
    draw = ImageDraw.Draw(sheet)
    lines = ((captions, "ink", 5),) if notes is None else ((captions, "ink", 5), (notes, "orange", 22))
    for i, image in enumerate(images):
        left, top = gap + i % across * (cell + gap), gap + i // across * (cell + line + gap)
        tile = _fitted(image, cell)
        sheet.paste(tile, (left + (cell - tile.width) // 2, top + (cell - tile.height) // 2))
        for words, colour, below in lines:
            place = (left + cell / 2, top + cell + below)
            draw.text(place, _shortened(words[i], font, cell), fill=PALETTE[colour], font=font, anchor="ma")
    return sheet


def thumbnail(image: UInt8[ndarray, "H W C"], *, most: int = 128) -> "Image":
    """One image, shrunk where its longer side is above ``most`` pixels, else as it is."""
    return _fitted(image, min(most, max(image.shape[:2])))


def _fitted(image: ndarray, cell: int) -> "Image":
    """The image inside a square of ``cell``: whole-factor enlargement, or antialiased shrinking."""
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
    longest = max(picture.size)
    if longest > cell:
        width, height = (max(1, round(side * cell / longest)) for side in picture.size)
        return picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3)
    factor = cell // longest
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _font(size: int) -> "FreeTypeFont | ImageFont":
    """DejaVu Sans, which comes with matplotlib: many scripts and signs on every system."""
    from PIL import ImageFont

    matplotlib = find_spec("matplotlib")  # found, not imported: that takes longer than the picture
    assert matplotlib is not None
    assert matplotlib.origin is not None
    return ImageFont.truetype(Path(matplotlib.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf", size)


def _shortened(text: str, font: Any, width: float) -> str:
    """The text on one line, cut with an ellipsis to fit ``width`` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


_LOOK: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": PALETTE["line"],
    "axes.labelcolor": PALETTE["faint"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": PALETTE["ink"],
    "xtick.color": PALETTE["faint"],
    "ytick.color": PALETTE["faint"],
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.8,
}


@contextmanager
def _house_look() -> Iterator[None]:
    from matplotlib import rc_context

    with rc_context(_LOOK):
        yield


@_house_look()
def curves(history: Sequence[Mapping[str, Any]]) -> "Image":
    """Loss, accuracy and learning rate over the epochs, from the rows of ``history.csv``.

    Values may be numbers or text; an empty or absent one leaves a gap. The epoch of best validation
    accuracy (the kept one) is marked.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(3, (11.4, 3.1))
    epochs = [float(row["epoch"]) for row in history]
    marker = "o" if len(epochs) < 3 else None
    for panel, what in ((axes[0], "loss"), (axes[1], "accuracy")):
        for part, style in _LINES.items():
            values = _column(history, f"{part}_{what}")
            if np.isfinite(values).any():
                panel.plot(epochs, values, marker=marker, markersize=4, **style)
        panel.set_title(what.capitalize())
    axes[2].plot(epochs, _column(history, "lr"), color=PALETTE["faint"], marker=marker, markersize=4)
    axes[2].set_title("Learning rate")
    axes[2].set_ylim(bottom=0)
    _mark_best(axes[1], history)
    for panel in axes:
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.grid(axis="y", color=PALETTE["line"], linewidth=0.7)
    for panel in axes[:2]:
        if panel.lines:
            panel.legend()
    return _drawn(figure)


_LINES: dict[str, Any] = {
    "train": {"label": "training", "color": PALETTE["blue"], "linestyle": "--"},
    "val": {"label": "validation", "color": PALETTE["orange"], "linestyle": "-"},
}


def _mark_best(panel: "Axes", history: Sequence[Mapping[str, Any]]) -> None:
    """A dot on the epoch of highest validation accuracy, of lowest loss among equals."""
    accuracy, loss = _column(history, "val_accuracy"), _column(history, "val_loss")
    if np.isfinite(accuracy).any():
        best = np.lexsort((np.nan_to_num(loss, nan=np.inf), -np.nan_to_num(accuracy, nan=-np.inf)))[0]
        spot = (float(history[best]["epoch"]), accuracy[best])
        panel.plot(*spot, "o", color=PALETTE["orange"], markersize=6, label=f"best, epoch {spot[0]:g}")


def _column(history: Sequence[Mapping[str, Any]], name: str) -> ndarray:
    values = (row.get(name) for row in history)
    return np.array([float("nan" if value in (None, "") else value) for value in values], dtype=np.float64)


@_house_look()
def confusion(matrix: Int[ndarray, "K K"] | Sequence[Sequence[int]], classes: Sequence[str]) -> "Image":
    """Share of each class (row) that was given each class (column), as shades; counts where they fit.

    Shades follow the square root of the share, so that rare confusions can be seen.
    """
    counts = np.asarray(matrix)
    k, rows = len(counts), counts.sum(1, keepdims=True)
    shares = np.sqrt(np.divide(counts, rows, out=np.zeros(counts.shape), where=rows > 0))
    side = float(np.clip(1.6 + 0.42 * k, 3.4, 11))
    figure, (panel,) = _figure(1, (side + 0.9, side))
    panel.imshow(shares, cmap=_shades(), vmin=0, vmax=1, aspect="equal")
    if k <= 24:
        for (i, j), count in np.ndenumerate(counts):
            colour = PALETTE["paper"] if shares[i, j] > 0.6 else PALETTE["ink"]
            text = f"{count:,}" if count else "·"
            panel.text(j, i, text, ha="center", va="center", color=colour if count else PALETTE["line"])
    step = -(-k // 40)
    names = [_cut(name) for name in classes]
    panel.set_xticks(range(0, k, step), names[::step], rotation=90 if k > 5 else 0)
    panel.set_yticks(range(0, k, step), names[::step])
    panel.tick_params(length=0)
    panel.set_xlabel("answered")
    panel.set_ylabel("true")
    return _drawn(figure)


def _cut(name: str, most: int = 18) -> str:
    # matplotlib would read a pair of dollar signs as mathematics
    return (name if len(name) <= most else f"{name[: most - 1]}…").replace("$", r"\$")


def _shades() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("house", [PALETTE["paper"], "#9cc7e0", PALETTE["blue"], "#00395c"])


@_house_look()
def reliability(
    edges: Sequence[float] | ndarray,
    counts: Sequence[int] | ndarray,
    confidence: Sequence[float] | ndarray,
    accuracy: Sequence[float] | ndarray,
) -> "Image":
    """Accuracy of each confidence bin against the diagonal of perfect calibration, with the images per bin.

    The arguments are the columns of ``metrics.reliability``.
    """
    figure, axes = _figure(2, (4.6, 4.6), rows=2, heights=(3.2, 1))
    used = np.asarray(counts) > 0
    left, width = np.asarray(edges)[:-1], np.diff(edges)
    above, below = axes
    above.plot([0, 1], [0, 1], color=PALETTE["faint"], linewidth=1, linestyle=(0, (4, 3)), label="perfect")
    above.bar(
        left[used],
        np.asarray(accuracy)[used],
        width[used] * 0.92,
        align="edge",
        color=PALETTE["blue"],
        alpha=0.35,
        label="accuracy",
    )
    spots = (np.asarray(confidence)[used], np.asarray(accuracy)[used])
    above.plot(*spots, "o", color=PALETTE["blue"], markersize=5, label="at mean confidence")
    above.legend(loc="upper left", frameon=True, framealpha=0.85, edgecolor="none")
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share answered rightly")
    below.bar(left, np.asarray(counts), width * 0.92, align="edge", color=PALETTE["faint"], alpha=0.6)
    below.set(xlim=(0, 1), xlabel="confidence", ylabel="images")
    for panel in axes:
        panel.grid(axis="y", color=PALETTE["line"], linewidth=0.7)
    return _drawn(figure)


@_house_look()
def roc(macro: Mapping[str, Any], classes: Sequence[Mapping[str, Any]]) -> "Image":
    """ROC curves: the mean in bold, the classes' own beneath it, the worst three by name.

    Each is what ``report.json`` holds: ``fpr``, ``tpr``, ``auc`` and, worst first, ``class``. Where all that
    matters is in the upper left corner, a second panel enlarges it.
    """
    side = _corner(macro)
    figure, axes = _figure(2 if side else 1, (9.4 if side else 4.9, 4.6))
    shown = classes if len(classes) > 2 else ()  # of two classes, each is the other's mirror
    for panel in axes:
        panel.plot([0, 1], [0, 1], color=PALETTE["line"], linewidth=1, linestyle=(0, (4, 3)))
        for row in shown[len(_WORST) :]:
            panel.plot(row["fpr"], row["tpr"], color=PALETTE["line"], linewidth=1)
        for row, style in zip(shown, _WORST, strict=False):
            panel.plot(row["fpr"], row["tpr"], linewidth=1.3, label=_named(str(row["class"]), row["auc"]), **style)
        panel.plot(
            macro["fpr"], macro["tpr"], color=PALETTE["blue"], linewidth=2.4, label=_named("mean", macro["auc"])
        )
        panel.set(xlabel="share of the others wrongly given the class", aspect="equal")
        panel.grid(color=PALETTE["line"], linewidth=0.5)
    axes[0].set(xlim=(-0.01, 1), ylim=(0, 1.01), ylabel="share of the class that is found")
    axes[0].legend(loc="lower right", title="AUC, the worst by name" if shown else "AUC", title_fontsize=8)
    if side:
        axes[1].set(xlim=(-side / 100, side), ylim=(1 - side, 1 + side / 100), title="Its upper left corner")
    return _drawn(figure)


_WORST: tuple[dict[str, Any], ...] = (
    {"color": PALETTE["orange"]},
    {"color": PALETTE["green"], "linestyle": (0, (5, 2))},
    {"color": PALETTE["faint"], "linestyle": (0, (1, 1.5))},
)


def _named(name: str, area: float) -> str:
    return f"{_cut(name)} {area:.4f}"


def _corner(macro: Mapping[str, Any]) -> float | None:
    """Side of the upper left corner in which the curve turns, with room around it; None for half or more."""
    turn = np.maximum(np.asarray(macro["fpr"]), 1 - np.asarray(macro["tpr"])).min()
    return next((side for side in (0.02, 0.05, 0.1, 0.2, 0.4) if 2.5 * turn <= side), None)


@_house_look()
def learning_curve(sizes: Sequence[Mapping[str, Any]]) -> "Image":
    """Accuracy by the number of training images, with intervals and, of several seeds, each training.

    ``sizes`` is what ``learning_curve.json`` holds: ``images``, ``accuracy``, ``low``, ``high``, ``seeds``.
    """
    figure, (panel,) = _figure(1, (4.8, 3.4))
    images = [size["images"] for size in sizes]
    middle = [size["accuracy"] for size in sizes]
    reach = [[abs(size["accuracy"] - size[edge]) for size in sizes] for edge in ("low", "high")]
    panel.errorbar(images, middle, reach, color=PALETTE["blue"], marker="o", markersize=5, capsize=3)
    for size in sizes:
        if len(size["seeds"]) > 1:
            panel.plot([size["images"]] * len(size["seeds"]), size["seeds"], "_", color=PALETTE["faint"])
    panel.set_xscale("log")
    panel.set_xticks(images, [f"{count:,}" for count in images])
    panel.minorticks_off()
    panel.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.4g} %")
    panel.set(xlabel="training images", ylabel="accuracy on the test images")
    panel.grid(axis="y", color=PALETTE["line"], linewidth=0.7)
    return _drawn(figure)


@_house_look()
def entrants(rows: Sequence[Mapping[str, Any]]) -> "Image":
    """Accuracy with its interval against the time of one answer, from ``compare.json``; baselines are squares."""
    figure, (panel,) = _figure(1, (7.2, 4.2))
    for row in rows:
        colour, marker = (PALETTE["blue"], "o") if row["kind"] == "network" else (PALETTE["orange"], "s")
        reach = [[abs(row["accuracy"] - row[edge])] for edge in ("low", "high")]
        spot = (row["ms_per_image"], row["accuracy"])
        panel.errorbar(*spot, reach, color=colour, marker=marker, markersize=5, capsize=3)
        panel.annotate(_cut(row["entrant"], 24), spot, (6, 4), textcoords="offset points", fontsize=8)
    panel.set_xscale("log")
    panel.margins(x=0.15)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.4g} %")
    panel.set(xlabel="milliseconds an image, in batches", ylabel="accuracy")
    panel.grid(axis="y", color=PALETTE["line"], linewidth=0.7)
    return _drawn(figure)


def rates(tried: Sequence[float], losses: Sequence[float], suggestion: float) -> "Image":
    """Smoothed training loss over the learning rate, the suggested rate marked."""
    figure, (panel,) = _figure(1, (5.6, 3.2))
    panel.plot(tried, losses, color=PALETTE["blue"])
    panel.axvline(suggestion, color=PALETTE["orange"], linestyle="--", label=f"{suggestion:g}")
    panel.set_xscale("log")
    panel.set_xlabel("learning rate")
    panel.set_title("Loss while the rate rises")
    panel.legend()
    return _drawn(figure)


def _figure(
    panels: int, size: tuple[float, float], *, rows: int = 1, heights: Sequence[float] | None = None
) -> "tuple[Figure, list[Axes]]":
    """A figure of its own, unknown to pyplot, with its panels in the house look; size in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor=PALETTE["paper"])
    ratios = list(heights) if heights else None
    grid = figure.subplots(rows, panels // rows, squeeze=False, height_ratios=ratios)
    return figure, list(grid.ravel())


def _drawn(figure: "Figure", *, dpi: int = 144) -> "Image":
    """The figure as an image; 144 dots per inch is twice what a page shows, so that it stays sharp."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def png(image: "Image") -> bytes:
    """The image as a PNG file's bytes."""
    stream = io.BytesIO()
    image.save(stream, "png", optimize=True)
    return stream.getvalue()


def data_url(image: "Image | bytes") -> str:
    """An image, or the bytes of a PNG file, as a ``data:`` address that a page can hold."""
    content = image if isinstance(image, bytes) else png(image)
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
