"""Device, threads, random numbers, caches and facts about the machine: all global state is here."""

import ctypes
import hashlib
import math
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version as _version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
from jaxtyping import Int64
from numpy import ndarray

from .errors import ChoiceError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")

EMULATED = 2.0
"""Time of a product in bfloat16, in times that in float32, from which bfloat16 counts as emulated (``has_bfloat16``).

A processor that multiplies it takes less time than in float32; one that emulates it takes several times as long.
"""

MAIN_GUARD = (
    "Each of several processes runs the script again: call this under `if __name__ == '__main__':`, in a script that "
    "is a file (not from stdin)."
)
"""What a script must do that starts several processes."""


def check_main_guard() -> None:
    """End this process with a sentence where it is a new one that runs its parent's script once more."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # so until it has imported the script
        raise SystemExit(f"sightline: {MAIN_GUARD}")


def process_began() -> float:
    """``time.monotonic()`` at the start of this process; now where the system does not say."""
    with suppress(OSError, ValueError, IndexError, AttributeError):  # 19 fields after the name: proc(5)
        ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return time.monotonic() - max(0.0, age)
    return time.monotonic()


LOAD_SECONDS = 0.03
"""Seconds of computing by which ``measure_load`` goes: several turns of the system's scheduler."""


def measure_load() -> float:
    """How many times as long as on a quiet machine a computing thread takes now: 1 where no other has its core."""
    began, worked = time.perf_counter(), time.thread_time()
    while time.thread_time() - worked < LOAD_SECONDS:
        pass
    return max(1.0, (time.perf_counter() - began) / (time.thread_time() - worked))


def resolve_device(name: str = "auto") -> "torch.device":
    """The device called ``name``; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises ChoiceError where the named device is unknown or absent.
    """
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    kind, _, number = name.partition(":")
    if kind not in DEVICES or (number and (kind != "cuda" or not number.isdigit())):
        raise ChoiceError(f"There is no device called '{name}'. Choose one of: {', '.join(DEVICES)}.")
    if number and int(number) >= torch.cuda.device_count():
        raise ChoiceError(f"This machine has no '{name}' device, but {torch.cuda.device_count()} of that kind.")
    if (name.startswith("cuda") and not cuda) or (name.startswith("mps") and not mps):
        raise ChoiceError(f"This machine has no '{name}' device. Use --device auto or cpu.")
    return torch.device(name)


def seed_torch(value: int) -> None:
    """Seed torch's global generators, from which initial weights and dropout are drawn."""
    import torch

    torch.manual_seed(value)


def get_rng_state() -> dict[str, Any]:
    """The states of torch's global generators, on the CPU and on every CUDA device."""
    import torch

    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restore the states that ``get_rng_state`` returned."""
    import torch

    torch.set_rng_state(state["cpu"].cpu())
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])


def make_generator(seed: int, *counters: int) -> "torch.Generator":
    """A fresh CPU generator that is a pure function of its arguments.

    Numbers drawn by address (seed, epoch, step) need no saved state: a resumed run draws what an uninterrupted one
    would have drawn.
    """
    import torch

    words = ",".join(str(word) for word in (seed, *counters))
    digest = hashlib.blake2b(words.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def permutation(count: int, seed: int, *counters: int) -> Int64[ndarray, " N"]:
    """A permutation of 0 to count - 1 that is a pure function of the arguments."""
    import torch

    return torch.randperm(count, generator=make_generator(seed, *counters)).numpy()


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count() -> int:
    """Threads for one operator: those of torch; before torch is imported, what it would take, without its import."""
    if "torch" in sys.modules:
        import torch

        return min(cpu_count(), torch.get_num_threads())
    word = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(cpu_count(), int(word)) if word.isdecimal() and int(word) else cpu_count()


def use_one_thread() -> None:
    """Make this thread run torch's operators on one core."""
    import torch

    torch.get_num_threads()  # torch gives a thread the global number at its first question, over what was set before
    torch.set_num_threads(1)


