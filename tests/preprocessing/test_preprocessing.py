"""Statistics against numpy's, exactly; rebuilding; and what must be refused."""

import json

import numpy as np
import pytest
import torch

from sightline.errors import BundleError, ChoiceError, DataError
from sightline.preprocessing import (
    CHANNEL_STATISTICS,
    NORMALISATIONS,
    PREPROCESSING_STEPS,
    STD_FLOOR,
    BitDepthFilter,
    ContrastNormalise,
    JpegFilter,
    MedianFilter,
    NoiseFilter,
    Normalise,
    Preprocessing,
    check_normalisation,
    fit_preprocessing,
    measure_channels,
)

EXAMPLES = {
    "normalise": lambda: Normalise((0.1, 0.2, 0.3), (1 / 3, 0.7, 1e-3)),
    "contrast": lambda: ContrastNormalise(0.02),
    "zca": lambda: fit_preprocessing(random_images(40, 4, 4), "zca:eps=0.01:rank=7", 3).steps[0],
    "median": lambda: MedianFilter(3),
    "jpeg": lambda: JpegFilter(60),
    "bits": lambda: BitDepthFilter(3),
    "noise": lambda: NoiseFilter(0.2, "uniform"),
}


def random_images(count=50, height=9, width=7, channels=3, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_fitted_equals_numpy(channels):
    images = random_images(channels=channels) // (np.arange(channels, dtype=np.uint8) + 1)
    scaled = images.astype(np.float64) / 255
    mean, std = measure_channels(images)
    assert np.allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-13)
    assert np.allclose(std, scaled.std((0, 1, 2)), rtol=1e-12)


def test_streaming_in_chunks_loses_nothing(monkeypatch):
    images = random_images(1201, 32, 32)
    asked = []

    class Watched:
        def __len__(self):
            return len(images)

        def __getitem__(self, rows):
            asked.append(rows)
            return images[rows]

    mean, std = measure_channels(Watched())
    assert len(asked) > 3, "the images were read in one piece"
    scaled = images / 255
    assert np.allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    assert np.allclose(std, scaled.std((0, 1, 2)), rtol=1e-12)


def test_fitted_gives_zero_mean_and_unit_std():
    images = random_images(channels=3)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    seen = fit_preprocessing(images, "fitted", 3)(pixels)
    assert torch.allclose(seen.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(seen.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_constant_channels_are_finite(value):
    images = np.full((5, 4, 4, 1), value, np.uint8)
    mean, std = measure_channels(images)
    assert mean[0] == pytest.approx(value / 255)
    assert std == (STD_FLOOR,)
    seen = fit_preprocessing(images, "fitted", 1)(torch.full((1, 1, 4, 4), value / 255))
    assert seen.abs().max() < 1e-4


def test_bright_images_lose_no_digits():
    images = np.full((200, 64, 64, 1), 254, np.uint8)
    images[:, ::2] = 255
    assert measure_channels(images)[1][0] == pytest.approx(max(0.5 / 255, STD_FLOOR), rel=1e-12)
    images[:, ::2] = 250
    assert measure_channels(images)[1][0] == pytest.approx(2 / 255, rel=1e-12)


def test_nothing_to_measure():
    with pytest.raises(DataError, match="no training images"):
        fit_preprocessing(random_images(0), "fitted", 3)


@pytest.mark.parametrize("how", CHANNEL_STATISTICS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_named_statistics(how, channels, layout):
    pixels = torch.rand(4, channels, 5, 6).contiguous(memory_format=layout)
    before = pixels.clone()
    seen = fit_preprocessing(random_images(1), how, channels)(pixels)
    assert seen.shape == pixels.shape
    assert seen.is_contiguous(memory_format=layout)
    assert torch.equal(pixels, before)
    mean, std = CHANNEL_STATISTICS[how]
    if not mean:
        assert torch.equal(seen, pixels)
    elif len(mean) in (1, channels):
        plain = (pixels.numpy() - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
        assert np.allclose(seen.numpy(), plain, atol=1e-5)


def test_imagenet_on_grey_is_the_luminance_of_its_mean():
    rgb = torch.tensor(CHANNEL_STATISTICS["imagenet"][0]).view(1, 3, 1, 1)
    grey = (rgb * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    assert fit_preprocessing(random_images(1), "imagenet", 1)(grey).abs().max() < 1e-6


@pytest.mark.parametrize(("name", "file"), [("cifar10", "cifar10_jpg.zip"), ("mnist", "mnist_png.zip")])
def test_named_statistics_are_those_of_the_data(name, file, shared_data):
    """On every fiftieth training image, so within sampling error (JPEG moves CIFAR a little)."""
    import io
    import zipfile

    from PIL import Image

    with zipfile.ZipFile(shared_data / file) as archive:
        members = [m for m in archive.namelist() if "train" in m and not m.endswith("/")][::50]
        images = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(m)))) for m in members])
    mean, std = measure_channels(images[..., None] if images.ndim == 3 else images)
    assert np.allclose(mean, CHANNEL_STATISTICS[name][0], atol=0.012)
    assert np.allclose(std, CHANNEL_STATISTICS[name][1], atol=0.012)


