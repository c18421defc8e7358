"""Images as callers give them: what is one picture, and the sentence for anything else."""

import io
import pathlib

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.data import decode, list_inputs, name_input, read_input
from sightline.errors import DataError, ImageError
from sightline.types import Geometry

COLOUR = np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8)
GREY = COLOUR[..., 0]


def pixels(given, channels=3):
    return decode(read_input(given), Geometry(size=(12, 9), channels=channels))


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "png")
    return stream.getvalue()


@pytest.mark.parametrize(
    "image", [GREY, COLOUR, png(COLOUR), "a.png", bytearray(b"x"), Image.fromarray(GREY), None, {}]
)
def test_one_picture_is_one_input(image):
    assert len(list(list_inputs(image))) == 1


def test_several_pictures_stay_several():
    assert len(list(list_inputs(np.stack([COLOUR, COLOUR])))) == 2
    assert list(list_inputs(np.array(["a.png", "b.png"]))) == ["a.png", "b.png"]
    assert len(list(list_inputs(iter([GREY, COLOUR, "a.png"])))) == 3


def test_arrays_files_streams_and_pillow_images_have_the_same_pixels(tmp_path):
    (tmp_path / "a.png").write_bytes(png(COLOUR))
    stream = io.BytesIO(png(COLOUR))
    stream.read()  # what has been written or read is read from its beginning
    given = [COLOUR, tmp_path / "a.png", stream, memoryview(png(COLOUR)), Image.fromarray(COLOUR)]
    with (tmp_path / "a.png").open("rb") as file, Image.open(tmp_path / "a.png") as image:
        assert name_input(file) == name_input(image) == str(tmp_path / "a.png")
        for one in [*given, file, image]:
            np.testing.assert_array_equal(pixels(one), COLOUR)
    for one in (GREY, GREY[..., None], Image.fromarray(GREY)):
        np.testing.assert_array_equal(pixels(one, 1)[..., 0], GREY)
    np.testing.assert_array_equal(pixels(GREY > 99, 1)[..., 0], (GREY > 99) * 255)
    np.testing.assert_array_equal(pixels(GREY.astype(">u2") * 257, 1)[..., 0], GREY)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I", "F"]
)
def test_pillow_images_of_every_mode_are_read(mode):
    source = Image.new("RGBA", (9, 12), "red") if mode == "RGBa" else Image.fromarray(COLOUR)
    assert pixels(source.convert(mode)).shape == (12, 9, 3)


def test_a_pillow_image_is_turned_upright_as_its_file_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(pixels(image), pixels(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (COLOUR / 255, "255 \\* array"),
        (COLOUR.transpose(2, 0, 1), "transpose"),
        (np.zeros((9, 12, 12), np.uint8), "as a list"),
        (COLOUR.astype(np.int64), "astype"),
        (np.zeros((0, 9, 3), np.uint8), "astype|not a picture"),
        (torch.zeros(3, 9, 9), "numpy"),
        (None, "give a path"),
        (7, "give a path"),
        ({"image": COLOUR}, "give a path"),
        ([COLOUR], "give a path"),
        (io.StringIO("a.png\nb.png\n"), "binary mode"),
    ],
)
def test_what_is_not_a_picture_gets_a_sentence(given, remedy):
    with pytest.raises(DataError, match=remedy) as caught:
        read_input(given)
    assert not isinstance(caught.value, ImageError)


def test_what_cannot_be_read_has_its_reason(tmp_path):
    closed = io.BytesIO(png(COLOUR))
    closed.close()
    (tmp_path / "cut.png").write_bytes(png(COLOUR)[:200])
    with Image.open(tmp_path / "cut.png") as cut:
        for given in (tmp_path / "absent.png", "a\0b.png", closed, cut):
            with pytest.raises(ImageError, match=r"\w"):
                read_input(given)


def test_a_path_may_be_of_any_kind(tmp_path):
    (tmp_path / "a.png").write_bytes(png(GREY))
    assert read_input(str(tmp_path / "a.png")) == read_input(pathlib.PurePath(tmp_path / "a.png"))
