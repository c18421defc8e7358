"""Where labelled images lie: folders, archives, tables, arrays and names become a ``Source``."""

from .builtin import BUILTIN
from .source import Source, find

__all__ = ["BUILTIN", "Source", "find"]