@contextmanager
def single_threaded_pool(count: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Threads, by default one a core, whose torch operators run on one core each."""
    import torch

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(count or cpu_count(), "single", use_one_thread) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # what an interrupted caller will not ask for
            torch.set_num_threads(threads)  # a thread's own setting becomes the default of later threads


def cache_dir() -> Path:
    """The folder of decoded images and measurements; ``SIGHTLINE_CACHE`` overrides the user's cache folder."""
    return Path(os.environ.get("SIGHTLINE_CACHE") or platformdirs.user_cache_dir("sightline"))


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Within this context the C library keeps freed memory for the next step instead of returning it at once.

    By default every large tensor gets new pages that the system must clear: up to a quarter of the time of a small
    network's step (``benchmarks/memory.py``). It has an effect on Linux with glibc alone.
    """
    library = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if library is None or not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, 1 << 30)
    library.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, 32 << 20)  # as far as glibc itself would have raised them by now
        library.mallopt(_TRIM_THRESHOLD, 64 << 20)
        library.malloc_trim(0)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes); 0 where the system does not report it."""
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def available_memory() -> int | None:
    """Bytes of memory that this process may still use, as Linux reports them; None elsewhere."""
    found: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    with suppress(OSError, ValueError, StopIteration):  # a container's own limit; its file cache can be dropped
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        found.append(limit - used + next(int(line.split()[1]) for line in lines if line.startswith("file ")))
    return min(found, default=None)


def version() -> str:
    """The installed release of Sightline."""
    return _version("sightline")


def time_interleaved(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    seconds: float = math.inf,
    give_up: float = math.inf,
) -> dict[str, list[float]]:
    """Seconds of each candidate in each of ``rounds`` interleaved rounds, after one untimed call of each.

    No call begins after ``seconds``, once the first candidate was timed: those that were not have no times. A candidate
    whose first timed call takes ``give_up`` times the fastest one's is not called again.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    ends, (first, *_) = time.perf_counter() + seconds, candidates

    def is_over() -> bool:
        return bool(times[first]) and time.perf_counter() > ends

    warm = []
    for name, run in candidates.items():
        if warm and time.perf_counter() > ends:
            break
        run()  # the first call compiles kernels and grows pools
        warm.append(name)
    for done in range(rounds):
        fastest = min((each[0] for each in times.values() if each), default=0.0)
        for name in warm:
            if is_over():
                return times
            if done and times[name][0] > give_up * fastest:
                continue
            started = time.perf_counter()
            candidates[name]()
            times[name].append(time.perf_counter() - started)
    return times


def environment() -> dict[str, Any]:
    """Versions and machine, on which a result depends besides the recipe."""
    import torch

    return {
        "sightline": version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": processor_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def has_vnni() -> bool | None:
    """Whether the processor multiplies and adds 8-bit numbers in 32 bits; None where the system does not tell.

    An x86 processor without these instructions adds pairs of products in 16 bits, which overflow.
    """
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not cpuinfo.exists():
        return None
    return "vnni" in cpuinfo.read_text()


def has_bfloat16(device: str = "cpu") -> bool:
    """Whether a device of this kind multiplies bfloat16 itself, instead of emulating it in many steps.

    An x86 processor that says so is tried: a virtual machine, or a setting of oneDNN, may withhold what it promises.
    """
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    if device != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    able = torch.cpu.get_capabilities()
    if able.get("architecture") != "x86_64":  # oneDNN emulates it on older x86 processors, and only there
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(able.get("avx512_bf16") or able.get("amx_bf16")) and _multiplies_bfloat16()


@cache
def _multiplies_bfloat16() -> bool:
    """Whether a product in bfloat16 takes at most ``EMULATED`` times as long as in float32; some milliseconds."""
    import torch

    factors = torch.ones(256, 256)
    half = factors.bfloat16()
    times = time_interleaved({"float32": lambda: factors @ factors, "bfloat16": lambda: half @ half}, 5)
    bfloat16, float32 = min(times["bfloat16"]), min(times["float32"])
    if bfloat16 <= EMULATED * float32:
        return True
    print(  # noqa: T201 (progress.py, which prints for others, needs this file)
        "This processor says that it multiplies bfloat16, but a product takes "
        f"{bfloat16 / float32:.0f} times as long as in float32: float32 is used.",
        file=sys.stderr,
        flush=True,
    )
    return False


def processor_name() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
