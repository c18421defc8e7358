"""What every test may ask for."""

import json
import os
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
DURATIONS = Path(__file__).parent / "durations.json"
"""Seconds of every test that took more than one, written by ``make durations``."""
MAX_QUICK_SECONDS = 2.0
"""Tests that took longer are left to ``make test``."""


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="only the fast tests of the stages that changed")
    parser.addoption("--record-durations", action="store_true", help=f"write {DURATIONS.name}")


@cache
def changed_places() -> frozenset[str]:
    """Stages and files that differ from the last commit, or that the last commit changed where none do."""

    def names(*words):
        found = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return [line.split()[-1] for line in found.stdout.splitlines()]

    parts = [Path(file).parts for file in names("status", "--porcelain") or names("diff", "--name-only", "HEAD~1")]
    places = {part[2] for part in parts if part[:2] == ("src", "sightline")}
    return frozenset(places | {part[1] for part in parts if part[0] == "tests" and len(part) > 1})


def pytest_ignore_collect(collection_path, config):
    """For --quick: only what changed is imported, and the architecture."""
    if not config.getoption("--quick") or not collection_path.is_relative_to(ROOT):
        return None
    parts = collection_path.relative_to(ROOT).parts
    level = 2 if parts[:1] == ("src",) else 1
    if len(parts) <= level:
        return None
    ground = any((ROOT / "src" / "sightline" / name).is_file() for name in changed_places())  # of every stage
    return None if ground or parts[level] in {*changed_places(), "test_architecture.py"} else True


def pytest_collection_modifyitems(config, items):
    """For --quick: the tests that are recorded as fast."""
    if not config.getoption("--quick"):
        return
    slow = json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.exists() else {}
    kept = [item for item in items if slow.get(item.nodeid, 0.0) <= MAX_QUICK_SECONDS]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


class DurationRecorder:
    """Adds up what setup, call and teardown of each test took."""

    def __init__(self):
        self.seconds = Counter()

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self):
        slow = {name: round(took, 1) for name, took in self.seconds.most_common() if took > 1}
        DURATIONS.write_text(json.dumps(slow, indent=1) + "\n", encoding="utf-8")


def pytest_configure(config):
    if config.getoption("--record-durations") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(DurationRecorder())


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the large datasets, or a skip that says how to get the test to run."""
    folder = Path(os.environ.get("SIGHTLINE_DATA", SHARED / "data"))
    if not folder.is_dir():
        pytest.skip("the large datasets are absent: set SIGHTLINE_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """The folder of third-party weights, or a skip."""
    folder = Path(os.environ.get("SIGHTLINE_WEIGHTS", SHARED / "weights"))
    if not folder.is_dir():
        pytest.skip("the third-party weights are absent: set SIGHTLINE_WEIGHTS to their folder")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Tests never touch the user's cache. Kernels are compiled once for all workers of xdist."""
    before, cache = os.environ.get("SIGHTLINE_CACHE"), tmp_path_factory.mktemp("cache")
    if "PYTEST_XDIST_WORKER" in os.environ:
        common = tmp_path_factory.getbasetemp().parent / "kernels"
        common.mkdir(mode=0o700, exist_ok=True)
        (cache / "kernels").symlink_to(common)
    os.environ["SIGHTLINE_CACHE"] = str(cache)
    yield
    if before is None:
        del os.environ["SIGHTLINE_CACHE"]
    else:
        os.environ["SIGHTLINE_CACHE"] = before


@pytest.fixture(autouse=True, scope="session")
def _brief_measurements():
    """Speeds are measured by a few calls: tests read that one is stated, never its value."""
    from sightline.compression import comparison
    from sightline.evaluation import efficiency
    from sightline.formats import parity
    from sightline.training import defaults

    with pytest.MonkeyPatch.context() as patch:
        for module in (efficiency, parity):
            patch.setattr(module, "MIN_LATENCY_REPEATS", 2)
            patch.setattr(module, "MAX_LATENCY_REPEATS", 3)
        patch.setattr(comparison, "MIN_TIMING_ROUNDS", 6)  # the fewest with an interval
        patch.setattr(comparison, "MAX_TIMING_ROUNDS", 8)
        patch.setattr(defaults, "AUTOTUNE_STEPS", 1)
        yield


@pytest.fixture(scope="session")
def kernels(_own_cache):
    """The compiled kernels, or a skip that says why there are none."""
    from filelock import FileLock

    from sightline.layers import open_kernels
    from sightline.runtime import cache_dir

    folder = (cache_dir() / "kernels").resolve()
    with FileLock(folder.with_suffix(".lock")):  # compiling takes longer than any test
        library, why = open_kernels()
    return library or pytest.skip(why)


@pytest.fixture
def undrawn(monkeypatch):
    """Diagrams of a report are blank: for commands whose pages are tested elsewhere."""
    from PIL import Image

    monkeypatch.setattr("sightline.pictures.plots.render_figure", lambda _: Image.new("RGB", (9, 9)))


@pytest.fixture
def cli(capsys):
    """Run a command in this process: its exit code, stdout and stderr."""

    from sightline.cli import main

    def run(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run
