"""What a training would take, and which rate to begin with, before anything is spent."""

import json

import numpy as np
import pytest
from PIL import Image

from sightline import runtime
from sightline.errors import ChoiceError, DataError, RecipeError
from sightline.training import Recipe, estimate, train
from sightline.training.estimate import estimate_cost, find_lr
from sightline.training.presets import PRESETS

QUICK = Recipe(model="mlp", size=8, precision="float32", memory_format="contiguous", cpu_replicas=1, limit=600)


def test_the_outlook_is_close_to_what_happens(tmp_path, monkeypatch):
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    found = estimate_cost("digits", QUICK.replace(epochs=3)).values
    assert found["train_images"] == pytest.approx(600 * 0.75, rel=0.05)
    assert found["epoch_seconds"] == pytest.approx(found["train_images"] / found["images_per_second"])
    assert found["seconds"] > 3 * found["epoch_seconds"]
    assert found["memory_mb"] > 50
    assert found["disk_mb"] > 600 * 64 / 1e6
    assert not (tmp_path / "cache" / "stores").exists(), "a dry run keeps no images"
    assert found["recipe"]["lr"] > 0


def test_the_outlook_resolves_what_training_would(tmp_path):
    found = estimate_cost("digits", QUICK).values["recipe"]
    assert found["epochs"] >= 1
    assert found["batch_size"] is not None


def test_a_dry_run_from_the_shell(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("train", "digits", "--model", "mlp", "--size", "8", "--limit", "300", "--epochs", "2", "--dry-run")
    told = cli(*words)
    assert told.code == 0, told.err
    assert "An epoch of" in told.out
    assert "of disk" in told.out
    assert not (tmp_path / "runs").exists()
    assert json.loads(cli(*words, "--json").out)["train_images"] > 200
    assert cli("train", "--dry-run").code == 2


def test_the_rate_test_finds_a_rate_that_learns_and_leaves_nothing(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("train", "digits", "--model", "mlp", "--size", "8", "--limit", "600", "--find-lr", "rates.png")
    told = cli(*words, "--json")
    assert told.code == 0, told.err
    found = json.loads(told.out)
    assert 1e-4 < found["suggestion"] < 3
    assert np.all(np.diff(found["rates"]) > 0)
    assert min(found["losses"]) < found["losses"][0] * 0.9
    assert (tmp_path / "rates.png").stat().st_size > 1000
    assert not (tmp_path / "runs").exists()
    assert cli(*words[:-1], "rates.txt").code == 2


def test_the_rate_test_repeats():
    recipe = QUICK.replace(limit=200, batch_size=32)
    first, again = (find_lr("digits", recipe) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_recipes_that_can_be_trained(name):
    from sightline.training.plan import validate_recipe

    validate_recipe(PRESETS[name]())
    assert (PRESETS[name].__doc__ or "").strip()


def test_presets_from_the_shell(cli):
    assert "mnist-fast" in cli("train", "digits", "--preset", "mnist-fats").err
    both = cli("train", "digits", "--preset", "mnist-fast", "--recipe", "r.toml")
    assert both.code == 2
    assert "use one of them" in both.err


def test_bad_input_is_refused_before_images_are_read():
    with pytest.raises(ChoiceError, match="optimiser"):
        estimate_cost("digits", QUICK.replace(optimizer="lion"))
    with pytest.raises(RecipeError, match="must not be above the size"):
        estimate_cost("digits", QUICK.replace(progressive_from=32))
    with pytest.raises(ChoiceError, match="initialisation"):
        estimate_cost("digits", QUICK.replace(init="glorot"))
    assert runtime.permutation(5, 0).tolist() == runtime.permutation(5, 0).tolist()


@pytest.fixture
def photos(tmp_path):
    """Two classes of 20 images, and five files that are no images."""
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.random.default_rng([i, len(name), name == "cat"]).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"photos/{name}/{i}.png")
    for i in range(5):
        (tmp_path / f"photos/cat/x{i}.png").write_bytes(b"")
    return tmp_path / "photos"


@pytest.mark.parametrize("sample", [512, 43])
def test_a_dry_run_refuses_what_training_refuses(photos, sample, monkeypatch):
    monkeypatch.setattr(estimate, "ESTIMATE_SAMPLE_IMAGES", sample)
    recipe = QUICK.replace(limit=None, batch_size=8, epochs=1)
    with pytest.raises(DataError, match="cannot be read"):
        estimate_cost(photos, recipe)
    for path in photos.glob("cat/x*"):
        path.unlink()
    assert estimate_cost(photos, recipe).values["train_images"] > 0
    with pytest.raises(RecipeError, match="shared evenly"):
        estimate_cost(photos, recipe.replace(devices=3))


def test_a_dry_run_refuses_what_cannot_be_split_as_training_does(photos):
    for path in photos.glob("*/*.png"):
        if path.name != "0.png":
            path.unlink()
    recipe, errors = QUICK.replace(limit=None, batch_size=8, epochs=1), []
    for run in (estimate_cost, train):
        with pytest.raises(DataError) as caught:
            run(photos, recipe)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_a_dry_run_refuses_a_folder_that_exists(cli, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    words = ("train", "digits", "--model", "mlp", "--limit", "100", "--epochs", "1", "--out", tmp_path / "run")
    dry, real = cli(*words, "--dry-run"), cli(*words)
    assert (dry.code, dry.err.splitlines()[-1]) == (2, real.err.splitlines()[-1])
