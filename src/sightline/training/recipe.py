"""What was asked for: every knob of a training run as one frozen value. Imports no torch.

A field left at None is chosen for you (``choices.py``), and the run's ``recipe.toml`` holds what
was chosen, so that running that file again repeats the run.
"""

import ast
import dataclasses
import inspect
import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from ..checks import is_int, is_number
from ..choose import suggest
from ..errors import RecipeError

SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _recipe_field(default: Any, group: str, *, common: bool = False) -> Any:
    """A field that becomes a flag: ``common`` ones are shown by --help, all by --help-all."""
    return field(default=default, metadata={"group": group, "common": common})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train a classifier. Every field is a flag of ``sightline train`` and a line of its TOML file.

    Raises RecipeError, naming the field, where a value is impossible.
    """

    data: str | None = _recipe_field(None, "Data")
    """Where the images are; the command's first argument."""
    limit: int | None = _recipe_field(None, "Data", common=True)
    """Use about this many images, drawn at random but evenly: a quick first try."""
    val: float = _recipe_field(0.1, "Data")
    """Share of the training images kept for validation, where no validation split is given."""
    test: float = _recipe_field(0.15, "Data")
    """Share of the images kept for the test, where no test split is given."""
    split_seed: int | None = _recipe_field(None, "Data")
    """Seed of what is drawn from the data, the parts and --limit, where it is not the seed: classifiers to be
    compared or combined share it."""
    group: str | None = _recipe_field(None, "Data")
    """Column of a table whose images belong together (one patient, one scene) and stay on one side of a split.
    A column called group is taken by itself."""

    size: int | None = _recipe_field(None, "Pixels", common=True)
    """Working size: images become size x size pixels. Chosen from the median short side."""
    channels: Literal[1, 3] | None = _recipe_field(None, "Pixels")
    """1 for grey, 3 for colour. Chosen from the images."""
    fit: Literal["squash", "crop", "pad"] = _recipe_field("squash", "Pixels", common=True)
    """How an image that is not square becomes square: bend it, cut its borders, or add black ones."""
    filter: Literal["bilinear", "bicubic", "box", "lanczos"] = _recipe_field("bilinear", "Pixels")
    """Resampling filter."""
    window: str | None = _recipe_field(None, "Pixels")
    """Values of 16-bit grey images that become black and white, such as 0:4095. The full range, 0:65535, where not
    given."""
    normalize: str | None = _recipe_field(None, "Pixels", common=True)
    """How pixels are normalised: fitted (mean and deviation of the training images), imagenet, cifar10, mnist,
    signed (to [-1, 1]), none, gcn (each image's own contrast), zca:eps=0.1; several joined by +: gcn+zca; start
    (as the run or bundle of --weights does). start where there is such a one, else fitted. Filters come first:
    median:3+fitted, jpeg:75, bits:4, noise:0.1."""
    augment: tuple[str, ...] | None = _recipe_field(None, "Pixels", common=True)
    """Augmentations in order, with arguments after colons: flip shift:4 rotate:10; or none. `sightline list
    augmentations` names them all."""

    model: str | None = _recipe_field(None, "Model", common=True)
    """Network, with arguments after colons: lenet5, resnet20, enhanced:dropout=0.3. Chosen from size and data."""
    dropout: float | None = _recipe_field(None, "Model")
    """Share of the features dropped before the last layer while training. The network's own where not given."""
    init: str = _recipe_field("own", "Model")
    """Initial weights: own (as the network's authors do), or glorot-uniform, he-normal, lecun-normal, ..."""
    mirrored: bool = _recipe_field(False, "Model")
    """Answer with the mean over an image and its mirror image: a little better, at twice the work per answer."""
    weight_noise: float = _recipe_field(0.0, "Model")
    """Noise in the weights of every layer while training and answering, in deviations of each layer's weights at
    first; training adjusts it (parametric noise injection). 0.25 is usual; 0 for none."""
    weights: str | None = _recipe_field(None, "Model", common=True)
    """What to start from: a run or bundle folder, or a file of weights: .safetensors, or .pth/.th without code in
    it."""
    freeze: str = _recipe_field("none", "Model")
    """What keeps its weights: none, backbone (all but the head), until:3 (all but the head in the first 3 epochs),
    stage:layer2 or stage:3 (up to that stage), staged:2 (all but the head, and one stage fewer every 2 epochs)."""

    epochs: int | None = _recipe_field(None, "Training", common=True)
    """Passes over the training images; 0 tests the weights as they are. Chosen to fit the budget."""
    budget: str = _recipe_field("10m", "Training", common=True)
    """Time the training may take when epochs are not given: 90s, 10m, 2h."""
    batch_size: int | None = _recipe_field(None, "Training", common=True)
    """Images per step. 128, or fewer where the training set is small."""
    loss: str = _recipe_field("cross-entropy", "Training")
    """Objective to minimise, with arguments after colons: cross-entropy, focal:gamma=2, m3ce-cec, ..."""
    loss_weight: float | None = _recipe_field(None, "Training")
    """Weight of M3CE beside cross-entropy, for the losses m3ce-cec (its own: 1) and m3ce-cec-normalised."""
    class_weights: str = _recipe_field("none", "Training")
    """balanced: errors on rare classes weigh more in the loss, by N / (K n); effective:0.999: by the effective
    number of images, (1 - beta^n) / (1 - beta)."""
    sampling: Literal["shuffled", "balanced"] = _recipe_field("shuffled", "Training")
    """shuffled: every image once an epoch; balanced: every class equally often, rare images repeatedly."""
    fair: str | None = _recipe_field(None, "Training")
    """Column of a table whose groups should fare alike: its values within each class are to count the same."""
    fair_by: str = _recipe_field("balanced", "Training")
    """How, where fair names a column: balanced (each drawn equally often), reweighing, group-dro:eta=0.01."""
    label_smoothing: float = _recipe_field(0.0, "Training")
    """Share of each label spread evenly over all classes, in [0, 1)."""
    optimizer: str = _recipe_field("sgd", "Training")
    """sgd (Nesterov momentum; sgd:nesterov=False for the classical one), adam or adamw."""
    lr: float | None = _recipe_field(None, "Training", common=True)
    """Peak learning rate. Chosen for the optimiser, network and batch size."""
    bias_lr: float = _recipe_field(1.0, "Training")
    """Factor on the learning rate of biases and norms."""
    layer_decay: float = _recipe_field(1.0, "Training")
    """Factor on the learning rate from each stage of the network to the one before it, from the head back to the
    pixels; below 1, early stages learn slower."""
    momentum: float = _recipe_field(0.9, "Training")
    """Momentum of SGD, first decay rate of AdamW."""
    weight_decay: float = _recipe_field(5e-4, "Training")
    """Decay of the weights (never of biases and norms): added to the gradient by sgd and adam (L2), decoupled
    by adamw and sgd:decoupled=True."""
    schedule: str = _recipe_field("one-cycle", "Training")
    """How the learning rate moves: one-cycle (up and down to zero), cosine, linear, step:every=30:gamma=0.1,
    exponential:0.9, plateau (down when validation stops improving), constant."""
    warmup: float = _recipe_field(0.2, "Training")
    """Share of the steps in which the learning rate rises to its peak (any schedule)."""
    clip: float = _recipe_field(0.0, "Training")
    """Largest norm a step's gradient may have; longer ones are shortened to it. 0 for no limit."""
    accumulate: int = _recipe_field(1, "Training")
    """Pieces a batch is worked in, their gradients added: the same step (norms aside) in less memory."""
    start_size: int | None = _recipe_field(None, "Training")
    """Train at this many pixels at first, growing to the working size by two thirds of the epochs: faster, for
    networks that take any size."""
    ema: float = _recipe_field(0.0, "Training")
    """Decay per step of a moving average of the weights, used in their place; 0 for none, 0.999 is common."""
    patience: int = _recipe_field(0, "Training")
    """Stop after this many epochs without a better validation loss; 0 never stops early."""

    precision: Literal["float32", "bfloat16"] | None = _recipe_field(None, "Machine")
    """Arithmetic of training. Whichever measures faster here."""
    memory_format: Literal["contiguous", "channels_last"] | None = _recipe_field(None, "Machine")
    """Layout of images in memory. Whichever measures faster here."""
    replicas: int | None = _recipe_field(None, "Machine")
    """Copies of the network that share each batch, one thread each (CPU only); norms see their share.
    Used where it measures faster than one network with all threads."""
    processes: int = _recipe_field(1, "Machine")
    """Processes (CPU) or GPUs that share each batch."""
    seed: int = _recipe_field(0, "Machine", common=True)
    """Seed of split, initial weights, order and augmentation."""

    def __post_init__(self) -> None:
        if isinstance(self.augment, str | list | tuple):
            given = [self.augment] if isinstance(self.augment, str) else self.augment
            words = [
                word for text in given for word in (text.split() if isinstance(text, str) else [text]) or [""]
            ]
            object.__setattr__(self, "augment", tuple(words))
        if self.augment == ("none",):
            object.__setattr__(self, "augment", ())
        for name, (wanted, holds) in _RULES.items():
            value = vars(self)[name]
            if value is not None and not _holds(holds, value):
                raise RecipeError(f"The recipe's {name} is {value!r}: it must be {wanted}.")
        parse_duration(self.budget)

    @property
    def data_seed(self) -> int:
        """Seed of what is drawn from the data."""
        return self.seed if self.split_seed is None else self.split_seed

    def replace(self, **changes: Any) -> "Recipe":
        """A copy with these fields changed; an unknown name is a RecipeError that suggests the right one."""
        names = {f.name for f in dataclasses.fields(self)}
        for name in changes:
            if name not in names:
                raise RecipeError(f"A recipe has no field '{name}'. {suggest(name, names)}")
        return dataclasses.replace(self, **changes)

    def to_toml(self) -> str:
        """The recipe as TOML, a comment above each field, fields left to be chosen commented out."""
        lines, group = ["# A Sightline recipe: run it again with `sightline train --recipe THIS_FILE`."], ""
        for f in dataclasses.fields(self):
            if f.metadata["group"] != group:
                group = f.metadata["group"]
                lines += ["", f"# --- {group} ---"]
            value = vars(self)[f.name]
            lines += [f"# {' '.join(field_descriptions()[f.name].split())}"]
            lines += [f"# {f.name} =" if value is None else f"{f.name} = {_toml(value)}"]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, file: Path) -> "Recipe":
        """Read a recipe; raises RecipeError naming the file and the line or field at fault."""
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RecipeError(f"There is no recipe file '{file}'.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"The recipe file '{file}' is not valid TOML: {error}.") from error
        try:
            return cls().replace(**values)
        except RecipeError as error:
            raise RecipeError(f"In '{file}': {error}") from error


def parse_window(text: str | None) -> tuple[float, float] | None:
    """The two values of '0:4095'; None for None and for nonsense.

    >>> window("0:4095")
    (0.0, 4095.0)
    """
    try:
        low, high = map(float, str(text).split(":"))
    except ValueError:
        return None
    return (low, high) if -1e9 < low < high < 1e9 else None


def parse_duration(budget: str) -> float:
    """Seconds in '90s', '10m', '1.5h' or a plain number of seconds.

    >>> seconds("1.5m")
    90.0
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([smhd]?)\s*", str(budget))
    try:
        amount = float(match[1]) * SECONDS_PER_UNIT[match[2] or "s"] if match else 0.0
    except ValueError:
        amount = 0.0
    if amount <= 0 or not math.isfinite(amount):
        raise RecipeError(f"The recipe's budget is {budget!r}: write a time such as 90s, 10m or 2h.")
    return amount


@cache
def field_descriptions() -> Mapping[str, str]:
    """The docstring under each field, by field name: help texts and TOML comments come from here."""
    (body,) = (n.body for n in ast.parse(inspect.getsource(Recipe)).body if isinstance(n, ast.ClassDef))
    found: dict[str, str] = {}
    for node, after in pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            match after:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    found[node.target.id] = text
                case _:
                    raise AssertionError(f"Recipe.{node.target.id} has no docstring")
    return found


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(json.dumps(word) for word in value)}]"
    return json.dumps(value, ensure_ascii=False)


def _holds(rule: Callable[[Any], bool], value: Any) -> bool:
    try:
        return rule(value)
    except TypeError:
        return False


def _whole(low: int) -> Callable[[Any], bool]:
    return lambda v: is_int(v) and v >= low


def _one_of(*words: Any) -> tuple[str, Callable[[Any], bool]]:
    return f"one of {', '.join(str(w) for w in words)}", lambda v: v in words


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda v: is_number(v) and low <= v < high


def _text(v: Any) -> bool:
    return isinstance(v, str) and bool(v.strip())


_RULES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "data": ("a path or a name", _text),
    "limit": ("a whole number of at least 2", _whole(2)),
    "val": ("a share from 0.01 to 0.5", lambda v: 0.01 <= v <= 0.5),
    "test": ("a share from 0.01 to 0.5", lambda v: 0.01 <= v <= 0.5),
    "split_seed": ("a whole number from 0 to 2^63 - 1", lambda v: _whole(0)(v) and v < 2**63),
    "group": ("the name of a column", _text),
    "size": ("a whole number of pixels from 8 to 1024", lambda v: _whole(8)(v) and v <= 1024),
    "channels": _one_of(1, 3),
    "fit": _one_of("squash", "crop", "pad"),
    "filter": _one_of("bilinear", "bicubic", "box", "lanczos"),
    "window": ("two numbers such as 0:4095, the smaller first", lambda v: bool(parse_window(v))),
    "normalize": ("a name", _text),
    "augment": ("a list of names", lambda v: all(_text(word) for word in v)),
    "model": ("a name", _text),
    "weights": ("a file or folder", _text),
    "freeze": ("a name", _text),
    "dropout": ("a share from 0 to below 1", _number(0, 1)),
    "init": ("a name", _text),
    "mirrored": ("true or false", lambda v: isinstance(v, bool)),
    "weight_noise": ("a number from 0 to 10", lambda v: _number(0, math.inf)(v) and v <= 10),
    "epochs": ("a whole number, 0 or more", _whole(0)),
    "batch_size": ("a whole number of at least 2", _whole(2)),
    "loss": ("a name", _text),
    "loss_weight": ("a number, 0 or more", _number(0, math.inf)),
    "label_smoothing": ("a share from 0 to below 1", _number(0, 1)),
    "class_weights": ("a name", _text),
    "sampling": _one_of("shuffled", "balanced"),
    "fair": ("the name of a column", _text),
    "fair_by": ("a name", _text),
    "optimizer": ("a name", _text),
    "lr": ("a number above 0", lambda v: _number(0, math.inf)(v) and v > 0),
    "bias_lr": ("a number above 0", lambda v: _number(0, math.inf)(v) and v > 0),
    "layer_decay": ("a number above 0, up to 1", lambda v: _number(0, math.inf)(v) and 0 < v <= 1),
    "momentum": ("a share from 0 to below 1", _number(0, 1)),
    "weight_decay": ("a number, 0 or more", _number(0, math.inf)),
    "schedule": ("a name", _text),
    "warmup": ("a share from 0 to below 1", _number(0, 1)),
    "clip": ("a number, 0 or more", _number(0, math.inf)),
    "accumulate": ("a whole number of at least 1", _whole(1)),
    "start_size": ("a whole number of pixels from 8 to 1024", lambda v: _whole(8)(v) and v <= 1024),
    "ema": ("a share from 0 to below 1", _number(0, 1)),
    "patience": ("a whole number, 0 or more", _whole(0)),
    "precision": _one_of("float32", "bfloat16"),
    "memory_format": _one_of("contiguous", "channels_last"),
    "replicas": ("a whole number of at least 1", _whole(1)),
    "processes": ("a whole number of at least 1", _whole(1)),
    "seed": ("a whole number from 0 to 2^63 - 1", lambda v: _whole(0)(v) and v < 2**63),
}
