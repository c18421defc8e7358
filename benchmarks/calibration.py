"""How sure are these runs? ECE before and after the temperature, risk over coverage, conformal sets, on test
images.

    python benchmarks/calibration.py runs/mnist runs/cifar10 ...
    python benchmarks/calibration.py --quick

Each run is examined as ``sightline evaluate RUN --risk 0.01`` does; all chosen on its validation images.
``--quick`` trains a small network on the embedded digits first: a test of the script.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from record import record

from sightline.errors import DataError
from sightline.evaluation.uncertainty import evaluate_uncertainty_run
from sightline.training import Recipe, Run, reopen, train

ALPHAS = (0.01, 0.05, 0.1)


def main() -> None:
    """Every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--risk", type=float, default=0.01)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    if asked.quick:
        with tempfile.TemporaryDirectory() as place:
            made = train("digits", Recipe(model="lenet5", epochs=8), out=Path(place) / "digits")
            record("calibration_quick", {"digits": measured(made, 0.1)})
        return
    if not asked.runs:
        parser.error("name the runs to examine")
    record("calibration", {path.name: measured(reopen(path), asked.risk) for path in asked.runs})


def measured(run: Run, risk: float) -> dict[str, Any]:
    """The numbers of one run."""
    try:
        found = evaluate_uncertainty_run(run, risk=risk)
    except DataError as error:
        print(error)
        found = evaluate_uncertainty_run(run)
    names = ("n", "n_validation", "accuracy", "temperature", "ece", "ece_equal_mass", "mce", "aurc", "excess_aurc")
    sets = {f"{a:g}": evaluate_uncertainty_run(run, alpha=a)["conformal"]["kinds"] for a in ALPHAS}
    return {
        **{name: found[name] for name in names},
        "ece_interval": found["intervals"]["ece"],
        "at_temperature_1": found["uncalibrated"],
        "risk_at": found["risk_at"],
        "abstention": found["abstention"],
        "conformal": sets,
        "model": run.recipe.model,
    }


if __name__ == "__main__":
    main()
