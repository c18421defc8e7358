"""The structure of the code in figures: names, sizes, imports, and a Recipe's way through `train`.

    python benchmarks/house.py                          the structure alone: seconds
    python benchmarks/house.py --before b2f5d58         also of an older commit, to compare
    python benchmarks/house.py --before b2f5d58 --equal    also seeded weights, bit for bit, and the speed of
                                                        training in 15 interleaved rounds (about ten minutes)

What is counted: public top-level names defined in more than one file (the command line's verbs mirror their stages
and are left out); functions whose whole name is a participle or an adjective; private module-level functions that
their file names exactly once outside themselves; imports past a stage's front page from outside the stage. The way
of a Recipe is followed while `train` runs: every call that receives one, by file; a return is a call into a file
that the Recipe had left.
"""

import argparse
import ast
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from record import record

ROOT = Path(__file__).parents[1]
ROUNDS = 15
"""Interleaved rounds of the comparison of training speed."""

IRREGULAR = frozenset(
    {
        "afresh",
        "alike",
        "alone",
        "anew",
        "begun",
        "beside",
        "born",
        "drawn",
        "found",
        "given",
        "gone",
        "held",
        "kept",
        "known",
        "lost",
        "made",
        "meant",
        "near",
        "put",
        "right",
        "said",
        "sent",
        "set",
        "shown",
        "spent",
        "steady",
        "sure",
        "taken",
        "told",
        "torn",
        "usual",
        "whole",
        "worn",
        "written",
        "wrong",
    }
)
NOT_PARTICIPLES = frozenset({"seed", "embed", "speed", "feed", "need", "shed", "bed", "put", "set", "found"})

DEFENDED = {"enhanced": "the source paper calls its network the enhanced CNN"}
"""Participles that stay, each with the reason."""

WAY = """
import json, sys, tempfile, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import sightline
from sightline.training import Recipe, train
root = str(Path(sightline.__file__).parent)
seen = []
def watch(frame, event, argument):
    code = frame.f_code
    if event != "call" or not code.co_filename.startswith(root) or code.co_name.startswith("<"):
        return
    taken = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    if any(isinstance(frame.f_locals.get(name), Recipe) for name in taken):
        seen.append(str(Path(code.co_filename).relative_to(root)))
recipe = Recipe(model="lenet5", epochs=1, precision="float32", memory_format="contiguous")
with tempfile.TemporaryDirectory() as folder:
    sys.setprofile(watch)
    train("digits", recipe, out=folder + "/run", device="cpu")
    sys.setprofile(None)
print(json.dumps(seen))
"""

WEIGHTS = """
import dataclasses, hashlib, json, tempfile, warnings
warnings.simplefilter("ignore")
from sightline.training import Recipe, train
known = {field.name for field in dataclasses.fields(Recipe)}
def new(name, old):
    return name if name in known else old
base = {"epochs": 2, "precision": "float32", "memory_format": "contiguous", "seed": 3}
base[new("cpu_replicas", "replicas")] = 1
more = {"augment": ("shift:1", "mixup"), new("ema_decay", "ema"): 0.9, new("clip_grad", "clip"): 1.0,
        new("grad_accum_steps", "accumulate"): 2}
found = []
for extra in ({"model": "lenet5"}, {"model": "small-cnn", **more}):
    with tempfile.TemporaryDirectory() as folder:
        run = train("digits", Recipe(**base, **extra), out=folder + "/run", device="cpu")
    digest = hashlib.sha256()
    for name, tensor in sorted(run.classifier.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    found.append([digest.hexdigest(), run.classifier.temperature])
print(json.dumps(found))
"""

SPEED = """
import dataclasses, json, tempfile, warnings
warnings.simplefilter("ignore")
from sightline.training import Recipe, train
known = {field.name for field in dataclasses.fields(Recipe)}
replicas = "cpu_replicas" if "cpu_replicas" in known else "replicas"
recipe = Recipe(model="resnet20", size=32, epochs=2, limit=1500, precision="float32",
                memory_format="channels_last", **{replicas: 1})
with tempfile.TemporaryDirectory() as folder:
    run = train("shapes", recipe, out=folder + "/run", device="cpu")
print(json.dumps(run.facts["images_per_second"]))
"""


def structure(source: Path) -> dict[str, Any]:
    """Every count of the code below ``source`` (.../sightline), with the names behind the smaller ones."""
    files = sorted(source.rglob("*.py"))
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}
    lines = {str(file.relative_to(source)): file.read_text(encoding="utf-8").count("\n") for file in files}
    defined: dict[str, list[str]] = defaultdict(list)
    participles, once, longest = [], Counter(), ("", 0)
    for file, tree in trees.items():
        place = str(file.relative_to(source))
        for name in public_names(tree):
            defined[name].append(place)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                longest = max(longest, (f"{place}:{node.name}", length), key=lambda one: one[1])
        participles += [f"{place}:{node.name}" for node in tree.body if is_participle(node)]
        once[place.split("/", maxsplit=1)[0]] += len(called_once(tree))
    twice = {
        name: places
        for name, places in defined.items()
        if len(places) > 1 and not (len(places) == 2 and any(place.startswith("cli/") for place in places))
    }
    undefended = [name for name in participles if name.split(":")[1] not in DEFENDED]
    return {
        "files": len(files),
        "lines": sum(lines.values()),
        "longest_file": max(lines.items(), key=lambda one: one[1]),
        "longest_function": longest,
        "public_names": len(defined),
        "public_names_defined_twice": twice,
        "functions_named_by_a_participle": len(participles),
        "participles_without_a_defence": undefended,
        "private_functions_called_once": sum(once.values()),
        "called_once_by_stage": dict(once.most_common()),
        "imports_past_a_front_page": past_front_pages(trees, source),
    }


