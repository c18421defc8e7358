"""Recipe: every field is validated, written and read back."""

import dataclasses
import inspect
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import RecipeError
from sightline.training.fields import RENAMED_FIELDS
from sightline.training.recipe import Recipe, field_descriptions, parse_duration

IMPOSSIBLE = {
    "path_column": "",
    "label_column": 1,
    "label_pattern": " ",
    "data": "",
    "limit": 1,
    "train_limit": 1,
    "val_fraction": 0.9,
    "test_fraction": 0.6,
    "size": 7,
    "channels": 2,
    "resize_mode": "stretch",
    "interpolation": "nearest",
    "crop_fraction": 0.0,
    "from_scratch": "yes",
    "quality": "good",
    "accept_licence": 1,
    "method": "",
    "freeze_norms": "no",
    "normalize": "",
    "steps": 0,
    "unlabelled": " ",
    "semi_supervised": "",
    "target": " ",
    "adapt": "",
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
    "flip_tta": "yes",
    "weight_noise": -0.1,
    "freeze": "",
    "layer_decay": 0.0,
    "split_seed": -1,
    "loss_weight": -1.0,
    "class_weights": "",
    "sampling": "",
    "fairness_column": "",
    "fairness_method": "",
    "bias_lr": 0,
    "clip_grad": -1.0,
    "grad_accum_steps": 0,
    "progressive_from": 4,
    "cpu_replicas": 0,
    "fused_kernels": "yes",
    "devices": 1.5,
    "lr": 0.0,
    "momentum": 1.5,
    "weight_decay": -1e-4,
    "schedule": "",
    "warmup": 1.0,
    "ema_decay": 1.0,
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


# Names of earlier releases

OLD = """
val = 0.2
test = 0.1
fit = "pad"
filter = "bicubic"
init = "own"
mirrored = true
fair = "camera"
fair_by = "reweighing"
clip = 1.0
accumulate = 2
start_size = 16
ema = 0.9
replicas = 1
processes = 2
normalize = "start"
loss = "adversarial:0.3:4:step=0.1:ramp=3"
"""


def test_a_recipe_file_of_an_earlier_release_is_read(tmp_path):
    (tmp_path / "recipe.toml").write_text(OLD)
    assert Recipe.from_toml(tmp_path / "recipe.toml") == Recipe(
        val_fraction=0.2,
        test_fraction=0.1,
        resize_mode="pad",
        interpolation="bicubic",
        init="default",
        flip_tta=True,
        fairness_column="camera",
        fairness_method="reweighing",
        clip_grad=1.0,
        grad_accum_steps=2,
        progressive_from=16,
        ema_decay=0.9,
        cpu_replicas=1,
        devices=2,
        normalize="inherit",
        loss="adversarial:0.3:4:step=0.1:warmup_epochs=3",
    )


def test_old_names_are_names_of_fields_no_more():
    fields = {f.name for f in dataclasses.fields(Recipe)}
    assert set(RENAMED_FIELDS.values()) <= fields
    assert not set(RENAMED_FIELDS) & fields


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"processes": 2}, {"devices": 2}),
        ({"fit": "pad", "init": "own"}, {"resize_mode": "pad", "init": "default"}),
    ],
)
def test_the_constructor_takes_old_names_too(old, new):
    assert Recipe(**old) == Recipe(**new) == Recipe().replace(**old)
    with pytest.raises(RecipeError, match=r"no field 'epoch'. Did you mean 'epochs'"):
        Recipe(epoch=1)
    assert list(inspect.signature(Recipe).parameters) == [f.name for f in dataclasses.fields(Recipe)]


def test_both_names_of_a_field_are_one_too_many():
    with pytest.raises(RecipeError, match="'ema' is the old name of 'ema_decay'"):
        Recipe().replace(ema_decay=0.9, ema=0.9)
