"""How long the page of a run takes: from what is saved, and with everything measured that is missing.

    python benchmarks/report.py RUN [--budget 4m]

RUN is copied first, without what was collected before, and stays as it is. ``sightline report`` three times, from
command to page; then ``sightline report --collect`` with the budget. The page's size is what a reader downloads.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import record

COLLECTED = ("calibration.json", "corruptions.json", "robustness.json", "explanations")
"""What an earlier --collect left in a run: not copied, so that it is measured again."""


def main() -> None:
    """Render, collect, say it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--budget", default="4m")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        shutil.copytree(asked.run, run, ignore=shutil.ignore_patterns(*COLLECTED))
        rendered = [taken(run) for _ in range(3)]
        plain = megabytes(run)
        collected = taken(run, "--collect", "--budget", asked.budget)
        figures = {
            "rendered_seconds": rendered,
            "rendered_seconds_median": statistics.median(rendered),
            "page_mb": plain,
            "budget": asked.budget,
            "collected_seconds": collected,
            "collected_page_mb": megabytes(run),
            "collected": [name for name in COLLECTED if (run / name).exists()],
        }
    record("report", figures)


def taken(run: Path, *words: str) -> float:
    """Seconds of one ``sightline report``, from command to page."""
    start = time.perf_counter()
    call = "import sys; from sightline.cli import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", call, "report", str(run), *words], check=True, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - start, 1)


def megabytes(run: Path) -> float:
    """Of the page, in 10^6 bytes."""
    return round((run / "report.html").stat().st_size / 1e6, 2)


if __name__ == "__main__":
    main()
