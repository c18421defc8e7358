"""AutoGluon: ``MultiModalPredictor.fit`` with ``time_limit`` and its preset for small networks, medium_quality.

It reads a network from a folder of its own: the weights without their head, and a configuration with timm's card, from
which it takes size, mean and deviation.
"""

import json
from pathlib import Path

import pytorch_peers  # noqa: F401  # torchvision must be repaired first
import timm
import torch
from minutes import NETWORK, Answer, Asked, main
from safetensors.torch import load_file

# isort: split
import pandas
from autogluon.multimodal import MultiModalPredictor


def run(asked: Asked) -> Answer:
    """Fit within the time limit."""
    predictor = MultiModalPredictor(label="label", path=str(asked.place / "predictor"), verbosity=1)
    predictor.fit(
        train_data=table(asked, "train"),
        tuning_data=table(asked, "val"),
        time_limit=round(60 * asked.minutes),
        presets="medium_quality",
        hyperparameters={
            "model.names": ["timm_image"],
            "model.timm_image.checkpoint_name": str(checkpoint(asked)),
        },
    )
    found = predictor.predict(table(asked, "test").drop(columns="label"), as_pandas=False)
    recipe = f"fit(time_limit={60 * asked.minutes:g}, presets='medium_quality')"
    return Answer([str(label) for label in found], recipe)


def table(asked: Asked, part: str) -> pandas.DataFrame:
    """Paths and classes."""
    images = asked.images(part)
    return pandas.DataFrame({"image": [str(image) for image in images], "label": [i.parent.name for i in images]})


def checkpoint(asked: Asked) -> Path:
    """The folder it reads the network from."""
    place = asked.place / NETWORK
    place.mkdir()
    tensors = {k: v for k, v in load_file(asked.weights).items() if not k.startswith("classifier")}
    torch.save(tensors, place / "pytorch_model.bin")
    network = timm.create_model(NETWORK, num_classes=0)
    card = {key: network.default_cfg[key] for key in ("input_size", "mean", "std", "interpolation", "crop_pct")}
    words = {"architecture": NETWORK, "num_features": network.num_features, "pretrained_cfg": card}
    (place / "config.json").write_text(json.dumps(words))
    return place


if __name__ == "__main__":
    main("autogluon.multimodal", run)
