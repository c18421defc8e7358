"""Device, threads, seeds, caches and the machine's facts: all global state, nowhere else."""

import hashlib
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version as _version
from pathlib import Path
from typing import Any

import platformdirs
import torch

from .errors import ChoiceError

DEVICES = ("auto", "cpu", "cuda", "mps")


def device(name: str = "auto") -> torch.device:
    """The device called ``name``; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises ChoiceError where the named device is unknown or absent.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    if name.partition(":")[0] not in DEVICES:
        raise ChoiceError(f"There is no device called '{name}'. Choose one of: {', '.join(DEVICES)}.")
    if (name.startswith("cuda") and not cuda) or (name.startswith("mps") and not mps):
        raise ChoiceError(f"This machine has no '{name}' device. Use --device auto or cpu.")
    return torch.device(name)


def seed(value: int) -> None:
    """Seed torch's global generators: initial weights and dropout draw from them."""
    torch.manual_seed(value)


def generator(seed: int, *counters: int) -> torch.Generator:
    """A fresh CPU generator that is a pure function of its arguments.

    Randomness that is addressed (seed, epoch, step) instead of consumed needs no saved state:
    a resumed run draws exactly what the uninterrupted one would have.
    """
    words = ",".join(str(word) for word in (seed, *counters))
    digest = hashlib.blake2b(words.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_dir() -> Path:
    """Where decoded stores and measurements live; ``SIGHTLINE_CACHE`` overrides the user's cache folder."""
    return Path(os.environ.get("SIGHTLINE_CACHE") or platformdirs.user_cache_dir("sightline"))


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes); 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def version() -> str:
    """The installed release of Sightline."""
    return _version("sightline")


def fastest(
    candidates: Mapping[str, Callable[[], None]], *, rounds: int = 3, margin: float = 1.1
) -> tuple[str, float]:
    """Time the candidates in turn; the name of the fastest and its seconds per call (median of ``rounds``).

    A later candidate must beat an earlier one by ``margin``, so that noise does not change what a
    machine chooses; one that is hopeless in its first call (4 times the best) is not called again.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for name, run in candidates.items():
        run()  # the first call compiles kernels and grows pools
        _seconds(run, times[name])
    hopeless = 4 * min(t[0] for t in times.values())
    for _ in range(rounds - 1):
        for name, run in candidates.items():
            if times[name][0] <= hopeless:
                _seconds(run, times[name])
    medians = {name: sorted(t)[len(t) // 2] for name, t in times.items()}
    chosen = next(iter(medians))
    for name, median in medians.items():
        if median * margin < medians[chosen]:
            chosen = name
    return chosen, medians[chosen]


def _seconds(run: Callable[[], None], times: list[float]) -> float:
    started = time.perf_counter()
    run()
    times.append(time.perf_counter() - started)
    return times[-1]


def environment() -> dict[str, Any]:
    """What a result depends on besides the recipe: versions and the machine."""
    return {
        "sightline": version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def processor() -> str:
    """The processor's name, as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
