"""The command line: ``sightline VERB ...``."""

import gc
import os
import sys
from collections.abc import Sequence

from ..errors import SightlineError

GC_THRESHOLD = 100_000
"""New objects that trigger a garbage collection. Imports create many objects and no garbage, and collections would
delay every command."""

SPIN_COUNT = "10000"
"""Rounds for which a thread of libgomp spins before it sleeps. By its default of 300,000 (milliseconds) two threads
that share a core with other programs wait for each other most of the time."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 done, 2 user error, 3 a requirement is missed, 130 interrupted.

    An error is one sentence on stderr; ``--debug`` also shows its traceback.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # read when torch loads the library
    gc.set_threshold(max(GC_THRESHOLD, gc.get_threshold()[0]))
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    from cyclopts import CycloptsError, UnknownCommandError, UnusedCliTokensError

    from .app import app, hide_keys, rename_old_flags
    from .output import escape_in_streams, owns_process

    owns_process.set(argv is None)
    escape_in_streams(sys.stdout, sys.stderr)
    words = ["--help" if word == "--help-all" else word for word in words if word != "--debug"]
    words = hide_keys(rename_old_flags(words))

    try:
        app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        text, verb = " ".join(str(error).split()), ""
        if isinstance(error, UnusedCliTokensError):
            text = f"This command takes no further argument, got {' '.join(map(repr, error.unused_tokens or ()))}."
        if not isinstance(error, UnknownCommandError):
            verb = f"{words[0]} "
        return _print_error(f"{text} See: sightline {verb}--help", 2)
    except SightlineError as error:
        if debug:
            raise
        return _print_error(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _print_error("Interrupted.", 130)
    except BrokenPipeError:
        sys.stdout = None  # the reader of our output has gone: not an error
        return 0
    except OSError as error:
        if debug or error.filename is None:
            raise
        return _print_error(f"'{error.filename}': {(error.strerror or str(error)).lower()}.", 2)
    if argv is None:
        gc.freeze()  # the process ends: its last collections would take 0.8 s of 6 after a short training
    return 0


def _print_error(text: str, code: int) -> int:
    print(f"sightline: {text}", file=sys.stderr)  # noqa: T201
    return code
