"""The story in ``sightline/__init__.py`` is the import contract; this reads both and compares."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sightline

SOURCE = Path(sightline.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = {"sightline." + ".".join(f.relative_to(SOURCE).with_suffix("").parts) for f in FILES}
MODULES = {name.removesuffix(".__init__") for name in MODULES} | {"sightline"}


def story() -> list[list[set[str]]]:
    """The lines of the story, in order: each a list of words, each word a set of equals joined by |."""
    lines = re.findall(r"^ *([\w |]+?) : ", sightline.__doc__ or "", re.MULTILINE)
    return [[set(word.split("|")) for word in re.sub(r" *\| *", "|", line).split()] for line in lines]


RANK = {
    name: (row, column)
    for row, line in enumerate(story())
    for column, equals in enumerate(line)
    for name in equals
}


def module_of(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(("sightline", *parts)).removesuffix(".__init__")


def imports(file: Path) -> list[tuple[str, int]]:
    """Every module of ours that a file imports, anywhere in it, with the line."""
    module, found = module_of(file), []
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names if alias.name.startswith("sightline")]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, base] if base else up)
            if not base.startswith("sightline"):
                continue
            for alias in node.names:
                name = f"{base}.{alias.name}"
                found.append((name if name in MODULES else base, node.lineno))
    return found


def stage(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_the_story_names_every_stage_and_nothing_else():
    stages = {stage(module) for module in MODULES} - {""}
    assert stages == set(RANK)


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_imports_follow_the_story(file):
    here = module_of(file)
    for there, line in imports(file):
        where = f"{file.name}:{line} imports {there}"
        if stage(here) == "":
            assert stage(there) == "", f"{where}: the root only tells the story"
        elif stage(here) == stage(there):
            assert there != f"sightline.{stage(here)}", f"{where}: a member may not import its own front page"
        else:
            assert there != "sightline", f"{where}: nobody imports the root"
            assert RANK[stage(there)] < RANK[stage(here)], f"{where}: the story goes the other way"


def test_no_circles():
    graph = {module_of(file): {name for name, _ in imports(file)} for file in FILES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_files_and_functions_are_small(file):
    text = file.read_text()
    assert text.count("\n") <= 410, f"{file.name} has more than 400 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 80, f"{file.name}:{node.lineno} {node.name} has {length} lines"


def test_stages_are_never_deeper_than_a_member():
    assert all(len(file.relative_to(SOURCE).parts) <= 2 for file in FILES)


def test_no_stage_has_the_name_of_a_verb():
    for file in FILES:
        verbs = {n.name for n in ast.parse(file.read_text()).body if isinstance(n, ast.FunctionDef)}
        taken = stage(module_of(file)) in verbs - {"choose"}
        assert not taken, f"{module_of(file)} defines a verb of its stage's name"


def test_training_imports_without_the_command_line_or_the_jpeg_decoder():
    """A bare machine with torch can train: what it may lack is not imported on the way."""
    code = (
        "import sys\n"
        "for name in ('cyclopts', 'simplejpeg', 'sklearn', 'matplotlib'): sys.modules[name] = None\n"
        "import sightline.training.run, sightline.evaluation.run_evaluation"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
