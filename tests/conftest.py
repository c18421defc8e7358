"""What every test may ask for."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

SHARED = Path(__file__).parents[2] / "shared"


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
    """Tests never touch the user's cache."""
    before = os.environ.get("SIGHTLINE_CACHE")
    os.environ["SIGHTLINE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["SIGHTLINE_CACHE"]
    else:
        os.environ["SIGHTLINE_CACHE"] = before


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
