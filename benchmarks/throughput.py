"""Training images/s: Sightline against the plain PyTorch way, on the same network, batch and augmentation.

The plain way is an image folder, torchvision's per-image transforms, a DataLoader with its best worker
count and an unfused SGD, as in the tutorials; `plain+` is the same given our precision and memory format.
Both sides are warm (files in the page cache, our store built), each run is a process of its own, and the
sides take turns, round by round. The plain way gets an environment of its own, made by this script.

    python benchmarks/throughput.py --data FOLDER_OF_ZIPS [--rounds 3] [--out benchmarks/results/throughput.json]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

CASES = {
    # network: (archive, size, channels, augmentation of ours, steps measured)
    "lenet5": ("mnist_png.zip", 28, 1, ("shift:2",), 150),
    "resnet20": ("cifar10_jpg.zip", 32, 3, ("flip", "shift:4"), 20),
}
BATCH = 128
WORKERS = (0, 2)


def main() -> None:
    """Unpack the folders, make the peer's environment, take turns, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder that holds mnist_png.zip and cifar10_jpg.zip"
    )
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sightline-benchmarks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nets", nargs="+", default=list(CASES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs=3, metavar=("SIDE", "NET", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        side, net, folder = asked.worker
        print(json.dumps(SIDES[side](net, Path(folder))))
        return
    peer = environment(asked.work / "plain")
    results = {net: compare(net, asked, peer) for net in asked.nets}
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(
            json.dumps({"machine": machine(), "command": command(), "results": results}, indent=2)
        )


