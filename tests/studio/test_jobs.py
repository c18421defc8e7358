"""Jobs: real commands, in processes that outlive the studio; they say why they ended."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from helpers.live_server import until
from helpers.studio_client import Reader, open_studio, post
from sightline.errors import DataError
from sightline.studio import ACTIONS, Jobs

SLEEPER = "import sys, time\nprint('begun', file=sys.stderr, flush=True)\ntry:\n    time.sleep(60)\n"
SLEEPER += "except KeyboardInterrupt:\n    print('sightline: All is saved.', file=sys.stderr)\n    sys.exit(130)\n"


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "jobs")


def end(jobs, job, seconds=60):
    assert until(lambda: not jobs.find(job.id).active, seconds), jobs.find(job.id)
    return jobs.find(job.id)


def run(jobs, *words, **more):
    return jobs.start(words, title="A job", back="/jobs", **more)


@pytest.fixture
def sleeper(monkeypatch, tmp_path):
    """A verb that takes its time, in place of sightline."""
    from sightline.studio import job_runner

    code = tmp_path / "sleeper.py"
    code.write_text(SLEEPER)
    start = f"import runpy; runpy.run_path({str(code)!r})"
    patched = "import sys\nfrom pathlib import Path\nfrom sightline.studio import job_runner\n"
    patched += f"job_runner.RUN_VERB = {start!r}\njob_runner.run_job(Path(sys.argv[1]), int(sys.argv[2]))"
    popen = subprocess.Popen

    def opened(words, **more):
        if words[1:3] == ["-m", "sightline.studio.job_runner"]:
            words = [sys.executable, "-c", patched, *words[3:]]
        return popen(words, **more)

    monkeypatch.setattr(subprocess, "Popen", opened)
    assert job_runner.RUN_VERB.startswith("import sys; from sightline.cli")


def test_a_job_is_the_command_it_shows(jobs, tmp_path):
    folder = tmp_path / "a b; touch pwned"
    job = end(jobs, run(jobs, "releases", str(folder)))
    assert job.state == "failed"
    assert job.code == 2
    shell = subprocess.run(
        [sys.executable, "-c", "import sys; from sightline.cli import main; sys.exit(main())", *job.words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shell.stderr.strip().splitlines()[-1] == f"sightline: {job.reason}"
    assert job.command == f"sightline releases '{folder}'"
    assert not (tmp_path / "pwned").exists()


def test_a_job_ends_with_its_result_and_its_log(jobs):
    job = end(jobs, run(jobs, "check", "shapes:60", by="anna"))
    assert (job.state, job.code, job.by) == ("done", 0, "anna")
    assert job.result["images"] == 60
    assert job.ended >= job.started >= job.at
    assert [one.id for one in jobs.latest()] == [job.id]
    assert jobs.latest(active=True) == []


def test_a_stopped_job_saves_its_work_and_goes_on(jobs, sleeper):
    job = run(jobs, "train", "x", resume_words=["train", "--resume", "x"])
    assert job.active
    with pytest.raises(DataError, match="has not ended"):
        jobs.resume(job.id)
    assert until(lambda: "begun" in jobs.find(job.id).log()[0])
    jobs.stop(job.id)
    stopped = end(jobs, job)
    assert (stopped.state, stopped.code, stopped.reason) == ("stopped", 130, "All is saved.")
    best = jobs.resume(job.id, take_best=True)
    assert best.words == ("train", "--resume", "x", "--take-best")
    jobs.stop(best.id)
    assert end(jobs, best).resume_words == ("train", "--resume", "x")
    again = jobs.resume(job.id, by="bob")
    assert again.words == ("train", "--resume", "x")
    assert again.id != job.id
    jobs.stop(again.id)
    assert end(jobs, again).state == "stopped"


def test_a_job_outlives_the_studio_and_is_found_again(jobs, sleeper):
    job = run(jobs, "train", "x")
    other = Jobs(jobs.folder)  # as after a restart
    assert until(lambda: other.find(job.id).pid and "begun" in other.find(job.id).log()[0])
    assert other.find(job.id).state == "running"
    assert os.getsid(other.find(job.id).pid) != os.getsid(0)  # Ctrl-C in the terminal does not reach it
    other.stop(job.id)
    assert end(other, job).state == "stopped"


def test_a_killed_job_says_so(jobs, sleeper):
    job = run(jobs, "train", "x")
    assert until(lambda: "begun" in jobs.find(job.id).log()[0])
    runner = jobs.find(job.id).pid
    child = int(subprocess.run(["pgrep", "-P", str(runner)], capture_output=True, text=True, check=True).stdout)
    os.kill(child, signal.SIGKILL)
    assert "signal 9" in end(jobs, job).reason
    job = run(jobs, "train", "x")
    assert until(lambda: "begun" in jobs.find(job.id).log()[0])
    runner = jobs.find(job.id).pid
    child = int(subprocess.run(["pgrep", "-P", str(runner)], capture_output=True, text=True, check=True).stdout)
    os.kill(runner, signal.SIGKILL)
    time.sleep(0.2)
    assert jobs.find(job.id).active  # the verb goes on, though nobody waits for its exit code
    os.kill(child, signal.SIGKILL)
    lost = end(jobs, job)
    assert lost.state == "lost"
    assert "without an exit code" in lost.reason


def test_queued_jobs_run_one_after_the_other(jobs, sleeper):
    first, second, third = run(jobs, "train", "a", queued=True), run(jobs, "train", "b", queued=True), None
    assert until(lambda: "begun" in jobs.find(first.id).log()[0] or "begun" in jobs.find(second.id).log()[0])
    running, waiting = sorted((first, second), key=lambda one: jobs.find(one.id).state)
    assert jobs.find(waiting.id).state == "waiting"
    third = run(jobs, "check", "c")  # not queued
    assert until(lambda: "begun" in jobs.find(third.id).log()[0])
    jobs.stop(waiting.id)
    assert end(jobs, waiting).code == 130
    assert jobs.find(waiting.id).log()[0] == []
    for one in (running, third):
        jobs.stop(one.id)
        assert end(jobs, one).state == "stopped"


@pytest.mark.parametrize("id", ["", ".", "..", "../secret", "20260101-000000-abcdef", "20260101-000000-abcdef/.."])
def test_no_other_folder_is_a_job(jobs, tmp_path, id):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "job.json").write_text("{}")
    with pytest.raises(DataError, match="no job of this name"):
        jobs.find(id)


def test_a_form_starts_a_job_and_its_page_follows_it(tmp_path):
    site = tmp_path / "site"
    with open_studio(site) as client:
        answer = post(client, "/studio/run/rollback")
        assert answer.status_code == 303
        page = answer.headers["location"]
        assert re.fullmatch(r"/studio/jobs/[\w-]+", page)
        stream = client.get(page + "/events").text  # until it ends
        events = [line.split("\n") for line in stream.strip().split("\n\n")]
        names = [next(line[7:] for line in one if line.startswith("event: ")) for one in events]
        assert names[-1] == "end"
        given = [json.loads(one[-1].removeprefix("data: ")) for one in events]
        logged = [line for name, lines in zip(names, given, strict=True) if name == "log" for line in lines]
        assert any("no release to go back to" in line for line in logged)
        last = [value for name, value in zip(names, given, strict=True) if name == "state"][-1]
        assert (last["state"], last["active"]) == ("failed", False)
        read = Reader(client.get(page).text)
        assert f"sightline releases {site} rollback" in read.text
        assert "Try again" in read.text
        assert "no release to go back to" in read.text
        assert "Go back to the release before" in Reader(client.get("/studio/jobs").text).text
        assert client.get("/studio/jobs/nothing").status_code == 404
        assert post(client, page + "/stop").status_code == 303  # it has ended: nothing happens
    with open_studio(site, signed_in=False) as client:
        assert client.get(page + "/events").status_code == 401


WRONG = (
    ("improve", {"minimum": "--help"}, "The field 'minimum'"),
    ("improve", {"allowance": "--help"}, "The allowance is '--help'"),
    ("promote", {"number": "7"}, "There is no release 7"),
    ("promote", {}, "There is no release 0"),
    ("compare-releases", {"first": "a", "second": "2"}, "The field 'first'"),
    ("nothing", {}, "There is no such action"),
)


def test_a_wrong_field_is_named_and_starts_nothing(tmp_path):
    with open_studio(tmp_path / "site") as client:
        for name, fields, sentence in WRONG:
            answer = post(client, f"/studio/run/{name}", **fields)
            assert answer.status_code in (404, 422)
            assert sentence in Reader(answer.text).text
        assert not (tmp_path / "site" / "studio" / "jobs").exists()


def test_a_form_shows_its_command_as_it_is_filled_in(tmp_path):
    with open_studio(tmp_path / "site") as client:
        shown = post(client, "/studio/run/improve/command", allowance="2", minimum="3").text
        assert "--allowance=0.02 --minimum=3" in Reader(shown).text
    assert {one.scope for one in ACTIONS.values()} == {"admin"}
