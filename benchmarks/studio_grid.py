"""The studio's grid over 100,000 images: seconds and bytes of a page, and the memory of the server after many.

    python benchmarks/studio_grid.py [--images 100000] [--pages 1000] [--out FILE]

A folder of small PNG files in ten classes, served on this machine's loopback. Pages are drawn at random over all
pages, classes and orders, and the last page is every tenth of them. The growth of the server's resident set is
counted from the first page of the dataset, when its names and labels are in memory; opening it is reported alone.
"""

import argparse
import io
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import urllib3
from PIL import Image
from record import record

from sightline.studio.datasets import Datasets

CODE = "import sys; from sightline.cli import main; sys.exit(main())"
MAX_P95_SECONDS, MAX_GROWTH_MB = 0.3, 50.0


def main() -> None:
    """Make the images, start a studio, and read pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--pages", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        datasets = Datasets(site / "studio" / "data")
        place = datasets.reserve()
        place.mkdir(parents=True)
        write_images(place / "images.zip", asked.images)
        id = datasets.add(place / "images.zip", "many", place)
        with running_studio(site) as (address, pid):
            figures = measure(address, id, pid, asked)
    record("studio_grid", figures, asked.out)


def write_images(path: Path, count: int) -> None:
    """A zip of small pictures in ten classes."""
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(count):
            stream = io.BytesIO()
            Image.new("L", (28, 28), i % 256).save(stream, "png", compress_level=1)
            archive.writestr(f"class_{i % 10}/image_{i:06}.png", stream.getvalue())


def measure(address: str, id: str, pid: int, asked: argparse.Namespace) -> dict[str, object]:
    """Seconds and bytes of the pages, and the memory that they cost."""
    pool, home = urllib3.PoolManager(), address.split("/sign-in", maxsplit=1)[0]
    cookie = pool.request("GET", address).headers["set-cookie"].split(";")[0]
    headers = {"Cookie": cookie, "Accept-Encoding": "gzip"}
    grid = f"{home}/data/{id}"

    def fetch(query: str) -> tuple[float, int]:
        began = time.perf_counter()
        answer = pool.request("GET", grid + query, headers=headers, decode_content=False)
        assert answer.status == 200, answer.data
        return time.perf_counter() - began, len(answer.data)

    opening, _ = fetch("")
    draw, last, pages = random.Random(0), -(-asked.images // 200), []
    orders = ("name", "name", "newest")
    for query in ("?order=newest", "?class=class_3"):
        fetch(query)
    before = resident_mb(pid)
    for number in range(asked.pages):
        query = f"?order={draw.choice(orders)}&page={last if number % 10 == 0 else draw.randint(1, last)}"
        pages.append(fetch(query + (f"&class=class_{draw.randrange(10)}" if number % 3 == 2 else "")))
    seconds = [one for one, _ in pages]
    ends = [one for number, (one, _) in enumerate(pages) if number % 10 == 0]
    growth = resident_mb(pid) - before
    p95, p95_last = (statistics.quantiles(each, n=20)[-1] for each in (seconds, ends))
    return {
        "images": asked.images,
        "pages": asked.pages,
        "opening_seconds": round(opening, 3),
        "page_median_seconds": round(statistics.median(seconds), 4),
        "page_p95_seconds": round(p95, 4),
        "last_page_p95_seconds": round(p95_last, 4),
        "page_bytes": max(size for _, size in pages),
        "memory_growth_mb": round(growth, 1),
        "met": {"p95": max(p95, p95_last) <= MAX_P95_SECONDS, "memory": growth <= MAX_GROWTH_MB},
    }


@contextmanager
def running_studio(site: Path) -> Iterator[tuple[str, int]]:
    """``sightline studio SITE`` as a process: the address that signs in once, and its id."""
    words = [sys.executable, "-c", CODE, "studio", str(site), "--no-browser", "--json"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        yield json.loads(server.stdout.readline())["studio"], server.pid
    finally:
        server.terminate()
        server.communicate(timeout=30)


def resident_mb(pid: int) -> float:
    """Memory of a process in MB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
