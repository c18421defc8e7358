"""Ours: ``sightline train FOLDER --budget Nm``, with its report, then the run's predictions."""

from minutes import Answer, Asked, main

import sightline
import sightline.evaluation
import sightline.training  # the command imports them when it needs them; here before the clock, as for every side
from sightline.cli import main as command
from sightline.models.timm_network import import_timm

import_timm()


def run(asked: Asked) -> Answer:
    """The command as a user gives it; the embedded weights are those of the file."""
    words = ["train", str(asked.folder), "--budget", f"{asked.minutes:g}m"]
    done = command([*words, "--out", str(asked.place / "run")])
    if done:
        raise SystemExit(done)
    found = sightline.load(asked.place / "run").predict(asked.images("test"), top=1)
    return Answer([str(each.label) for each in found], f"sightline train DATA --budget {asked.minutes:g}m")


if __name__ == "__main__":
    main("sightline", run)
