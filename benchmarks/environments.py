"""What benchmarks need around them: each peer's own environment, and datasets as folders of files.

No peer is ever a dependency of ours: it is installed, at a stated version, into a folder of its own. All
peers built on PyTorch get the version of torch we are measured with; pip takes the build it is set up to find.
"""

import os
import random
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

_TORCH = ("torch==2.13.0", "torchvision==0.28.0")
_SERVING = ("onnxruntime==1.31.1", "simplejpeg==1.9.0", "numpy==2.4.6", "pillow==13.0.0")
_SERVING += ("uvicorn[standard]==0.54.0",)
"""What every service answers with: our runtime, our JPEG decoder, the fast event loop and HTTP parser."""

PINS: dict[str, tuple[str, ...]] = {
    "plain": _TORCH,
    "timm": (*_TORCH, "timm==1.0.31"),
    "lightning": (*_TORCH, "lightning==2.6.6"),
    "fastai": (*_TORCH, "fastai==2.8.12", "timm==1.0.31"),
    "skorch": (*_TORCH, "skorch==1.4.0"),
    "ultralytics": (*_TORCH, "ultralytics==8.4.190", "timm==1.0.31"),
    "autogluon": (*_TORCH, "autogluon.multimodal==1.6.3"),
    "keras": ("keras==3.15.1", "tensorflow-cpu==2.21.0"),
    "litserve": ("litserve==0.2.19", *_SERVING),
    "bentoml": ("bentoml==1.4.39", "fastapi==0.165.0", *_SERVING),
}
"""Peer -> what is installed for it. About 1 GB each; the services are smaller."""


class NotInstalled(Exception):
    """A peer that could not be installed: its row says so, and no ratio is made of it."""


def python_of(peer: str, work: Path) -> Path:
    """The Python of a peer's environment, made on first use; raises NotInstalled with pip's last words."""
    place = work / "environments" / peer
    python, done = place / "bin" / "python", place / "done"
    if not (done.exists() and done.read_text() == "\n".join(PINS[peer])):
        print(f"Installing {' '.join(PINS[peer])} into {place}", file=sys.stderr, flush=True)
        venv.create(place, with_pip=True, clear=True)
        said = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *PINS[peer]], check=False, capture_output=True, text=True
        )
        if said.returncode:
            raise NotInstalled(said.stderr.strip().splitlines()[-1])
        done.write_text("\n".join(PINS[peer]))
    return python


def unpack(archive: Path, work: Path) -> Path:
    """The archive as a folder of files with ``train`` and ``test`` in it, once."""
    folder, done = work / archive.stem, work / f"{archive.stem}.done"
    if not done.exists():
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder)
        done.touch()
    return folder if (folder / "train").is_dir() else next(p for p in folder.iterdir() if p.is_dir())


def set_aside(folder: Path, place: Path) -> Path:
    """The folder again, as links, with a tenth of each class's training images moved to ``val``."""
    done = place.with_name(f"{place.name}.done")
    if not done.exists():
        shutil.rmtree(place, ignore_errors=True)
        for kind in sorted((folder / "train").iterdir()) + sorted((folder / "test").iterdir()):
            files = sorted(kind.iterdir())
            parts = dict.fromkeys(files, kind.parent.name)
            if kind.parent.name == "train":
                parts |= dict.fromkeys(random.Random(0).sample(files, len(files) // 10), "val")
            for part in set(parts.values()):
                (place / part / kind.name).mkdir(parents=True, exist_ok=True)
            for file, part in parts.items():
                os.link(file, place / part / kind.name / file.name)
        done.touch()
    return place
