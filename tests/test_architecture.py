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


def exported(file: Path) -> set[str]:
    """What a front page imports from its members: a function may have the name of its file."""
    nodes = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ImportFrom) and node.module]
    return {f"{module_of(file)}.{alias.asname or alias.name}" for node in nodes for alias in node.names}


EXPORTED = set().union(*(exported(file) for file in FILES if file.name == "__init__.py"))


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
                is_module = name in MODULES and name not in EXPORTED
                found.append((name if is_module else base, node.lineno))
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
            assert there.count(".") < 2, f"{where}: the root enters a stage by its front page"
        elif stage(here) == stage(there):
            assert there != f"sightline.{stage(here)}", f"{where}: a member may not import its own front page"
        else:
            assert there != "sightline", f"{where}: nobody imports the root"
            assert there.count(".") < 2, f"{where}: enter a stage by its front page"
            assert RANK[stage(there)] < RANK[stage(here)], f"{where}: the story goes the other way"


def test_no_public_name_is_defined_twice():
    """But for the command line's verbs, which have the names of what they call, and Alembic's revisions."""
    places: dict[str, list[str]] = {}
    for file in [file for file in FILES if file.parent.name != "versions"]:
        for node in ast.parse(file.read_text()).body:
            names = [getattr(node, "name", None)]
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            for name in names:
                if name and not name.startswith("_"):
                    places.setdefault(name, []).append(module_of(file))
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert all(len(w) == 2 and any(stage(m) == "cli" for m in w) for w in twice.values()), twice


def test_the_root_offers_the_verbs_without_importing_torch():
    code = (
        "import sys, sightline\n"
        "assert 'torch' not in sys.modules and len(dir(sightline)) > 20\n"
        "assert sightline.Recipe(model='lenet5') and 'torch' not in sys.modules\n"
        "for name in sightline.__all__: assert callable(getattr(sightline, name)), name"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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
    assert text.count("\n") <= 400, f"{file.name} has more than 400 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 80, f"{file.name}:{node.lineno} {node.name} has {length} lines"


def test_stages_are_never_deeper_than_a_member():
    deeper = {file.relative_to(SOURCE).parts[:2] for file in FILES if len(file.relative_to(SOURCE).parts) > 2}
    assert deeper == {("journal", "migrations")}  # scripts that Alembic runs, not members


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
        "import sightline.training.run, sightline.evaluation"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
