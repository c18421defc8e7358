"""Recipe: every field is validated, written and read back."""

import dataclasses
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import RecipeError
from sightline.training.recipe import Recipe, field_descriptions, parse_duration

IMPOSSIBLE = {
    "data": "",
    "limit": 1,
    "val": 0.9,
    "test": 0.0,
    "size": 7,
    "channels": 2,
    "fit": "stretch",
    "filter": "nearest",
    "normalize": "",
    "augment": ("",),
    "model": " ",
    "weights": "",
    "epochs": -1,
    "budget": "soon",
    "batch_size": 1,
    "loss": "",
    "label_smoothing": 1.0,
    "optimizer": "",
    "group": "",
    "window": "5:1",
    "dropout": 1.0,
    "init": "",
    "mirrored": "yes",
    "weight_noise": -0.1,
    "freeze": "",
    "layer_decay": 0.0,
    "split_seed": -1,
    "loss_weight": -1.0,
    "class_weights": "",
    "sampling": "random",
    "fair": "",
    "fair_by": "",
    "bias_lr": 0,
    "clip": -1.0,
    "accumulate": 0,
    "start_size": 4,
    "replicas": 0,
    "processes": 1.5,
    "lr": 0.0,
    "momentum": 1.5,
    "weight_decay": -1e-4,
    "schedule": "",
    "warmup": 1.0,
    "ema": 1.0,
    "patience": -1,
    "precision": "float8",
    "memory_format": "nhwc",
    "seed": -1,
}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Recipe)])
def test_an_impossible_value_is_refused_by_its_field_name(field):
    with pytest.raises(RecipeError, match=rf"recipe's {field} is "):
        Recipe(**{field: IMPOSSIBLE[field]})


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Recipe)])
def test_every_field_says_what_it_is(field):
    assert len(field_descriptions()[field]) > 10


def test_a_wrong_type_is_refused_like_a_wrong_value():
    with pytest.raises(RecipeError, match="recipe's lr is 'fast'"):
        Recipe(lr="fast")
    with pytest.raises(RecipeError, match="recipe's epochs is True"):
        Recipe(epochs=True)


def test_unknown_field_suggests_the_right_one():
    with pytest.raises(RecipeError, match="Did you mean 'epochs'"):
        Recipe().replace(epoch=3)


@given(
    epochs=st.none() | st.integers(0, 1000),
    lr=st.none() | st.floats(1e-6, 10),
    augment=st.none() | st.lists(st.sampled_from(["flip", "shift:4", 'od"d\\name']), max_size=3).map(tuple),
    model=st.none() | st.text(min_size=1).filter(lambda s: s.strip() and "\x7f" not in s and s.isprintable()),
)
def test_toml_gives_back_the_same_recipe(tmp_path_factory, epochs, lr, augment, model):
    recipe = Recipe(epochs=epochs, lr=lr, augment=augment, model=model)
    file = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    file.write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.from_toml(file) == recipe


def test_toml_holds_no_field_a_recipe_has_not():
    known = {f.name for f in dataclasses.fields(Recipe)}
    assert set(tomllib.loads(Recipe(epochs=3).to_toml())) <= known


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = = 3", "not valid TOML"),
        ("epochz = 3", "no field 'epochz'. Did you mean 'epochs'"),
        ("epochs = -2", "recipe's epochs is -2"),
        ("batch-size = 3", "Did you mean 'batch_size'"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe.from_toml(file)
    assert "mine.toml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"no recipe file '.*absent\.toml'"):
        Recipe.from_toml(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("45", 45), (" 2 d", 172800)]
)
def test_budget(text, expected):
    assert parse_duration(text) == expected


def test_none_means_no_augmentation():
    assert Recipe(augment=("none",)).augment == ()
    assert Recipe(augment=("none",)) != Recipe()
