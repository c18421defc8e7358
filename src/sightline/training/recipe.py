"""A recipe: all settings of a training run as one frozen value. Imports no torch.

A field left at None is chosen for you (``defaults.py``), and the run's ``recipe.toml`` holds what
was chosen, so that running that file again repeats the run.
"""

import ast
import dataclasses
import inspect
import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, wraps
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ..checks import is_int, is_number
from ..errors import RecipeError
from .fields import FieldsSet, current_fields, parse_duration, parse_window

if TYPE_CHECKING:
    from ..sources import LabelRule
    from ..types import Geometry

_T = TypeVar("_T")

PRETRAINED = "pretrained"
"""Value of ``normalize``: as the card of the published weights says."""

INHERIT = "inherit"
"""Value of ``normalize``: as the run or bundle of ``--weights`` normalises."""


def _recipe_field(default: Any, group: str, *, common: bool = False) -> Any:
    """A field that becomes a flag: ``common`` ones are shown by --help, all by --help-all."""
    return field(default=default, metadata={"group": group, "common": common})


def _accept_old_names(recipe: type[_T]) -> type[_T]:
    """Let the constructor take earlier names and values of its fields, and keep which were given in ``fields_set``."""
    construct: Any = recipe.__init__

    @wraps(construct)
    def __init__(self: Any, **values: Any) -> None:
        current = current_fields(values, {f.name for f in dataclasses.fields(recipe)})  # type: ignore[arg-type]
        object.__setattr__(self, "fields_set", frozenset(current))
        construct(self, **current)

    recipe.__init__ = __init__  # type: ignore[method-assign]
    return recipe