def compare(net: str, asked: argparse.Namespace, peer: Path) -> dict:
    """Rounds of every side in turn; medians and ratios."""
    folder = unpack(asked.data / CASES[net][0], asked.work)
    sides = {"ours": (sys.executable, "ours")}
    sides |= {f"plain, {w} workers": (str(peer), f"plain{w}") for w in WORKERS}
    sides |= {f"plain+, {w} workers": (str(peer), f"tuned{w}") for w in WORKERS}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    precision = {}
    for number in range(asked.rounds):
        for name, (python, side) in sides.items():
            words = [python, __file__, "--data", str(asked.data), "--worker", side, net, str(folder)]
            given = os.environ | {"SIGHTLINE_TUNED": precision.get("ours", "")}
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=given)
            answer = json.loads(done.stdout.splitlines()[-1])
            rates[name].append(answer["images_per_second"])
            precision[name] = answer["precision"]
            rate = f"{answer['images_per_second']:9.0f} images/s"
            print(f"{net:9} round {number + 1} {name:20} {rate}  {answer['precision']}", flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = {kind: max(medians[f"{kind}, {w} workers"] for w in WORKERS) for kind in ("plain", "plain+")}
    ratios = {f"over {kind}": round(medians["ours"] / rate, 2) for kind, rate in best.items()}
    print(f"{net}: {', '.join(f'{ratio} times {kind}' for kind, ratio in ratios.items())}\n")
    return {"images_per_second": rates, "precision": precision, "median": medians, "ratios": ratios}


def ours(net: str, folder: Path) -> dict:
    """Our real loop over our real batches."""
    import torch

    from sightline.training import run as running
    from sightline.training.fit import State, fit
    from sightline.training.hooks import Watcher
    from sightline.training.optimizers import SCHEDULES, optimizer
    from sightline.training.recipe import Recipe

    steps = CASES[net][4]
    recipe, splits, _ = running.prepare(
        Recipe(data=str(folder), model=net, augment=CASES[net][3], batch_size=BATCH, lr=0.01)
    )
    classifier, _ = running.fresh(recipe, splits, torch.device("cpu"))
    objective = running._objective(recipe)
    recipe, _ = running._pace(recipe.replace(epochs=1), splits, classifier, objective)
    method = running.method_of(recipe, splits, torch.device("cpu"), objective)
    running.pace.to_layout(classifier, recipe.memory_format)

    class Clock(Watcher):
        started = 0.0

        def after_step(self, state: State) -> None:
            if state.batch == steps // 4:
                self.started = time.perf_counter()
            if state.batch == steps // 4 + steps:
                self.took = time.perf_counter() - self.started
                state.interrupted = True

    clock = Clock()
    state = State(classifier, optimizer(classifier, recipe), 1, method.steps_per_epoch)
    fit(
        state,
        objective,
        method.batches,
        SCHEDULES["constant"](0.0),
        0.01,
        validate=lambda: (0.0, 0.0),
        bfloat16=recipe.precision == "bfloat16",
        hooks=[clock],
    )
    return {
        "images_per_second": steps * BATCH / clock.took,
        "precision": f"{recipe.precision} {recipe.memory_format}",
    }


def plain(net: str, folder: Path, workers: int, tuned: bool) -> dict:
    """The tutorial's loop."""
    import torch

    if (
        sys.modules.get("torchvision") is None
    ):  # beside a CPU build, torchvision wants two operators that are not there
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    from sightline.models import architecture, build

    _, size, channels, _, steps = CASES[net]
    chain = [transforms.Grayscale()] if channels == 1 else [transforms.RandomHorizontalFlip()]
    chain += [transforms.RandomCrop(size, padding=2 if channels == 1 else 4), transforms.ToTensor()]
    chain += [transforms.Normalize((0.5,) * channels, (0.25,) * channels)]
    images = ImageFolder(str(folder / "train"), transforms.Compose(chain))
    loader = torch.utils.data.DataLoader(
        images, BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    network = build(architecture(net, classes=10, channels=channels, size=(size, size)))
    layout = torch.contiguous_format
    bfloat16 = False
    if tuned:
        chosen = os.environ["SIGHTLINE_TUNED"].split()
        bfloat16, layout = chosen[0] == "bfloat16", torch.channels_last if chosen[1] == "channels_last" else layout
        network = network.to(memory_format=layout)
    moves = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    criterion = torch.nn.CrossEntropyLoss()
    network.train()
    for step, (pixels, labels) in enumerate(loader, 1):
        moves.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = criterion(network(pixels.contiguous(memory_format=layout)).float(), labels)
        loss.backward()
        moves.step()
        if step == steps // 4:
            started = time.perf_counter()
        if step == steps // 4 + steps:
            break
    took = time.perf_counter() - started
    precision = (
        f"{'bfloat16' if bfloat16 else 'float32'} {str(layout).removeprefix('torch.').removesuffix('_format')}"
    )
    return {"images_per_second": steps * BATCH / took, "precision": precision}


SIDES = {"ours": ours}
for _workers in WORKERS:
    SIDES[f"plain{_workers}"] = lambda net, folder, w=_workers: plain(net, folder, w, tuned=False)
    SIDES[f"tuned{_workers}"] = lambda net, folder, w=_workers: plain(net, folder, w, tuned=True)


def unpack(archive: Path, work: Path) -> Path:
    """The archive as a folder of files, once."""
    folder = work / archive.stem
    if not (folder / "done").exists():
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder)
        (folder / "done").touch()
    inner = [p for p in folder.iterdir() if p.is_dir()]
    return folder if (folder / "train").is_dir() else inner[0]


def environment(place: Path) -> Path:
    """A Python of its own with torchvision, over the torch that is installed here."""
    python = place / "bin" / "python"
    if not (place / "done").exists():
        venv.create(place, with_pip=True)
        site = next(place.glob("lib/python*/site-packages"))
        ours = [str(Path(__file__).parents[1] / "src"), *(p for p in sys.path if "site-packages" in p)]
        (site / "here.pth").write_text("\n".join(ours))
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "torchvision>=0.26,<0.29"], check=True)
        (place / "done").touch()
    return python


def machine() -> dict:
    """What the figures were measured on."""
    from sightline import runtime

    return runtime.environment()


def command() -> str:
    """How to repeat it."""
    nets = sys.argv[sys.argv.index("--nets") + 1 :] if "--nets" in sys.argv else []
    return " ".join(["python benchmarks/throughput.py --data FOLDER_OF_ZIPS", *(w for w in nets if w in CASES)])


if __name__ == "__main__":
    main()