def test_unknown_name_is_suggested():
    with pytest.raises(ChoiceError, match="Did you mean 'imagenet'"):
        fit_preprocessing(random_images(1), "imagnet", 3)
    with pytest.raises(ChoiceError, match="Did you mean 'fitted'"):
        fit_preprocessing(random_images(1), "fited", 3)


@pytest.mark.parametrize(
    "how", ["gcn", "gcn:floor=0.05", "zca", "zca:0.01:rank=3", "gcn+zca:eps=1e+1", *CHANNEL_STATISTICS]
)
def test_normalisations_are_checked_and_fitted(how):
    check_normalisation(how)
    seen = fit_preprocessing(random_images(12, 4, 4), how, 3)(torch.rand(5, 3, 4, 4))
    assert seen.isfinite().all()
    assert seen.shape == (5, 3, 4, 4)


@pytest.mark.parametrize(
    ("how", "hint"),
    [
        ("zcaa", "Did you mean 'zca'"),
        ("gcn+zcaa", "Did you mean 'zca'"),
        ("gcn+", "no normalisation called ''"),
        ("zca:eps=0", "eps must be a number above 0, not 0"),
        ("zca:eps=-1", "eps must be a number above 0"),
        ("zca:rank=0", "rank must be a whole number of at least 1"),
        ("zca:rank=1.5", "rank must be a whole number of at least 1"),
        ("gcn:floor=low", "floor must be a number above 0, not 'low'"),
        ("imagenet:3", "imagenet:3"),
        ("zca:epsilon=1", "epsilon"),
    ],
)
def test_impossible_words_are_refused_without_images(how, hint):
    with pytest.raises(ChoiceError, match="normalisation") as caught:
        check_normalisation(how)
    assert hint in str(caught.value)


def test_every_normalisation_has_a_plan_of_its_own():
    assert {"fitted", "gcn", "zca", *CHANNEL_STATISTICS} == NORMALISATIONS.keys()
    assert len({repr(make()) for make in NORMALISATIONS.values()}) == len(NORMALISATIONS)


# Global contrast normalisation.


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_contrast_equals_numpy(channels, layout):
    pixels = torch.rand(6, channels, 8, 9).contiguous(memory_format=layout)
    pixels[1] = 0.5 + 0.001 * pixels[1]
    before = pixels.clone()
    rows = pixels.flatten(1).double().numpy()
    spread = np.maximum(rows.std(1, keepdims=True), 0.01)
    assert spread[1] == 0.01, "the floor is at work"
    plain = (rows - rows.mean(1, keepdims=True)) / spread
    seen = ContrastNormalise(0.01)(pixels)
    assert np.allclose(seen.flatten(1).numpy(), plain, atol=1e-4)
    assert seen.is_contiguous(memory_format=layout)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("value", [0.0, 77 / 255, 1.0])