@_accept_old_names
@dataclass(frozen=True, kw_only=True)
class Recipe(FieldsSet):
    """How to train a classifier. Every field is a flag of ``sightline train`` and a line of its TOML file.

    ``fields_set`` names the fields that were set, if only to their default. Names of earlier releases still work.
    Raises RecipeError for an unknown field, suggesting the right one, and, naming it, where a value is impossible.
    """

    data: str | None = _recipe_field(None, "Data")
    """Where the images are; the command's first argument."""
    limit: int | None = _recipe_field(None, "Data", common=True)
    """Use about this many images, drawn at random but evenly: a quick first try."""
    train_limit: int | None = _recipe_field(None, "Data")
    """Use about this many training images; given test and val splits stay whole. Chosen where a budget is short."""
    val_fraction: float | None = _recipe_field(None, "Data")
    """Fraction of the training images for validation, where the data has none. Default: 0.1, or 0 where few."""
    test_fraction: float = _recipe_field(0.15, "Data")
    """Fraction of the images used for testing, where the data has no test split; 0 for none."""
    unlabelled: str | None = _recipe_field(None, "Data", common=True)
    """Folder or archive of other images, without labels, for --semi-supervised; without it the features of a computed
    head are centred by their mean."""
    semi_supervised: str | None = _recipe_field(None, "Data", common=True)
    """Learn from images without a label too: fixmatch, softmatch, pseudo-label, or none. They lie in a folder
    unlabelled beside the classes, in rows of a table with an empty label, or in --unlabelled. Default: none."""
    target: str | None = _recipe_field(None, "Data")
    """Folder or archive of images of the world to adapt to, without labels, for --adapt; its folders are not read as
    classes."""
    split_seed: int | None = _recipe_field(None, "Data")
    """Seed for splitting and both limits. Default: seed. Use one value for runs you want to compare or combine."""
    group: str | None = _recipe_field(None, "Data")
    """Table column of images that stay in one split (one patient, one scene). Default: a column named group."""
    path_column: str | None = _recipe_field(None, "Data")
    """Table column of the images' paths. Default: path, image, file_name or another usual name."""
    label_column: str | None = _recipe_field(None, "Data")
    """Table column of the labels. Default: label, class, target or another usual name."""
    label_pattern: str | None = _recipe_field(None, "Data")
    """Where the label stands in the names of image files: '{label}_{number}.jpg', or a regular expression with one
    group. A pattern with a slash is for the whole path inside the data, {split} included: '{split}/{label}/*'."""

    size: int | None = _recipe_field(None, "Pixels", common=True)
    """Working size: images become size x size pixels. Chosen from the median short side."""
    channels: Literal[1, 3] | None = _recipe_field(None, "Pixels")
    """1 for grey, 3 for colour. Chosen from the images."""
    resize_mode: Literal["squash", "crop", "pad"] | None = _recipe_field(None, "Pixels", common=True)
    """How an image becomes square: squash (change its aspect ratio), crop its long side, or pad with black borders.
    Default: crop where published weights expect it, else squash."""
    crop_fraction: float | None = _recipe_field(None, "Pixels")
    """Fraction of the short side that crop keeps. Default: that of the published weights, else 1."""
    interpolation: Literal["bilinear", "bicubic", "box", "lanczos"] | None = _recipe_field(None, "Pixels")
    """Resampling filter. Default: that of the published weights, else bilinear."""
    window: str | None = _recipe_field(None, "Pixels")
    """Values of 16-bit grey images that become black and white, such as 0:4095. Default: the full range, 0:65535."""
    normalize: str | None = _recipe_field(None, "Pixels", common=True)
    """Normalisation of pixels: fitted (mean and standard deviation of the training images), imagenet, cifar10,
    mnist, signed (to [-1, 1]), none, gcn (contrast of each image), zca:eps=0.1; several joined by +: gcn+zca;
    inherit (that of the run or bundle of --weights), pretrained (that of the card of published weights). Default:
    inherit or pretrained with such weights, else fitted. Filters come first: median:3+fitted, jpeg:75, bits:4."""
    augment: tuple[str, ...] | None = _recipe_field(None, "Pixels", common=True)
    """Augmentations in order, with arguments after colons: flip shift:4 rotate:10; or none. `sightline list
    augmentations` names them all."""

    model: str | None = _recipe_field(None, "Model", common=True)
    """Network, with arguments after colons: lenet5, resnet20, enhanced:dropout=0.3. Default: photos start from
    EfficientNet-Lite0 trained on ImageNet, which comes with the installation; small images get a small network."""
    from_scratch: bool = _recipe_field(False, "Model", common=True)
    """Start from random weights, also where the images are photos."""
    quality: Literal["fast", "standard", "best"] | None = _recipe_field(None, "Model")
    """Published weights by name: fast (MobileNetV3) and best (TinyViT) are fetched from the hub or its cache,
    standard (EfficientNet-Lite0) comes with the installation."""
    accept_licence: bool = _recipe_field(False, "Model")
    """Use published weights whose licence restricts commercial use, or is not known."""
    method: str | None = _recipe_field(None, "Model", common=True)
    """How the last layer is learned: gradient (with the whole network), or on the features of frozen weights: probe
    (logistic regression), prototypes (class means), lda; finetune (probe, then the whole network where that pays).
    Default: finetune with published weights, else gradient."""
    dropout: float | None = _recipe_field(None, "Model")
    """Dropout rate before the last layer. Default: the network's own."""
    init: str = _recipe_field("default", "Model")
    """Initial weights: default (that of the network's authors), glorot-uniform, he-normal, lecun-normal, ..."""
    flip_tta: bool = _recipe_field(False, "Model")
    """Test-time augmentation by the mirror image: a little more accurate, at twice the cost of a prediction."""
    weight_noise: float = _recipe_field(0.0, "Model")
    """Noise in the weights of every layer, in training and in predictions: its initial size in standard deviations of
    the layer's weights; training adjusts it (parametric noise injection). 0.25 is usual; 0 for none."""
    weights: str | None = _recipe_field(None, "Model", common=True)
    """Weights to start from: a run or bundle folder, or a file: .safetensors, or .pth/.th without code."""
    freeze: str = _recipe_field("none", "Model")
    """Frozen layers: none, backbone (all but the head), until:3 (all but the head in the first 3 epochs),
    stage:layer2 or stage:3 (up to that stage), early:0.45 (the first 45 % of the stages, and all depthwise kernels),
    staged:2 (all but the head, and one stage fewer every 2 epochs)."""

    epochs: int | None = _recipe_field(None, "Training", common=True)
    """Passes over the training images; 0 trains nothing. Chosen to fit the budget."""
    budget: str = _recipe_field("10m", "Training", common=True)
    """Training time where epochs are not given: 90s, 10m, 2h."""
    steps: int | None = _recipe_field(None, "Training")
    """Optimizer steps after which training ends, if earlier. Written where a budget ended within an epoch."""
    batch_size: int | None = _recipe_field(None, "Training", common=True)
    """Images per step. 128, or fewer where the training set is small."""
    loss: str = _recipe_field("cross-entropy", "Training")
    """Objective to minimise, with arguments after colons: cross-entropy, focal:gamma=2, m3ce-cec, ..."""
    adapt: str | None = _recipe_field(None, "Training")
    """Term of the loss that adapts the network to the images of --target: mcc, coral, mmd or dann, with arguments after
    colons (mcc:weight=0.5), or none. Default: none."""
    loss_weight: float | None = _recipe_field(None, "Training")
    """Weight of the M3CE term in the losses m3ce-cec (default: 1) and m3ce-cec-normalised (default: 0.5)."""
    class_weights: str = _recipe_field("none", "Training")
    """Weights of the classes in the loss: none; balanced, N / (K n); effective:0.999, by the effective number of
    images, (1 - beta^n) / (1 - beta)."""
    sampling: str = _recipe_field("shuffled", "Training")
    """shuffled: every image once an epoch; balanced: every class equally often, rare images repeatedly; classes:8:
    batches of 8 classes, with as many images of each."""
    fairness_column: str | None = _recipe_field(None, "Training")
    """Table column that defines groups. Training balances every (group, class) combination."""
    fairness_method: str = _recipe_field("balanced", "Training")
    """How groups are balanced: balanced (each combination drawn equally often), reweighing, group-dro:eta=0.01."""
    label_smoothing: float = _recipe_field(0.0, "Training")
    """Fraction of each label that is spread evenly over all classes, in [0, 1)."""
    optimizer: str = _recipe_field("sgd", "Training")
    """sgd (Nesterov momentum; sgd:nesterov=False for classical momentum), adam, adamw or muon (orthogonal updates of
    kernels and hidden matrices, AdamW for the rest)."""
    lr: float | None = _recipe_field(None, "Training", common=True)
    """Peak learning rate. Chosen for the optimiser, network and batch size."""
    bias_lr: float = _recipe_field(1.0, "Training")
    """Factor on the learning rate of biases and norms."""
    layer_decay: float = _recipe_field(1.0, "Training")
    """Layer-wise decay of the learning rate: the factor from each stage of the network to the one before it, from the
    head back to the pixels. Below 1, early stages learn more slowly."""
    momentum: float = _recipe_field(0.9, "Training")
    """Momentum of SGD and Muon, beta1 of Adam and AdamW."""
    weight_decay: float = _recipe_field(5e-4, "Training")
    """Weight decay, except of biases and norms: added to the gradient by sgd and adam (L2), decoupled by adamw, muon
    and sgd:decoupled=True."""
    schedule: str = _recipe_field("one-cycle", "Training")
    """Learning-rate schedule: one-cycle (up and down to zero), cosine, restarts (of a cosine), linear,
    step:every=30:gamma=0.1, exponential:0.9, plateau (down when the validation loss stops improving), constant."""
    warmup: float = _recipe_field(0.2, "Training")
    """Fraction of the steps in which the learning rate rises to its peak (any schedule)."""
    clip_grad: float = _recipe_field(0.0, "Training")
    """Largest norm of a step's gradient; a larger one is scaled down to it. 0 for no limit."""
    grad_accum_steps: int = _recipe_field(1, "Training")
    """Number of pieces a batch is cut into, their gradients added: the same step in less memory, but for batch norm."""
    progressive_from: int | None = _recipe_field(None, "Training")
    """Progressive resizing: the first epochs train at this many pixels, growing to the working size by two thirds of
    the epochs. Faster; for networks that take any size."""
    ema_decay: float = _recipe_field(0.0, "Training")
    """Decay per step of an exponential moving average of the weights, kept instead of them; 0 for none, often 0.999."""
    freeze_norms: bool = _recipe_field(False, "Training")
    """Keep the statistics of batch norms as they are: for fine-tuning on few images."""
    patience: int = _recipe_field(0, "Training")
    """Early stopping: the number of epochs without a lower validation loss after which training stops; 0 for never."""

    precision: Literal["float32", "bfloat16"] | None = _recipe_field(None, "Machine")
    """Arithmetic of training. Chosen by measuring which is faster."""
    memory_format: Literal["contiguous", "channels_last"] | None = _recipe_field(None, "Machine")
    """Memory layout of images. Chosen by measuring which is faster."""
    cpu_replicas: int | None = _recipe_field(None, "Machine")
    """Copies of the network that share each batch, one CPU thread each; batch norm sees its share. Measured."""
    fused_kernels: bool | None = _recipe_field(None, "Machine")
    """Batch norm, addition and activation as one operator while training on a CPU, compiled where a compiler is.
    Measured."""
    devices: int = _recipe_field(1, "Machine")
    """Number of GPUs, or of processes on the CPU, that share each batch."""
    seed: int = _recipe_field(0, "Machine", common=True)
    """Seed for splitting, initial weights, order and augmentation."""

    def __post_init__(self) -> None:
        if isinstance(self.augment, str | list | tuple):
            given = [self.augment] if isinstance(self.augment, str) else self.augment
            words = [
                word for text in given for word in (text.split() if isinstance(text, str) else [text]) or [""]
            ]
            object.__setattr__(self, "augment", tuple(words))
        if self.augment == ("none",):
            object.__setattr__(self, "augment", ())
        for name, (wanted, holds) in _field_rules().items():
            value = vars(self)[name]
            try:
                fits = value is None or holds(value)
            except TypeError:
                fits = False
            if not fits:
                raise RecipeError(f"The recipe's {name} is {value!r}: it must be {wanted}.")
        for name in ("data", "unlabelled", "target"):
            if "://" in (vars(self)[name] or ""):  # else numpy need not be imported
                from ..sources import hide_query

                object.__setattr__(self, name, hide_query(vars(self)[name]))
        parse_duration(self.budget)
        if self.crop_fraction is not None and self.resize_mode != "crop":
            raise RecipeError(
                f"The recipe's crop_fraction is {self.crop_fraction}, which needs --resize-mode crop."
            )
        if self.from_scratch and self.quality:
            raise RecipeError(
                "from_scratch starts from random weights and quality from published ones: leave one out."
            )

    @property
    def data_seed(self) -> int:
        """Seed for splitting and subsampling."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def label_rule(self) -> "LabelRule":
        """Where the labels stand, as far as the usual names do not tell."""
        from ..sources import LabelRule

        return LabelRule(self.path_column, self.label_column, self.label_pattern)

    @property
    def geometry(self) -> "Geometry":
        """How image files become pixels, once the size is known."""
        from ..types import Geometry

        assert self.size is not None
        return Geometry(
            size=(self.size, self.size),
            channels=self.channels or 3,
            resize_mode=self.resize_mode or "squash",
            crop_fraction=self.crop_fraction or 1.0,
            interpolation=self.interpolation or "bilinear",
            window=parse_window(self.window),
        )

    def replace(self, **changes: Any) -> "Recipe":
        """A copy with these fields changed; old names still work. Raises RecipeError, as the constructor does."""
        changes = current_fields(changes, {f.name for f in dataclasses.fields(self)})
        made = dataclasses.replace(self, **changes)
        object.__setattr__(made, "fields_set", self.fields_set.union(changes))
        return made

    def to_toml(self) -> str:
        """The recipe as TOML, a comment above each field, fields left to be chosen commented out."""
        lines, group = ["# A Sightline recipe: run it again with `sightline train --recipe THIS_FILE`."], ""
        for f in dataclasses.fields(self):
            if f.metadata["group"] != group:
                group = f.metadata["group"]
                lines += ["", f"# --- {group} ---"]
            value = vars(self)[f.name]
            lines += [f"# {' '.join(field_descriptions()[f.name].split())}"]
            text = json.dumps(value, ensure_ascii=isinstance(value, tuple))  # a TOML value too
            lines += [f"# {f.name} =" if value is None else f"{f.name} = {text}"]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, file: Path) -> "Recipe":
        """Read a recipe, also one of an older release; RecipeError names the file and the line or field at fault."""
        try:
            return cls.parse_toml(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RecipeError(f"There is no recipe file '{file}'.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"The recipe file '{file}' is not valid TOML: {error}.") from error
        except RecipeError as error:
            raise RecipeError(f"In '{file}': {error}") from error

    @classmethod
    def parse_toml(cls, text: str) -> "Recipe":
        """The recipe that ``to_toml`` wrote; raises TOMLDecodeError or RecipeError."""
        return cls(**tomllib.loads(text))


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


@cache
def _field_rules() -> Mapping[str, tuple[str, Callable[[Any], bool]]]:
    rules = {name: (wanted, holds) for wanted, holds, names in _RULES for name in names.split()}
    for name, kind in get_type_hints(Recipe).items():
        for part in (kind, *get_args(kind)):
            if get_origin(part) is Literal:
                words = get_args(part)
                rules[name] = f"one of {', '.join(map(str, words))}", words.__contains__
    return rules


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("a path or a name", _is_text, "data"),
    ("a file or folder", _is_text, "weights unlabelled target"),
    (
        "a name",
        _is_text,
        "normalize model method semi_supervised init freeze loss adapt sampling class_weights fairness_method "
        "optimizer schedule",
    ),
    ("a list of names", lambda v: all(map(_is_text, v)), "augment"),
    ("the name of a column", _is_text, "group fairness_column path_column label_column"),
    ("a pattern such as {label}_{number}.jpg", _is_text, "label_pattern"),
    ("true or false", lambda v: isinstance(v, bool), "from_scratch accept_licence flip_tta"),
    ("true or false", lambda v: isinstance(v, bool), "freeze_norms fused_kernels"),
    ("two numbers such as 0:4095, the smaller first", lambda v: bool(parse_window(v)), "window"),
    ("a whole number, 0 or more", lambda v: is_int(v) and v >= 0, "epochs patience"),
    ("a whole number of at least 1", lambda v: is_int(v) and v >= 1, "grad_accum_steps cpu_replicas devices"),
    ("a whole number of at least 1", lambda v: is_int(v) and v >= 1, "steps"),
    ("a whole number of at least 2", lambda v: is_int(v) and v >= 2, "limit train_limit batch_size"),
    ("a whole number from 0 to 2^63 - 1", lambda v: is_int(v) and 0 <= v < 2**63, "seed split_seed"),
    ("a whole number of pixels from 8 to 1024", lambda v: is_int(v) and 8 <= v <= 1024, "size progressive_from"),
    ("0 or a fraction from 0.01 to 0.5", lambda v: v == 0 or 0.01 <= v <= 0.5, "val_fraction test_fraction"),
    ("a fraction from 0.1 to 1", lambda v: 0.1 <= v <= 1, "crop_fraction"),
    (
        "a fraction from 0 to below 1",
        lambda v: is_number(v) and 0 <= v < 1,
        "dropout label_smoothing momentum warmup ema_decay",
    ),
    ("a number, 0 or more", lambda v: is_number(v) and 0 <= v < math.inf, "loss_weight weight_decay clip_grad"),
    ("a number above 0", lambda v: is_number(v) and 0 < v < math.inf, "lr bias_lr"),
    ("a number above 0, up to 1", lambda v: is_number(v) and 0 < v <= 1, "layer_decay"),
    ("a number from 0 to 10", lambda v: is_number(v) and 0 <= v <= 10, "weight_noise"),
)
"""(what a value must be, whether it is, the fields of this rule); the values of a Literal are its own rule."""
