"""What every benchmark does with its figures: prints them, and keeps them with machine, date and command."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sightline import runtime

RESULTS = Path(__file__).parent / "results"


def record(name: str, figures: dict[str, Any]) -> None:
    """Write ``results/<name>.json``; the machine is described, never named."""
    content = {
        "command": f"python benchmarks/{name}.py {' '.join(w for w in sys.argv[1:] if '/' not in w)}".strip(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": runtime.environment(),
        "figures": figures,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


def shared(argument: str | None) -> Path:
    """The folder of the large datasets: given, or beside the project."""
    folder = Path(argument) if argument else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        sys.exit(f"The datasets are not in '{folder}': give their folder as the first argument.")
    return folder
