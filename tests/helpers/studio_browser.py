"""A studio in a process of its own, and a headless browser that watches what it must not do."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest

CODE = "import sys; from sightline.cli import main; sys.exit(main())"
SEVERE = ("serious", "critical")


@contextmanager
def running_studio(site):
    """``sightline studio SITE`` as a process: its address, which signs in once."""
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, "studio", str(site), "--no-browser", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        yield json.loads(process.stdout.readline())["studio"]
    finally:
        process.terminate()
        process.communicate(timeout=30)


@contextmanager
def open_browser(*words):
    """A headless Chromium with these further flags, or a skip where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    if (chromium := shutil.which("chromium") or shutil.which("chromium-browser")) is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", *words])
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A tab that notes errors of the console and requests that leave the machine."""

    def __init__(self, context, address):
        self.home = address.split("/studio")[0]
        self.page, self.faults = context.new_page(), []
        self.page.on("console", lambda one: one.type == "error" and self.faults.append(one.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", self._check_request)

    def _check_request(self, request):
        if not request.url.startswith((self.home + "/", "data:", "blob:")):
            self.faults.append(f"{request.url} leaves the machine")

    def go(self, path):
        self.page.goto(self.home + path)

    def violations(self):
        """Serious and critical findings of axe on this page: its rule and the place."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [(one["id"], one["nodes"][0]["target"], self.page.url) for one in found if one["impact"] in SEVERE]
