"""Loading third-party checkpoints: complete, checked, and without running code in them."""

import pickle
import pickletools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BundleError, DataError
from ..layers import Network
from .bundle import check_tensor_header

HEAD_TENSORS = ("head.weight", "head.bias")

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
"""Keys under which trainers save the table of tensors."""

WRAPPER_PREFIXES = ("module.", "model.", "network.", "net.", "backbone.", "_orig_mod.")
"""Prefixes that wrappers such as DataParallel put before every name."""

HEAD_NAMES = ("head", "linear", "fc", "classifier", "output", "last_linear")
"""Names that other networks give their last layer."""

TORCH_SUFFIXES = (".pth", ".pt", ".th", ".tar", ".ckpt", ".bin")

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class WeightsReport:
    """What was loaded from a file of weights."""

    file: str
    loaded: tuple[str, ...]
    """Tensors of the network that now hold the file's values."""
    initial: tuple[str, ...]
    """Tensors of the network left as initialised: the head, where the file has other classes."""
    ignored: tuple[str, ...]
    """Tensors of the file that were not used: another head, preprocessing, temperature."""

    def __str__(self) -> str:
        note = f"Loaded {len(self.loaded)} tensors from '{self.file}'"
        if self.initial:
            note += f"; {', '.join(self.initial)} are freshly initialised, because the file has other classes"
        return note + "."


