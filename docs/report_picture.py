"""Draws docs/pictures/report.png: the top of the report of the demo's run.

    sightline demo --out runs/demo
    python docs/report_picture.py runs/demo

Chromium draws the page; the environment variable CHROMIUM names its program where it is not called so.
"""

import os
import subprocess
import sys
from pathlib import Path

WIDTH, HEIGHT = 1000, 900
"""Pixels."""


def main() -> None:
    """The picture of the report of the run that the command line names."""
    page = Path(sys.argv[1]).resolve() / "report.html"
    target = Path(__file__).resolve().parent / "pictures" / "report.png"
    program = os.environ.get("CHROMIUM", "chromium")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    size = f"--window-size={WIDTH},{HEIGHT}"
    subprocess.run([program, *quiet, size, f"--screenshot={target}", page.as_uri()], check=True)


if __name__ == "__main__":
    main()
