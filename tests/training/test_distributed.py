"""Several processes train one classifier: they equal one, they stop together, they go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from helpers.process_groups import start
from sightline.errors import RecipeError, WorkerLostError
from sightline.training import Recipe, resume, train
from sightline.training.distributed import check_processes, group_from_env, launch_processes, lost_seconds

ONE = Recipe(
    model="lenet5", size=16, limit=400, epochs=2, batch_size=32, augment=(), precision="float32",
    memory_format="contiguous", cpu_replicas=1, lr=0.05,
)  # fmt: skip


def test_two_processes_equal_one(tmp_path):
    """The same global batches, no layer that looks across the batch: the same weights up to rounding."""
    two = train("digits", ONE.replace(devices=2, ema_decay=0.5), out=tmp_path / "two")
    one = train("digits", ONE.replace(ema_decay=0.5), out=tmp_path / "one")
    for name, tensor in one.classifier.state_dict().items():
        torch.testing.assert_close(two.classifier.state_dict()[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    assert two.facts["val_accuracy"] == pytest.approx(one.facts["val_accuracy"], abs=1e-6)
    assert two.facts["epochs"] == one.facts["epochs"] == 2
    assert (two.folder / "history.csv").read_text().count("\n") == 3


def test_all_processes_begin_with_the_weights_of_the_first(tmp_path):
    launch_processes(start, 2, torch.device("cpu"), tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["running_mean"].tolist() == [1, 1, 1]
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


SCRIPT = """
import sys
from sightline.training import Recipe, train
if __name__ == "__main__":
    recipe = Recipe(model="resnet20", size=16, limit=400, epochs=200, batch_size=32, devices=2, cpu_replicas=1,
                    precision="float32", memory_format="contiguous", lr=0.05)
    train("digits", recipe, out=sys.argv[1])
"""


def children(pid):
    done = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in done.stdout.split()]


def workers(pid):
    """The processes that spawn made, not its resource tracker."""
    found = []
    for child in children(pid):
        with open(f"/proc/{child}/cmdline", "rb") as stream:  # noqa: PTH123
            if b"spawn_main" in stream.read():
                found.append(child)
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_a_lost_process_stops_all_and_the_run_can_be_resumed(tmp_path):
    folder = tmp_path / "run"
    (tmp_path / "go.py").write_text(SCRIPT)
    words = [sys.executable, str(tmp_path / "go.py"), str(folder)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not (folder / "history.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        both = workers(process.pid)
        assert len(both) == 2
        os.kill(both[1], signal.SIGKILL)
        _, said = process.communicate(timeout=90)
        assert process.returncode != 0
        assert "A process of this run was lost, so all of them stopped" in said
        assert f"sightline train --resume {folder}" in said
        time.sleep(0.5)
        assert not any(os.path.exists(f"/proc/{pid}") for pid in both)  # noqa: PTH110
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    text = (folder / "recipe.toml").read_text()
    assert "epochs = 200" in text
    done = len((folder / "history.csv").read_text().splitlines()) - 1
    again = subprocess.Popen(
        [sys.executable, "-c", f"from sightline.cli import main; main(['train', '--resume', {str(folder)!r}])"],
        start_new_session=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while len((folder / "history.csv").read_text().splitlines()) <= done + 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert again.poll() is None
        os.killpg(again.pid, signal.SIGINT)  # as a terminal does: every process hears it
        _, said = again.communicate(timeout=90)
        assert "nothing is lost" in said
    finally:
        if again.poll() is None:
            os.killpg(again.pid, signal.SIGKILL)
    rows = (folder / "history.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(1, len(rows) + 1))


def test_torchrun_trains_one_run(tmp_path):
    place = Path(sys.executable).parent
    words = [place / "torchrun", "--nproc-per-node=2", "--no-python", place / "sightline", "train", "digits"]
    words += [
        "--model",
        "mlp",
        "--size",
        "8",
        "--limit",
        "200",
        "--epochs",
        "1",
        "--out",
        tmp_path / "r",
        "--json",
    ]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = done.stdout.splitlines()  # the second process says nothing
    assert json.loads(line)["run"] == str(tmp_path / "r")
    assert "devices = 2" in (tmp_path / "r" / "recipe.toml").read_text()
    assert (tmp_path / "r" / "report.html").exists()


def test_batches_that_cannot_be_shared_are_refused():
    with pytest.raises(RecipeError, match="batch of 33 cannot be shared evenly by 2"):
        check_processes(2, torch.device("cpu"), 33)
    check_processes(1, torch.device("cpu"), 33)
    if torch.cuda.device_count() < 7:
        with pytest.raises(RecipeError, match="needs as many GPUs"):
            check_processes(7, torch.device("cuda"), 7 * 4)


def test_hosts_are_checked_before_anything_waits(monkeypatch):
    """Two hosts of one GPU each are two processes, of which this host needs one GPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    check_processes(2, torch.device("cuda"), 32)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="--devices 2 needs as many GPUs, and here are 1"):
        check_processes(2, torch.device("cuda"), 32)
    with pytest.raises(RecipeError, match="trains with 4 processes, and 2 were started: start 4"):
        group_from_env(torch.device("cpu"), 4)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RecipeError, match="2 of 3 processes: give every host the same --nproc-per-node"):
        group_from_env(torch.device("cpu"))
    for word in ("soon", "1", "nan", "1e9"):
        monkeypatch.setenv("SIGHTLINE_LOST_SECONDS", word)
        with pytest.raises(RecipeError, match=f"SIGHTLINE_LOST_SECONDS is '{word}': give seconds"):
            group_from_env(torch.device("cpu"))
    monkeypatch.setenv("SIGHTLINE_LOST_SECONDS", "60")
    assert lost_seconds() == 60


def test_an_objective_that_cannot_travel_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="must be picklable"):
        train(
            "digits",
            ONE.replace(devices=2),
            out=tmp_path / "r",
            objective=lambda classifier, batch: classifier(batch.pixels).mean(),
        )


def test_lost_is_an_error_of_training():
    assert "all of them stopped" in str(WorkerLostError())
    assert WorkerLostError.exit_code == 2
    assert callable(resume)
