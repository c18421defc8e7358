"""The studio's first page: when it can be used, its bytes, and the memory of the server after many pages.

    python benchmarks/studio.py [--rounds 5] [--pages 1000] [--out FILE]

A site with two releases on this machine's loopback, the server warm. A page can be used when its scripts have run
(``load`` in headless Chromium); bytes are those that cross the wire, compressed. Memory is the growth of the
server's resident set over pages in turn: home, review, live, jobs.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from record import record
from studio_grid import resident_mb, running_studio

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.live_server import site_of_two
from helpers.studio_browser import open_browser

PAGES = ("", "/review", "/live", "/jobs")
MAX_SECONDS, MAX_BYTES, MAX_GROWTH_MB = 1.0, 60_000, 50.0


def main() -> None:
    """Start a studio, open it, and read pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pages", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        site = shutil.copytree(site_of_two(), Path(folder) / "site")
        with running_studio(site) as (address, pid):
            home = address.split("/sign-in")[0]
            with open_browser() as browser:
                signed_in = browser.new_context()
                signed_in.new_page().goto(address)
                signed_in.pages[0].wait_for_url("**/studio")
                seconds, sizes = [], []
                for _ in range(asked.rounds + 1):  # the first one warms the server
                    context = browser.new_context(storage_state=signed_in.storage_state())
                    page, received = context.new_page(), []
                    page.on("response", lambda one, to=received: to.append(one))
                    began = time.perf_counter()
                    page.goto(home, wait_until="load")
                    seconds.append(time.perf_counter() - began)
                    sizes.append(sum(int(one.header_value("content-length") or 0) for one in received))
                    context.close()
                client = signed_in.request
                before = None
                for number in range(asked.pages):
                    if number == 20:  # what every page needs is loaded
                        before = resident_mb(pid)
                    assert client.get(home + PAGES[number % len(PAGES)]).ok
                growth = resident_mb(pid) - (before or 0.0)
    figures = {
        "rounds": asked.rounds,
        "first_page_seconds": round(statistics.median(seconds[1:]), 3),
        "first_page_bytes": max(sizes),
        "pages": asked.pages,
        "memory_growth_mb": round(growth, 1),
    }
    figures["met"] = {
        "seconds": figures["first_page_seconds"] <= MAX_SECONDS,
        "bytes": figures["first_page_bytes"] <= MAX_BYTES,
        "memory": figures["memory_growth_mb"] <= MAX_GROWTH_MB,
    }
    record("studio", figures, asked.out)


if __name__ == "__main__":
    main()
