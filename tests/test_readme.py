"""README, docs and examples say what is true: blocks run, commands parse, links lead somewhere."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sightline.augmentation import parse_policy
from sightline.cli import main
from sightline.cli.app import app
from sightline.cli.flags import recipe_from_flags
from sightline.models import build, parse_architecture
from sightline.training import defaults
from sightline.training.recipe import Recipe, field_descriptions

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(page, language):
    return [body for kind, body in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands(page):
    """Every line of a block that calls sightline, as words, without its comment."""
    bodies = [body for kind in ("", "sh", "console") for body in blocks(page, kind)]
    lines = [line.removeprefix("$ ") for body in bodies for line in body.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("sightline ")]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name_of)
def test_python_blocks_run(page, elsewhere):
    names = {"__name__": "page"}
    for number, block in enumerate(blocks(page, "python"), 1):
        exec(compile(block, f"{name_of(page)} block {number}", "exec"), names)
    assert names.keys() - {"__name__", "__builtins__"}, "the page's code defines nothing"


def test_readme_python_is_short():
    (block,) = blocks(README, "python")
    assert len([line for line in block.splitlines() if line.strip()]) <= 18


COMMANDS = [
    pytest.param(words, id=f"{name_of(page)}: {' '.join(words)}") for page in PAGES for words in commands(page)
]


def test_there_are_commands():
    verbs = {words[0] for page in PAGES for words in commands(page)}
    made = {"train", "tune", "combine", "compress", "learn", "adapt", "pretrain"}
    examined = {"check", "evaluate", "report", "attack", "compare", "explain", "nearest"}
    used = {"predict", "features", "export", "serve", "releases", "keys", "journal", "runs", "list"}
    watched = {"drift", "review", "improve", "studio"}
    assert verbs == made | examined | used | watched


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_parse(words):
    """The verb and its flags exist, and a recipe made of them would be accepted."""
    words = ["--help" if word == "--help-all" else word for word in words]
    command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert "--help" in words or command.__module__.startswith("sightline.cli.")
    if words[0] == "train" and "flags" in bound.arguments:
        recipe = recipe_from_flags(bound.arguments["flags"], None)
        parse_policy(recipe.augment or ())
        if recipe.model is not None:
            build(parse_architecture(recipe.model, classes=2, channels=3, size=(32, 32)))


def test_unknown_commands_do_not_parse():
    for words in (["trian", "x"], ["train", "x", "--epoch", "3"], ["check", "x", "--deeper"]):
        with pytest.raises(Exception, match=r"Unknown"):
            app.parse_args(words, exit_on_error=False, print_error=False)


def test_readme_commands_on_built_in_data_run(elsewhere, capsys):
    (block,) = [body for body in blocks(README, "sh") if "sightline check digits" in body]
    for line in block.splitlines():
        assert main(shlex.split(line, comments=True)[1:]) == 0, line
    capsys.readouterr()


def test_the_demo_makes_what_the_readme_lists(elsewhere, capsys, monkeypatch):
    monkeypatch.setattr(defaults, "MAX_DEFAULT_EPOCHS", 12)  # the same road, walked for a shorter time
    assert "sightline demo" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert main(["demo", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["accuracy"] > 0.95
    run = Path(answer["run"])
    table = README.read_text(encoding="utf-8").partition("| in `runs/NAME/` |")[2].partition("\n\n")[0]
    first_cells = "".join(row.split("|")[1] for row in table.splitlines()[2:])
    listed = {word.rstrip("/") for word in re.findall(r"`(.+?)`", first_cells)}
    assert listed == {path.name for path in run.iterdir()}


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_examples_run(example, tmp_path):
    """As a stranger would start it: a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, example], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert len(example.read_text(encoding="utf-8").splitlines()) < 60


def test_there_are_two_examples_and_the_readme_names_them():
    text = README.read_text(encoding="utf-8")
    assert len(EXAMPLES) >= 2
    assert all(f"({name_of(example)})" in text for example in EXAMPLES)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", FENCE.sub("", page.read_text(encoding="utf-8")))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages == set(re.findall(r"\]\((\w+\.md)\)", index))


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "pictures").iterdir())
    assert pictures
    assert all(picture.stat().st_size < 250_000 for picture in pictures)


def test_the_readme_names_the_torch_that_is_asked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (torch,) = [line for line in project["dependencies"] if line.startswith("torch>")]
    assert f"'torch{torch[torch.index('<') :]}'" in README.read_text(encoding="utf-8")


CHOSEN = {"size", "channels", "augment", "model", "epochs", "batch_size", "lr", "precision", "memory_format"}
CHOSEN |= {"cpu_replicas", "fused_kernels", "normalize", "method", "val_fraction"}
"""Fields that are chosen where they are None; the other fields mean "none" by it."""
NONE = {
    "train_limit",
    "steps",
    "unlabelled",
    "semi_supervised",
    "adapt",
    "target",
    "path_column",
    "label_column",
    "label_pattern",
    "weights",
    "window",
    "group",
    "dropout",
    "progressive_from",
    "loss_weight",
    "split_seed",
    "fairness_column",
    "quality",
    "resize_mode",
    "interpolation",
    "crop_fraction",
}


def recipe_table():
    rows = ["| field | default | |", "|---|---|---|"]
    for f in dataclasses.fields(Recipe):
        none = "chosen" if f.name in CHOSEN else "none"
        default = none if f.default is None else f"`{json.dumps(f.default)}`"
        rows.append(f"| `{f.name}` | {default} | {' '.join(field_descriptions()[f.name].split())} |")
    return "\n".join(rows)


def test_the_recipe_table_is_the_recipe():
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert recipe_table() in page, f"put this table into docs/training.md:\n\n{recipe_table()}"


def test_what_is_chosen_is_chosen():
    """The words "chosen" and "none" of the table, against a real preparation."""
    from sightline.training import prepare, resolve

    recipe = prepare(resolve(Recipe(data="digits", limit=100)))[0].recipe
    left = {f.name for f in dataclasses.fields(Recipe) if getattr(recipe, f.name) is None}
    # The last four are measured on the machine, after the images are read.
    assert left == NONE | {"epochs", "precision", "memory_format", "cpu_replicas", "fused_kernels"}
    assert {f.name for f in dataclasses.fields(Recipe) if f.default is None} == CHOSEN | NONE | {"data", "limit"}
