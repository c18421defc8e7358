"""What every benchmark does with its figures: prints them, and keeps them with machine, date and command."""

import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sightline import runtime

RESULTS = Path(__file__).parent / "results"


def record(name: str, figures: dict[str, Any], out: Path | None = None) -> None:
    """Write ``out``, or ``results/<name>.json``; the machine is described, never named."""
    script = Path(sys.argv[0]).resolve()
    words = ["PATH" if "/" in word else word for word in sys.argv[1:]]
    content = {
        "command": f"python {script.parent.name}/{script.name} {' '.join(words)}".strip(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": runtime.environment(),
        "figures": figures,
    }
    out = out or RESULTS / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


def shared(argument: str | Path | None) -> Path:
    """The folder of the large datasets: the argument, else SIGHTLINE_DATA, else shared/data next to the project."""
    given = argument or os.environ.get("SIGHTLINE_DATA")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        sys.exit(f"The datasets are not in '{folder}': give their folder, or set SIGHTLINE_DATA to it.")
    return folder


class Notebook:
    """Measurements kept as they are made, one JSON object a line, so that a benchmark that was stopped goes on.

    Each is found again by all of its ``key``. Delete the file, or ask for ``fresh``, to measure anew.
    """

    def __init__(self, file: Path, *, fresh: bool = False):
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            file.unlink(missing_ok=True)
        self.lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        if self.lines:
            print(f"Going on from {len(self.lines)} measurements in {file} (--fresh measures anew).", flush=True)

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The latest measurement with this key, if one was made."""
        return next(reversed(list(self.all(**key))), None)

    def all(self, **key: Any) -> Iterator[dict[str, Any]]:
        """Every measurement whose key has these."""
        return (line for line in self.lines if all(line.get(name) == value for name, value in key.items()))

    def add(self, found: dict[str, Any], **key: Any) -> dict[str, Any]:
        """Keep a measurement."""
        line = {**key, **found}
        self.lines.append(line)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return line
