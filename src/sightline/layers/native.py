"""Kernels in C++, compiled once on the user's machine where it has a compiler; never a requirement.

The library lies in the cache under a hash of its source, the compiler and the processor, so a cache that was copied
from another machine is not used.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from .. import runtime

COMPILERS = ("g++", "clang++", "c++")
"""Tried in this order, after the one the environment variable CXX names."""

COMPILE_FLAGS = (
    "-std=c++17",
    "-O2",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-fPIC",
    "-w",
)
"""No ``-ffast-math``: a loss that is not a number must stay one. OpenMP is not linked: its symbols are those of the
runtime that torch has loaded, whose threads the kernels share."""

MAX_COMPILE_SECONDS = 180
"""A compiler that takes longer is ended."""


class KernelError(Exception):
    """Why there are no compiled kernels; training goes on without them."""


def library_path(source: Path) -> Path:
    """Where the compiled ``source`` lies, whether or not it is there yet. Raises KernelError without a compiler."""
    try:
        asked = subprocess.run(
            [_find_compiler(), "--version"], check=False, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(f"the C++ compiler does not start ({error})") from error
    facts = (source.read_bytes(), asked.stdout, COMPILE_FLAGS, _processor_facts())
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=12).hexdigest()
    return runtime.cache_dir() / "kernels" / f"{source.stem}-{digest}.so"


def load_library(source: Path) -> ctypes.CDLL:
    """The library of ``source``, compiled where the cache has none. Raises KernelError where that is impossible."""
    path = library_path(source)
    # a library runs as this process: one of another user is not loaded
    if path.exists() and (not hasattr(os, "getuid") or path.stat().st_uid in (os.getuid(), 0)):
        with suppress(OSError):  # damaged: made again
            return ctypes.CDLL(str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
            made = Path(folder) / path.name
            _compile(source, made)
            library = ctypes.CDLL(str(made))  # before it is kept: one that does not load is not kept
            made.replace(path)
    except OSError as error:
        raise KernelError(f"the compiled kernels could not be written or loaded ({error})") from error
    return library


def _compile(source: Path, made: Path) -> None:
    compiler, objects = _find_compiler(), made.with_suffix(".o")
    for words in (
        (*COMPILE_FLAGS, "-c", str(source), "-o", str(objects)),
        ("-shared", str(objects), "-o", str(made)),
    ):
        try:
            subprocess.run(
                [compiler, *words], check=True, capture_output=True, text=True, timeout=MAX_COMPILE_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise KernelError(f"{compiler} took more than {MAX_COMPILE_SECONDS} seconds") from error
        except subprocess.CalledProcessError as error:
            said = (error.stderr.strip() or f"exit code {error.returncode}").splitlines()[-1]
            raise KernelError(f"{compiler} failed: {said[:200]}") from error


def _find_compiler() -> str:
    for name in (os.environ.get("CXX"), *COMPILERS):
        if name and (found := shutil.which(name)):
            return found
    raise KernelError(f"this machine has no C++ compiler ({', '.join(COMPILERS)})")


@cache
def _processor_facts() -> tuple[str, ...]:
    """Name and instruction sets: ``-march=native`` depends on both."""
    facts = [platform.machine(), runtime.processor_name()]
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        facts += [line for line in lines if line.startswith(("flags", "Features"))][:1]
    return tuple(facts)
