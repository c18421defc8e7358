"""Bundles whose safetensors lie: one sentence each, before memory is taken."""

import json
import shutil
import struct

import pytest

from helpers.malformed_tensors import malformed_tensors
from sightline.classifier import Classifier
from sightline.errors import BundleError
from sightline.files import checksum
from sightline.models import build, parse_architecture
from sightline.models.bundle import MAX_TENSOR_HEADER_BYTES, Memory, read_tensor_shapes
from sightline.models.weights import read_tensors
from sightline.preprocessing import Preprocessing
from sightline.types import Geometry

KINDS = 26


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    plan = parse_architecture("mlp", classes=2, channels=1, size=(8, 8))
    geometry = Geometry(size=(8, 8), channels=1)
    made = Classifier(Preprocessing(), build(plan), architecture=plan, classes=("a", "b"), geometry=geometry)
    return made.save(tmp_path_factory.mktemp("hostile") / "bundle")


@pytest.fixture
def spoil(saved, tmp_path):
    """Replace the tensors of a copy of the bundle, and put the checksum right, as a stranger would."""
    folder = shutil.copytree(saved, tmp_path / "b")

    def replace(data):
        (folder / "model.safetensors").write_bytes(data)
        config = json.loads((folder / "config.json").read_text())
        config["files"]["model.safetensors"] = checksum(folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return replace


@pytest.mark.parametrize("number", range(KINDS))
def test_tensors_that_lie_are_refused_in_one_sentence(saved, spoil, number):
    cases = list(malformed_tensors((saved / "model.safetensors").read_bytes()))
    assert len(cases) == KINDS
    what, data = cases[number]
    with pytest.raises(BundleError) as refused:
        Classifier.load(spoil(data))
    said = str(refused.value)
    assert "model.safetensors" in said or "impossible values" in said, what
    assert "\n" not in said, what
    assert len(said) < 2000, what


def test_the_whole_file_loads(saved, spoil):
    """The check of the cases above refuses what lies, and not all."""
    data = (saved / "model.safetensors").read_bytes()
    assert Classifier.load(spoil(data)).classes == Classifier.load(saved).classes


@pytest.mark.parametrize("place", ["bundle", "memory", "weights"])
def test_a_header_of_100_mb_is_refused_unread(saved, tmp_path, place):
    """The library itself would read it: its parser then takes a multiple of it in memory."""
    folder = shutil.copytree(saved, tmp_path / "b")
    (folder / "memory").mkdir()
    file = {
        "bundle": folder / "model.safetensors",
        "memory": folder / "memory" / "fisher.safetensors",
        "weights": tmp_path / "w.safetensors",
    }[place]
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", 99_000_000) + b"{}")
        stream.truncate(99_000_008)
    read = {
        "bundle": lambda: read_tensor_shapes(folder),
        "memory": lambda: Memory.load(folder / "memory"),
        "weights": lambda: read_tensors(file),
    }[place]
    with pytest.raises(BundleError) as refused:
        read()
    whole = f"{refused.value} {refused.value.__cause__}"
    assert f"header of 99,000,000 bytes is larger than {MAX_TENSOR_HEADER_BYTES:,}" in whole
