"""Where labelled images lie: folders, archives, tables, arrays and names become a ``Source``."""

from .builtin import BUILTIN
from .published import PUBLISHED
from .source import Source, find

__all__ = ["BUILTIN", "PUBLISHED", "Source", "find"]
