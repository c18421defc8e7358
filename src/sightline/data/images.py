"""The old name of ``decode.py``, kept for scripts that import ``decode`` from here."""

from .decode import decode  # noqa: F401
