"""Scripts that start several processes: a sentence where each process would run the script again."""

import subprocess
import sys

import pytest

CALL = """
from sightline.training import Recipe, train
train("digits", Recipe(model="mlp", epochs=1, size=8, limit=100, batch_size=32, devices=2), out="run")
"""


def run_script(folder, text, *, stdin=False):
    (folder / "script.py").write_text(text)
    words = [sys.executable, *([] if stdin else ["script.py"])]
    given = text if stdin else None
    return subprocess.run(words, cwd=folder, input=given, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("stdin", [False, True])
def test_training_without_a_main_guard_ends_in_a_sentence_and_leaves_nothing(tmp_path, stdin):
    done = run_script(tmp_path, CALL, stdin=stdin)
    assert done.returncode == 1
    assert "if __name__ == '__main__':" in done.stderr.splitlines()[-1]
    assert "bootstrapping" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_serving_by_several_workers_without_a_main_guard_says_so(tmp_path):
    text = """
from sightline.serving import serve
print("again")
serve("absent", workers=2)
"""
    child = (
        "import multiprocessing, runpy\n"
        "multiprocessing.current_process()._inheriting = True\n"  # as in a process that imports the script again
        "runpy.run_path('script.py')\n"
    )
    (tmp_path / "script.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", child], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "__main__" in done.stderr
    assert "Traceback" not in done.stderr