def test_a_constant_image_becomes_zero_with_a_finite_gradient(value):
    pixels = torch.full((2, 3, 5, 5), value, requires_grad=True)
    seen = ContrastNormalise()(pixels)
    seen[:, :, 0].sum().backward()
    assert seen.abs().max() < 1e-4
    assert pixels.grad is not None
    assert pixels.grad.isfinite().all()
    assert pixels.grad.abs().max() > 1


def test_contrast_normalisation_ignores_brightness_and_contrast():
    pixels = torch.rand(4, 3, 8, 8)
    assert torch.allclose(ContrastNormalise()(0.2 + 0.5 * pixels), ContrastNormalise()(pixels), atol=1e-4)


def test_each_step_is_fitted_after_the_ones_before():
    images = random_images(60, 6, 6) // 2
    both = fit_preprocessing(images, "gcn+fitted", 3)
    seen = both(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    assert torch.allclose(seen.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(seen.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)
    assert not np.allclose(both.steps[1].config()["mean"], measure_channels(images)[0], atol=0.05)


def test_every_step_has_an_example():
    assert EXAMPLES.keys() == PREPROCESSING_STEPS.keys()


@pytest.mark.parametrize("name", PREPROCESSING_STEPS)
def test_a_step_survives_json_and_state(name):
    made = Preprocessing([EXAMPLES[name](), EXAMPLES[name]()]).eval()
    again = Preprocessing.from_config(json.loads(json.dumps(made.config()))).eval()
    again.load_state_dict(made.state_dict())
    pixels = torch.rand(2, 3, 4, 4)
    with torch.no_grad():
        assert torch.equal(again(pixels), made(pixels))
    assert again.config() == made.config()


def test_gradients_pass_through():
    pixels = torch.rand(2, 3, 4, 4, requires_grad=True)
    EXAMPLES["normalise"]()(pixels).sum().backward()
    assert pixels.grad is not None
    assert torch.allclose(pixels.grad[0, :, 0, 0], torch.tensor([3.0, 1 / 0.7, 1000.0]))


@pytest.mark.parametrize(
    "config",
    [
        [{"step": "zca2000"}],
        [{"step": "normalise"}],
        [{"step": "normalise", "mean": [0.1], "std": [0.0]}],
        [{"step": "normalise", "mean": [float("nan")], "std": [1.0]}],
        [{"step": "normalise", "mean": [0.1, 0.2], "std": [1.0]}],
        [{"step": "normalise", "mean": [], "std": []}],
        [{"step": "normalise", "mean": [0.1], "std": [1.0], "more": 1}],
        [{"mean": [0.1], "std": [1.0]}],
        [{"step": "contrast", "floor": 0}],
        [{"step": "zca", "shape": [3, 4, 4], "eps": 0}],
        [{"step": "zca", "shape": [3, 4], "eps": 0.1}],
        [{"step": "zca", "shape": [3, 4, "4"], "eps": 0.1}],
        [{"step": "zca", "shape": [3, 4, 4], "eps": 0.1, "rank": 49}],
        [{"step": "zca", "shape": [3, 400, 400], "eps": 0.1}],
        [{"step": "zca", "shape": [3, 4096, 4096], "eps": 0.1, "rank": 5000}],
        [{"step": "zca", "shape": [3, 10**9, 10**9], "eps": 0.1, "rank": 1}],
    ],
)
def test_an_invalid_config_is_refused(config):
    with pytest.raises(BundleError, match="preprocessing"):
        Preprocessing.from_config(config)


def test_other_channels_are_refused():
    with pytest.raises(DataError, match="1 channels"):
        Normalise((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))(torch.rand(2, 1, 4, 4))