def public_names(tree: ast.Module) -> list[str]:
    """What a file defines at its top level without an underscore."""
    names = []
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.append(name)
            case ast.Assign(targets=targets):
                names += [one.id for one in targets if isinstance(one, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.append(name)
    return [name for name in names if not name.startswith("_")]


def is_participle(node: ast.stmt) -> bool:
    """Whether a function's whole name is a participle or an adjective: ``kept``, ``_settled``."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    word = node.name.strip("_")
    return word not in NOT_PARTICIPLES and (word in IRREGULAR or bool(re.fullmatch(r"[a-z]+(ed|ing)", word)))


def called_once(tree: ast.Module) -> list[str]:
    """Private top-level functions that their own file names exactly once, outside themselves."""
    defined = {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("_")
        and not node.name.startswith("__")
    }
    uses = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    within = {
        name: sum(isinstance(node, ast.Name) and node.id == name for node in ast.walk(body))
        for name, body in defined.items()
    }
    return [name for name in defined if uses[name] - within[name] == 1]


def past_front_pages(trees: dict[Path, ast.Module], source: Path) -> list[str]:
    """Imports of a stage's member by another stage."""
    found = []
    offered = defaultdict(set)  # by stage: a front page's function may have its file's name
    for file, tree in trees.items():
        if file.name == "__init__.py":
            nodes = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
            offered[file.parent.name] |= {alias.name for node in nodes for alias in node.names}
    for file, tree in trees.items():
        parts = file.relative_to(source).parts
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or node.level != len(parts):
                continue
            target = (node.module or "").split(".")
            names = [(*target, alias.name) if node.module else (alias.name,) for alias in node.names]
            for name in names:
                member = source.joinpath(*name[:2]).with_suffix(".py")
                front = len(name) == 2 and not node.module.count(".") and name[1] in offered[name[0]]
                if len(name) > 1 and name[0] != parts[0] and member.exists() and not front:
                    found.append(f"{'/'.join(parts)}:{node.lineno} {'.'.join(name[:2])}")
    return found


def ask(code: str, source: Path, **environment: str) -> Any:
    """What a Python program prints as its last line, with this ``src`` folder first."""
    with tempfile.TemporaryDirectory() as cache:
        settings = {"PYTHONPATH": str(source), "SIGHTLINE_CACHE": cache, "OMP_NUM_THREADS": "1", **environment}
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True, check=False
        )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def way_of_a_recipe(source: Path) -> dict[str, Any]:
    """Files that a Recipe enters while ``train`` runs, and how often it comes back to one it had left."""
    entered = ask(WAY, source)
    stays = [place for number, place in enumerate(entered) if not number or entered[number - 1] != place]
    elsewhere = [place for place in stays if place != "training/recipe.py"]
    stays = [place for number, place in enumerate(elsewhere) if not number or elsewhere[number - 1] != place]
    return {
        "calls": len(entered),
        "files": len(set(entered)),
        "returns": len(stays) - len(set(stays)),
        "way": stays,
    }


def help_seconds(source: Path, rounds: int = 7) -> float:
    """Median time of ``sightline --help``."""
    code = [sys.executable, "-c", "from sightline.cli import main; main(['--help'])"]
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run(code, env=os.environ | {"PYTHONPATH": str(source)}, stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - began)
    return round(statistics.median(times), 3)


def speed(before: Path, after: Path) -> dict[str, Any]:
    """Images/s of ResNet-20 on drawn shapes, before and after in turn; the median ratio with its 95 % interval."""
    pairs = []
    for number in range(ROUNDS):
        order = (before, after) if number % 2 else (after, before)
        rates = {source: ask(SPEED, source, OMP_NUM_THREADS="2") for source in order}
        pairs.append((rates[before], rates[after]))
        print(f"round {number + 1}: {rates[before]:.0f} and {rates[after]:.0f} images/s", flush=True)
    ratios = np.array([after / before for before, after in pairs])
    drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high), "rounds": pairs}


def unpacked(revision: str, folder: Path) -> Path:
    """The ``src`` of an older commit."""
    data = subprocess.run(["git", "archive", revision, "src"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(folder, filter="data")
    return folder / "src"


def main() -> None:
    """Measure the code, and an older commit of it where one is named; print and record both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="COMMIT")
    parser.add_argument("--equal", action="store_true", help="compare seeded weights and the speed of training")
    asked = parser.parse_args()
    here = ROOT / "src"
    with tempfile.TemporaryDirectory() as folder:
        houses = {"now": here}
        if asked.before:
            houses["before"] = unpacked(asked.before, Path(folder))
        figures: dict[str, Any] = {
            name: structure(source / "sightline")
            | {"help_seconds": help_seconds(source), "recipe": way_of_a_recipe(source)}
            for name, source in houses.items()
        }
        if asked.equal:
            weights = {name: ask(WEIGHTS, source) for name, source in houses.items()}
            figures["seeded_weights"] = weights
            figures["bit_equal"] = weights["now"] == weights["before"]
            figures["speed"] = speed(houses["before"], here)
    if "before" in figures:  # of the older one the counts are enough
        older = figures["before"]
        for name, value in older.items():
            older[name] = len(value) if name.startswith(("imports_", "participles_", "public_names_d")) else value
        del older["recipe"]["way"]
    record("house", figures)


if __name__ == "__main__":
    main()
