"""A bundle: the folder a classifier is saved in. What it may contain, and what is checked before it is used.

``config.json`` lists every other file with its SHA-256. Tensors are safetensors, everything else is JSON or the
card; a pickle is never read.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import get_ident
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from ..checks import check_number
from ..errors import BundleError
from ..files import checksum, write_json
from ..sources import is_junk

BUNDLE_FORMAT = 1
"""Version of the bundle's layout; a release reads its own and every earlier one."""

MAX_TENSOR_HEADER_BYTES = 10_000_000
"""Bytes of a safetensors header, 60,000 tensors' worth: a larger one takes memory before anything is checked."""

TENSORS_FILE = "model.safetensors"
CARD_FILE = "README.md"

ANSWERS_FILE = "answers.json"
"""Optional: conformal quantiles, how the classifier's answers may be read."""

MEMORY_FOLDER = "memory"
"""Optional: the only folder a bundle may have."""

TEMPERATURE_RANGE = (1e-3, 1e3)
"""Temperatures that a bundle may have: beyond them, probabilities are NaN or all equal."""

_TENSOR_TABLES = ("statistics", "fisher")
MEMORY_FILES = (*(f"{table}.safetensors" for table in _TENSOR_TABLES), "exemplars.json")
"""All that the folder ``memory`` may hold."""


@dataclass(frozen=True, eq=False)
class Memory:
    """What later training needs to know of past data: numbers and hashes, never images.

    The images of exemplars lie once, in the run or the site: erasing one there breaks no checksum of a bundle.
    Raises ValueError for anything but finite tensors and SHA-256 hashes.
    """

    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    """Sums over past data by name, such as means of features (K D) and their covariance (D D)."""
    fisher: Mapping[str, Tensor] = field(default_factory=dict)
    """Diagonal of the Fisher information by name of the parameter, each in its shape."""
    exemplars: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Class name -> SHA-256 of each image that stands for the class, in hexadecimal, most typical first."""

    def __post_init__(self) -> None:
        """Check every value."""
        for table in _TENSOR_TABLES:
            for name, tensor in getattr(self, table).items():
                if not isinstance(tensor, Tensor) or not bool(tensor.isfinite().all()):
                    raise ValueError(f"the memory's {table} '{name}' is not a tensor of finite numbers")
        for name, hashes in self.exemplars.items():
            if isinstance(hashes, str) or not all(re.fullmatch("[0-9a-f]{64}", str(one)) for one in hashes):
                raise ValueError(f"the memory's exemplars of '{name}' are not SHA-256 hashes of images")

    def __bool__(self) -> bool:
        """Whether there is anything to remember."""
        return bool(self.statistics or self.fisher or self.exemplars)

    def save(self, folder: Path) -> None:
        """Write the parts that are not empty into ``folder``, which is made."""
        folder.mkdir()
        for table in _TENSOR_TABLES:
            if tensors := getattr(self, table):
                plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
                save_file(plain, folder / f"{table}.safetensors")
        if self.exemplars:
            write_json(folder / "exemplars.json", {name: list(hashes) for name, hashes in self.exemplars.items()})

    @classmethod
    def load(cls, folder: Path) -> "Memory":
        """Read what ``save`` wrote; without the folder it is empty. Raises BundleError where it is damaged."""
        parts: dict[str, Any] = {}
        try:
            for table in _TENSOR_TABLES:
                if (file := folder / f"{table}.safetensors").is_file():
                    check_tensor_header(file)
                    parts[table] = load_file(file)
            if (file := folder / "exemplars.json").is_file():
                parts["exemplars"] = {
                    name: tuple(hashes) for name, hashes in json.loads(file.read_text("utf-8")).items()
                }
            return cls(**parts)
        except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise BundleError(
                f"The memory in '{folder}' cannot be read: {error}. Copy the bundle again."
            ) from error


def list_bundle_files(folder: Path) -> list[str]:
    """Names of all files of a bundle but ``config.json``, sorted, those of its memory as ``memory/NAME``.

    What operating systems and tools leave behind (``.DS_Store``, ``Thumbs.db``, names that begin with a dot) is left
    out: it is neither read nor copied. Raises BundleError for a folder that is not the memory, a link, or anything
    else that is not a regular file.
    """
    names: list[str] = []
    for path in folder.iterdir():
        if is_junk(path.name):
            continue
        if path.name == MEMORY_FOLDER and path.is_dir() and not path.is_symlink():
            for inner in path.iterdir():
                if is_junk(inner.name):
                    continue
                if inner.name not in MEMORY_FILES:
                    raise BundleError(
                        f"The bundle '{folder}' holds '{MEMORY_FOLDER}/{inner.name}', which is no part of a "
                        f"memory. Remove it: a memory holds {', '.join(MEMORY_FILES)}, and never images."
                    )
                _require_regular_file(folder, inner)
                names.append(f"{MEMORY_FOLDER}/{inner.name}")
        else:
            _require_regular_file(folder, path)
            names.append(path.name)
    return sorted(set(names) - {"config.json"})


def copy_bundle(source: Path, target: Path) -> None:
    """Copy what a bundle consists of, and nothing else, into the new folder ``target``; raises BundleError."""
    names = list_bundle_files(source)
    target.mkdir()
    for name in ("config.json", *names):
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copy2(source / name, target / name, follow_symlinks=False)


def _require_regular_file(folder: Path, path: Path) -> None:
    kind = (
        "a link"
        if path.is_symlink()
        else "a folder"
        if path.is_dir()
        else ""
        if path.is_file()
        else "a device or pipe"
    )
    if kind:
        raise BundleError(
            f"The bundle '{folder}' holds '{path.relative_to(folder)}', which is {kind}. Remove it, or put the "
            f"file itself there: a bundle holds plain files and the folder '{MEMORY_FOLDER}'."
        )


def read_bundle_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a bundle; raises BundleError where it is absent, damaged or too new."""
    path = folder / "config.json"
    if not path.is_file():
        raise BundleError(f"'{folder}' is no classifier: it has no config.json. Name a run or bundle folder.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        version = int(config["format"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise BundleError(f"The config.json of '{folder}' is damaged. Copy the bundle again.") from error
    if version > BUNDLE_FORMAT:
        raise BundleError(
            f"The bundle '{folder}' has format {version}, newer than this release reads ({BUNDLE_FORMAT}). "
            "Upgrade with: pip install --upgrade sightline"
        )
    return config


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def check_bundle_files(folder: Path, config: Mapping[str, Any]) -> None:
    """Check that every file is listed and has its checksum; raises BundleError for anything else in the folder."""
    listed = config.get("files")
    if not isinstance(listed, dict) or TENSORS_FILE not in listed:
        raise BundleError(f"The config.json of '{folder}' lists no files. Copy the bundle again.")
    present = list_bundle_files(folder)
    for name in present:
        if name not in listed:
            raise BundleError(
                f"The bundle '{folder}' holds '{name}', which its config.json does not list. "
                "Remove the file: bundles hold no pickles and nothing unlisted."
            )
    for name, expected in listed.items():
        if name not in present:
            raise BundleError(f"The bundle '{folder}' lacks its file '{name}'. Copy the bundle again.")
        if name != CARD_FILE and checksum(folder / name) != expected:  # a card may be edited by hand
            raise BundleError(
                f"The file '{name}' of the bundle '{folder}' has a wrong checksum: "
                "it was changed or damaged. Copy the bundle again."
            )


def check_bundle_values(config: Mapping[str, Any]) -> None:
    """Raise ValueError for fields that would load and then give wrong answers."""
    classes, temperature = config["classes"], config["temperature"]
    if len(set(classes)) != len(classes) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are not different names")
    check_number("its temperature", temperature, *TEMPERATURE_RANGE)
    check_number("its threshold", config.get("threshold", 0.0), 0, 1)


class _NoDraws(TorchFunctionMode):
    """Draws no numbers for tensors without values: torch would import its compiler for that, which takes 2 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Leave a tensor without values unchanged by ``normal_`` and ``uniform_``; do any other operation."""
        if getattr(func, "__name__", "") in ("normal_", "uniform_"):
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **(kwargs or {}))


