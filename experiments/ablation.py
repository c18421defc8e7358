"""Papers 003 and 004: what each idea of the enhanced network brings, by leaving it out.

    python experiments/ablation.py [--images 10000] [--epochs 10] [--seeds 3] [--size 32] [--data FOLDER_OF_ZIPS]

The papers never measured it. CIFAR-10, the same images, order and augmentation within a seed. On two cores without
bfloat16 the full form takes about ten hours; smaller --images, --epochs and --size are recorded with the result.
Stopped, it goes on.
"""

from typing import Any

from common import arguments, changed, images, keep, mean, notebook, paired, told, trained

from sightline.training import Recipe

NETWORKS = {
    "enhanced": "enhanced",
    "without residual": "enhanced:residual=False",
    "without batch norm": "enhanced:batch_norm=False",
    "without dropout": "enhanced:dropout=0.0",
    "without multi-scale": "enhanced:multi_scale=False",
}
RECIPE = Recipe(augment=("flip", "shift:4"), lr=0.1, batch_size=128, clip_grad=1.0)
"""A clipped gradient, so that the network without batch norm can be trained at the same rate."""


def main() -> None:
    """Every network and seed."""
    asked = arguments(
        __doc__,
        images={"type": int, "default": 10_000},
        epochs={"type": int, "default": 10},
        size={"type": int, "default": 32},
    )
    book = notebook("ablation", asked)
    base = RECIPE.replace(epochs=asked.epochs, size=asked.size)
    lines: dict[str, list[dict[str, Any]]] = {name: [] for name in NETWORKS}
    for seed in range(asked.seeds):
        splits = None
        for name, model in NETWORKS.items():
            recipe = base.replace(seed=seed, model=model)
            key = {"images": asked.images, "recipe": told(recipe)}
            found = book.find(**key)
            if found is None:
                splits = splits or images(recipe, asked.data / "cifar10_jpg.zip", asked.images)
                found = book.add(trained(recipe, splits), **key)
                print(f"seed {seed} {name}: {found['test_accuracy']:.2%}", flush=True)
            lines[name].append(found)
    rows = {name: {"test": mean(found)} for name, found in lines.items()}
    for name in list(rows)[1:]:
        if asked.seeds > 1:
            rows[name]["against_enhanced"] = paired(lines[name], lines["enhanced"])
    keep("ablation", {"images": asked.images, "networks": rows, "recipe": changed(base)})


if __name__ == "__main__":
    main()
