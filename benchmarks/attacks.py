"""PGD's steps per second against the least a step can cost, and beside two other ways to take it, in one run.

    python benchmarks/attacks.py [--rounds 15]

The least is the network forward and back to the pixels, weights at rest. `plain` is the loop of most tutorials
(loss.backward(), which fills the gradients of the weights too), `art` the toolbox's PyTorch PGD. Ten steps of one
batch, random images, the sides in turn; medians of the rounds' ratios. Below, what stopping where an image is
fooled saves: PGD-40 of a trained digits network at three sizes of eps.
"""

import argparse
import time
import warnings
from statistics import median

import numpy as np
import torch
from record import record
from torch.nn import functional as F

from sightline import runtime
from sightline.attacks import PGD
from sightline.classifier import Classifier, frozen_eval
from sightline.data.loader import to_tensor
from sightline.models import build, parse_architecture
from sightline.preprocessing import Preprocessing
from sightline.training import Recipe, train
from sightline.types import Geometry

CASES = {"lenet5": (1, 28, 256), "resnet20": (3, 32, 32)}
STEPS, EPS = 5, 8 / 255
STEP = 2.5 * EPS / STEPS


def main() -> None:
    """Time, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    found = {}
    with runtime.keep_freed_memory():
        for net in CASES:
            times = runtime.time_interleaved(sides(net), asked.rounds)
            least = times["forward and back"]
            found[net] = {
                "batch": CASES[net][2],
                "steps_per_second": {side: round(STEPS / median(took), 2) for side, took in times.items()},
                "speed_against_forward_and_back": {
                    side: round(median(a / b for a, b in zip(least, took, strict=True)), 3)
                    for side, took in times.items()
                },
            }
    record("attacks", found | {"stopping_early": stopping()})


def made(net: str) -> tuple[Classifier, torch.Tensor, torch.Tensor]:
    """A network in eval mode and a batch for it, in the layout that training uses."""
    torch.manual_seed(0)
    channels, size, count = CASES[net]
    plan = parse_architecture(net, classes=10, channels=channels, size=(size, size))
    classifier = Classifier(
        Preprocessing(),
        build(plan),
        architecture=plan,
        classes=tuple("0123456789"),
        geometry=Geometry(size=(size, size), channels=1 if channels == 1 else 3),
    )
    layout = torch.channels_last
    images = torch.rand(count, channels, size, size).contiguous(memory_format=layout)
    return classifier.to(memory_format=layout).eval(), images, torch.randint(10, (count,))


def sides(net: str):
    """What takes turns: each a function of five steps."""
    classifier, images, labels = made(net)
    attack = PGD(STEPS, step=STEP, random_start=False, early_stop=False)

    def least() -> None:
        with frozen_eval(classifier):
            for _ in range(STEPS):
                at = images.detach().requires_grad_()
                torch.autograd.grad(F.cross_entropy(classifier(at), labels), at)

    def plain() -> None:
        at = images.clone()
        for _ in range(STEPS):
            at = at.detach().requires_grad_()
            F.cross_entropy(classifier(at), labels).backward()
            at = at + STEP * at.grad.sign()
            at = torch.clamp(images + torch.clamp(at - images, -EPS, EPS), 0, 1)
            classifier.zero_grad()

    def ours() -> None:
        attack(classifier, images, labels, EPS)

    return {"forward and back": least, "ours": ours, "plain": plain, "art": toolbox(net)}


def toolbox(net: str):
    """The same five steps by the adversarial-robustness-toolbox, on a copy of the network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.attacks.evasion import ProjectedGradientDescentPyTorch
        from art.estimators.classification import PyTorchClassifier
    classifier, images, labels = made(net)
    channels, size, count = CASES[net]
    wrapped = PyTorchClassifier(
        classifier,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=(channels, size, size),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        wrapped, norm=np.inf, eps=EPS, eps_step=STEP, max_iter=STEPS, num_random_init=0, batch_size=count,
        verbose=False,
    )  # fmt: skip
    x, y = images.numpy(), labels.numpy()

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attack.generate(x, y)

    return run


def stopping() -> dict:
    """Seconds and robust accuracy of PGD-40 with and without leaving fooled images where they are."""
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        run = train("digits", Recipe(model="lenet5", size=28, epochs=10), out=f"{place}/run")
    test = run.splits.test
    images, labels = to_tensor(test[:]), torch.from_numpy(test.labels)
    found = {}
    for eps in (0.05, 0.1, 0.3):
        row = {}
        for stop in (True, False):
            started = time.perf_counter()
            moved = PGD(40, early_stop=stop)(run.classifier, images, labels, eps)
            row["stopping" if stop else "all steps"] = {
                "seconds": round(time.perf_counter() - started, 3),
                "accuracy": round((run.classifier(moved).argmax(1) == labels).float().mean().item(), 4),
            }
        found[f"eps {eps}"] = row
    return found


if __name__ == "__main__":
    main()