@contextmanager
def limit_parameters(n_tensors: int) -> Iterator[None]:
    """Within this context modules are built without memory, and only about as many as ``n_tensors`` tensors need.

    The tensors have shapes and no values (device ``meta``). Raises BundleError for far more parameters and modules.
    """
    thread, count = get_ident(), 0

    def count_one(*_: Any) -> None:
        nonlocal count
        count += get_ident() == thread  # the hooks see the modules of every thread
        if count > 500 + 20 * n_tensors:
            raise BundleError(f"The config.json asks for a far larger network than its {n_tensors:,} tensors are.")

    hooks = (
        register_module_parameter_registration_hook(count_one),
        register_module_module_registration_hook(count_one),
    )
    try:
        with torch.device("meta"), _NoDraws():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def read_answers(folder: Path) -> dict[str, Any]:
    """The bundle's ``answers.json``, or nothing; raises ValueError where it is not a JSON object."""
    if not (folder / ANSWERS_FILE).is_file():
        return {}
    answers = json.loads((folder / ANSWERS_FILE).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    if not isinstance(answers, dict):
        raise ValueError(f"its {ANSWERS_FILE} is not a JSON object")
    return answers


def check_tensor_header(file: Path) -> None:
    """Raise ValueError where a safetensors file announces a header of more than ``MAX_TENSOR_HEADER_BYTES``."""
    with file.open("rb") as stream:
        announced = int.from_bytes(stream.read(8), "little")
    if announced > MAX_TENSOR_HEADER_BYTES:
        raise ValueError(f"its header of {announced:,} bytes is larger than {MAX_TENSOR_HEADER_BYTES:,}")


def read_tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a bundle's tensors by name, from the file's header alone; raises BundleError."""
    with _explain_tensor_errors(folder):
        check_tensor_header(folder / TENSORS_FILE)
        with safe_open(folder / TENSORS_FILE, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 it is no dict


def read_bundle_tensors(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a bundle by name, floats where those of ``like`` are and else of their type.

    Raises BundleError where the file is not safetensors, or a tensor is of another type or would give NaN.
    """
    with _explain_tensor_errors(folder):
        tensors = load_file(folder / TENSORS_FILE)
    for name, tensor in tensors.items():
        own = like[name]
        if not (tensor.is_floating_point() and own.is_floating_point()) and tensor.dtype != own.dtype:
            raise BundleError(
                f"The {TENSORS_FILE} of '{folder}' has '{name}' of type {tensor.dtype} for {own.dtype}. "
                "Save or copy the bundle again."
            )
    for name, tensor in tensors.items():
        values = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # torch tests no 8-bit floats
        negative = name.endswith(("running_var", "variances")) and bool((values < 0).any())
        if negative or not bool(values.isfinite().all()):
            raise BundleError(
                f"The bundle '{folder}' has impossible values in '{name}', which would make its answers NaN. "
                "Copy it again, or train again."
            )
    return tensors


@contextmanager
def _explain_tensor_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        raise BundleError(
            f"The {TENSORS_FILE} of '{folder}' is not a safetensors file (a pickle is never read): {error}."
        ) from error