def load_weights(network: Network, file: str | Path, tensors: Tensors | None = None) -> WeightsReport:
    """Copy the tensors of a ``.safetensors``, ``.pth``, ``.pt`` or ``.th`` file into ``network``.

    Wrappers' prefixes are stripped and the last layer is found under its usual names; a head of other classes is
    left as initialised. Everything is checked before anything is copied. ``tensors`` are those of the file, if it
    was read before. Raises DataError where there is no file, BundleError for a file that is unsafe, damaged or made
    for another network.
    """
    path = Path(file)
    everything = strip_prefixes(read_tensors(path) if tensors is None else tensors)
    kept = select_network_tensors(everything)
    wanted = {name: t for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    given = _rename_keys(kept, network, wanted)
    given = {name: t for name, t in given.items() if not name.endswith("num_batches_tracked")}
    apart = {"noise.alpha", "head.centre"} - (given.keys() & wanted.keys())  # noise or prototypes on one side only
    given, wanted = ({name: t for name, t in side.items() if name not in apart} for side in (given, wanted))
    head, own = (side.get("head.weight", torch.empty(0, 0)) for side in (given, wanted))
    initial: tuple[str, ...] = ()
    if head.ndim == 2 and "head.weight" in wanted and ("head.bias" in given) != ("head.bias" in wanted):
        given = {name: t for name, t in given.items() if name not in HEAD_TENSORS}  # another kind of last layer
        initial = tuple(name for name in HEAD_TENSORS if name in wanted)
    if head.ndim == 2 and head.shape[0] != own.shape[0] and head.shape[1] == own.shape[1]:  # other classes
        initial = tuple(name for name in HEAD_TENSORS if name in wanted)
    _check_fit(path, given, wanted, initial)
    loaded = [name for name in wanted if name not in initial]
    with torch.no_grad():
        for name in loaded:
            wanted[name].copy_(given[name])
    ignored = (*initial, *(name for name in everything if name not in kept))
    return WeightsReport(path.name, tuple(loaded), initial, ignored)


def read_tensors(path: Path) -> Tensors:
    """The tensors in a file, by name, without what a trainer saved around them.

    Pickles are read with ``weights_only``: a file that holds code is refused, never run.
    """
    if path.is_dir():
        raise DataError(f"'{path}' is a folder: give the file of weights in it, such as model.safetensors.")
    if not path.is_file():
        raise DataError(f"There is no file of weights at '{path}': check the path.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            check_tensor_header(path)
            return load_file(path, device="cpu")
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise _damaged_error(path) from error
    if path.suffix not in TORCH_SUFFIXES:
        known = ", ".join((".safetensors", *TORCH_SUFFIXES))
        raise BundleError(f"'{path}' does not have the suffix of a file of weights: {known}.")
    saved = _read_torch(path)
    while isinstance(saved, Mapping):  # the innermost table, under the keys that trainers use
        inner = [saved[name] for name in STATE_DICT_KEYS if isinstance(saved.get(name), Mapping)]
        if not inner:
            break
        saved = inner[0]
    if not isinstance(saved, Mapping) or not any(isinstance(value, Tensor) for value in saved.values()):
        raise BundleError(f"'{path}' holds no tensors by name: save the network's state_dict in it.")
    return {str(name): value for name, value in saved.items() if isinstance(value, Tensor)}


def _damaged_error(path: Path) -> BundleError:
    return BundleError(f"'{path}' is damaged or not a file of weights: download or copy it again.")


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about old formats that users still have
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower() or _calls_python(path):  # torch names the function
            raise BundleError(
                f"'{path}' was refused as unsafe: it holds Python code, not only tensors. Ask its author for "
                "a safetensors file, or for the state_dict alone."
            ) from error
        raise _damaged_error(path) from error
    except RuntimeError as error:
        if "TorchScript" in str(error):
            raise BundleError(
                f"'{path}' is a TorchScript program, not weights: ask its author for the state_dict."
            ) from error
        raise _damaged_error(path) from error
    except (EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _damaged_error(path) from error


def _calls_python(path: Path) -> bool:
    """Whether a bare pickle, in a protocol torch never writes, names functions; found without executing it."""
    try:
        with path.open("rb") as stream:
            return any(code.name in {"GLOBAL", "STACK_GLOBAL"} for code, *_ in pickletools.genops(stream))
    except ValueError:
        return False


def strip_prefixes(tensors: Tensors) -> Tensors:
    """The tensors without the prefixes of wrappers that all names share.

    >>> list(strip_prefixes({"module.model.conv1.weight": torch.ones(1)}))
    ['conv1.weight']
    """
    while tensors:
        shared = [p for p in WRAPPER_PREFIXES if all(name.startswith(p) for name in tensors)]
        if not shared:
            break
        tensors = {name.removeprefix(shared[0]): tensor for name, tensor in tensors.items()}
    return tensors


def select_network_tensors(tensors: Tensors) -> Tensors:
    """The network's tensors where the file is a bundle's; all tensors otherwise."""
    own = {name: t for name, t in tensors.items() if name.startswith("network.")}
    rest = [name for name in tensors if name not in own]
    if own and all(name.startswith(("preprocessing.", "temperature")) for name in rest):
        return strip_prefixes(own)
    return tensors


def _rename_keys(given: Tensors, network: Network, wanted: Tensors) -> Tensors:
    """The file's tensors under our names, its last layer under ``head``.

    ``network.key_prefixes`` are exchanged only where more names fit afterwards.
    """
    ours: Tensors = {}
    for name, tensor in given.items():
        there, here = next((pair for pair in network.key_prefixes if name.startswith(pair[0])), ("", ""))
        ours[here + name.removeprefix(there)] = tensor
    if len(ours.keys() & wanted.keys()) > len(given.keys() & wanted.keys()):
        given = ours
    if "head.weight" in given:
        return given
    found = [name for name in HEAD_NAMES if f"{name}.weight" in given and given[f"{name}.weight"].ndim == 2]
    found = [name for name in found if f"{name}.weight" not in network.state_dict()]
    if len(found) != 1:
        return given
    old = f"{found[0]}."
    return {(f"head.{n.removeprefix(old)}" if n.startswith(old) else n): t for n, t in given.items()}


def _check_fit(path: Path, given: Tensors, wanted: Tensors, skipped: tuple[str, ...]) -> None:
    """Raise BundleError, naming the first tensors at fault, unless names, shapes and values fit."""
    given = {name: tensor for name, tensor in given.items() if name not in skipped}
    misshapen = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in given
        if name in wanted and given[name].shape != wanted[name].shape
    ]
    faults = []
    for what, names in (
        ("missing", [name for name in wanted if name not in given and name not in skipped]),
        ("unexpected", [name for name in given if name not in wanted]),
        ("of another shape", misshapen),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            faults.append(f"{what}: {', '.join(names[:3])}{more}")
    if faults:
        raise BundleError(
            f"The weights in '{path}' belong to another network ({'; '.join(faults)}). "
            "Choose the model, channels and size they were trained with (--model timm:NAME for a file of timm's)."
        )
    for name, tensor in given.items():
        if not tensor.is_floating_point():
            raise BundleError(
                f"The tensor {name} in '{path}' holds {tensor.dtype} instead of floating-point numbers: "
                "use the weights from before quantisation."
            )
        if not tensor.isfinite().all():
            raise BundleError(
                f"The tensor {name} in '{path}' holds NaN or infinity, because that training diverged: "
                "use an earlier file."
            )
