"""Many image files answered together, compared with a plain loop: Pillow, the unfolded network, one image at a time."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate

from helpers import warm_exporter  # noqa: F401
from sightline.classifier import FEW_BATCHES, Classifier
from sightline.exported_model import open_exported
from sightline.formats import write_exported
from sightline.models import build, parse_architecture
from sightline.predictions import MAX_BATCH_IMAGES, Ranker, batch_images, predict_batches, predict_exported
from sightline.preprocessing import Normalise, Preprocessing
from sightline.types import Geometry

CLASSES, COUNT, DAMAGED = ("cat", "dog", "émeu", "fox"), FEW_BATCHES * MAX_BATCH_IMAGES + 20, 70
"""More images than are answered without threads, and the number of one that cannot be read."""
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def make(model):
    torch.manual_seed(0)
    plan = parse_architecture(model, classes=len(CLASSES), channels=3, size=(16, 16))
    network = build(plan)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():  # so that images differ in their label
        network.head.weight *= 20
        network.head.bias -= network.eval()(torch.rand(16, 3, 2, 2).repeat(1, 1, 8, 8) * 4 - 2).mean(0)
    steps = Preprocessing([Normalise(MEAN, STD)])
    geometry = Geometry(size=(16, 16), channels=3)
    return Classifier(
        steps, network, architecture=plan, classes=CLASSES, geometry=geometry, temperature=0.7
    ).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(COUNT):
        colours = rng.integers(0, 256, (2, 2, 3)).repeat(8, 0).repeat(8, 1)
        pixels = (colours + rng.integers(-30, 30, (16, 16, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    (folder / f"{DAMAGED:03}.png").write_bytes(b"\x89PNG no picture")
    return sorted(folder.iterdir())


def loop(classifier, files):
    """Probabilities of a plain loop in float64; a row of nan for the damaged file, if there are so many."""
    found = np.full((len(files), len(CLASSES)), np.nan)
    network = build(classifier.architecture).double().eval()
    network.load_state_dict(classifier.network.state_dict())
    mean, std = (torch.tensor(one, dtype=torch.float64).view(3, 1, 1) for one in (MEAN, STD))
    for row, file in enumerate(files):
        if row != DAMAGED:
            pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1).double() / 255
            with torch.inference_mode():
                fitted = interpolate(pixels[None], (16, 16), mode="bilinear", antialias=True)
                found[row] = torch.softmax(network((fitted - mean) / std) / 0.7, 1)[0].numpy()
    return found


def check(predictions, files, wanted):
    assert [one.file for one in predictions] == [str(file) for file in files]
    assert [row for row, one in enumerate(predictions) if one.error] == [DAMAGED]
    good = [row for row in range(len(files)) if row != DAMAGED]
    assert [predictions[row].label for row in good] == [CLASSES[k] for k in wanted[good].argmax(1)]
    assert len({predictions[row].label for row in good}) > 1  # else any order would do
    for row in good:
        assert [name for name, _ in predictions[row].top] == [CLASSES[k] for k in (-wanted[row]).argsort()[:2]]
        assert predictions[row].confidence == pytest.approx(wanted[row].max(), abs=1e-5)


def test_many_files_get_the_answers_of_a_plain_loop(files):
    classifier = make("resnet20")
    threads, before = torch.get_num_threads(), {name: t.clone() for name, t in classifier.state_dict().items()}
    check(classifier.predict(files, top=2, precision="float32"), files, loop(classifier, files))
    assert torch.get_num_threads() == threads
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())


def test_an_exported_file_gives_them_without_torch_also_for_photos_of_other_sizes(files, tmp_path):
    classifier = make("lenet5")
    wanted = loop(classifier, files)
    write_exported(classifier, tmp_path / "m.onnx")
    check([*predict_exported(open_exported(tmp_path / "m.onnx", threads=1), files, top=2)], files, wanted)
    photos = []
    for number, file in enumerate(files[:12]):
        kind, size = (
            ("png", (50, 37)) if number % 2 else ("jpg", (120, 90))
        )  # the JPEG is decoded at half its size
        photos.append(tmp_path / f"{number:03}.{kind}")
        Image.open(file).resize(size, Image.Resampling.BICUBIC).save(photos[-1], quality=95)
    sure = loop(classifier, photos)
    code = (
        "import sys; from sightline.cli import main; main(sys.argv[1:]); "
        "sys.stderr.write('torch' if 'torch' in sys.modules else 'without')"
    )
    words = [
        sys.executable,
        "-c",
        code,
        "predict",
        tmp_path / "m.onnx",
        *photos,
        "--format",
        "csv",
        "--top",
        "1",
    ]
    answer = subprocess.run(map(str, words), capture_output=True, text=True, check=True)
    rows = [line.split(",") for line in answer.stdout.splitlines()[1:]]
    assert [row[1] for row in rows] == [CLASSES[k] for k in sure.argmax(1)]
    assert len({row[1] for row in rows}) > 1
    assert [float(row[2]) for row in rows] == pytest.approx(sure.max(1), abs=0.05)
    assert answer.stderr.endswith("without")


def test_images_are_read_a_few_batches_ahead_and_never_after_the_caller_stopped():
    read, geometry = [], Geometry(size=(4, 4), channels=3)

    def images():
        for number in range(1000):
            read.append(number)
            yield np.full((4, 4, 3), number % 256, np.uint8)

    def answer(pixels):
        return np.stack([np.arange(2, dtype=np.float32)] * len(pixels))

    share = [answer, answer]
    stream = predict_batches(images(), Ranker(("a", "b"), geometry, 0.0, 1), 10, answer, lambda: share)
    next(stream)
    assert len(read) <= 10 * (4 * len(share) + 1)
    stream.close()
    assert len(read) < 200
    assert not [one for one in threading.enumerate() if one.name.startswith("predict")]


def test_batches_are_of_five_photos_or_64_small_pictures():
    assert [batch_images(Geometry(size=(side, side), channels=3)) for side in (32, 224, 900)] == [64, 5, 1]
