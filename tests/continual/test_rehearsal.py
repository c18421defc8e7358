"""What surrounds a training on remembered images: shares, shrinking, batch norms, the balanced head, GDumb's recipe."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sightline.continual import GDumb, Past, Replay, Retraining, Task
from sightline.continual.rehearsal import HEAD_PENALTY, fit_balanced_head, shrink_and_perturb
from sightline.continual.strategy import mix_images
from sightline.data import load_dataset, to_tensor
from sightline.inference import embed
from sightline.sources import find
from sightline.training import Recipe, build_classifier, resolve
from sightline.types import Geometry, Splits


@pytest.fixture(scope="module")
def images():
    return load_dataset(find("digits", limit=60), Geometry(size=(8, 8), channels=1))


def make_task(images, model, old, new):
    recipe = Recipe(model=model, lr=0.05, batch_size=8, epochs=2, size=8, channels=1, augment=())
    plan = resolve(recipe).fit_to(images)
    classifier, _ = build_classifier(plan, Splits(images, images, images), torch.device("cpu"))
    parts = [images.subset(np.isin(images.labels, labels)) for labels in (old, new)]
    past = Past(images=parts[0], tasks=np.zeros(len(parts[0]), np.int64))
    return Task(classifier=classifier, previous=classifier, new=parts[1], past=past, plan=plan, memory_size=50)


@pytest.mark.parametrize(
    ("old", "new", "share"),
    [
        (range(8), [8, 9], 0.2),  # every class equally often
        (range(10), range(10), 0.5),  # of known classes: old and new images half and half
        (range(4), [3, 4], 0.3),  # 1.5 of five classes
    ],
)
def test_the_new_images_share_of_a_step(images, old, new, share):
    assert Replay().new_share(make_task(images, "mlp", list(old), list(new))) == pytest.approx(share)


def test_shrunk_weights_get_small_noise(images):
    classifier = make_task(images, "mlp:hidden=[200]", [0], [1]).classifier
    before = copy.deepcopy(classifier.network)
    shrink_and_perturb(classifier, 0.6, seed=3)
    noise = torch.cat(
        [
            (b - 0.6 * a).flatten()
            for a, b in zip(before.parameters(), classifier.network.parameters(), strict=True)
        ]
    )
    assert noise.std().item() == pytest.approx(0.01, rel=0.05)
    assert abs(noise.mean().item()) < 1e-3


def test_the_head_minimises_the_balanced_loss_and_nothing_else_changes(images):
    task = make_task(images, "mlp:hidden=[20]", list(range(8)), [8, 9])
    uneven = images.subset(np.flatnonzero((images.labels > 2) | (np.arange(len(images)) % 3 == 0)))
    classifier = task.classifier
    before = {name: value.clone() for name, value in classifier.network.state_dict().items()}
    centre = [p.detach().clone() for p in classifier.network.head.parameters()]
    fit_balanced_head(classifier, uneven)
    head = classifier.network.head
    for name, value in classifier.network.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith("head"))
    logp = F.log_softmax(head(torch.from_numpy(embed(classifier, uneven))), 1)
    labels = torch.from_numpy(uneven.labels)
    recalls = [-logp[labels == k, k].mean() for k in range(10)]  # each class weighs as much
    pull = sum((p - c).square().sum() for p, c in zip(head.parameters(), centre, strict=True))
    gradient = torch.autograd.grad(torch.stack(recalls).mean() + HEAD_PENALTY / 2 * pull, [*head.parameters()])
    assert max(g.abs().max().item() for g in gradient) < 1e-3


def test_batch_norms_get_the_statistics_of_old_and_new_images(images):
    task = make_task(images, "resnet20", list(range(8)), [8, 9])
    Replay().finish(task)
    mixture = mix_images(task)
    assert set(np.unique(mixture.labels)) == set(range(10))
    norm = next(m for m in task.classifier.modules() if isinstance(m, torch.nn.BatchNorm2d))
    seen = []
    hook = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        task.classifier.eval()(to_tensor(mixture[:]))
    hook.remove()
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)), rtol=1e-3, atol=1e-4)


def test_gdumb_has_its_authors_recipe(images):
    plan = make_task(images, "mlp", [0], [1]).plan
    recipe = GDumb(cutmix=True).adjust(plan).recipe
    assert (recipe.lr, recipe.batch_size, recipe.epochs, recipe.momentum) == (0.05, 16, 128, 0.9)
    assert (recipe.weight_decay, recipe.clip_grad, recipe.schedule) == (1e-6, 10.0, "restarts")
    assert recipe.augment == ("shift:1", "cutmix:p=0.5")
    assert Retraining().adjust(plan).recipe.epochs == 10


def test_retraining_remembers_everything(images):
    task = make_task(images, "mlp", [0, 1], [2])
    assert len(Retraining().remember(task)) == len(task.past) + len(task.new)
    assert len(Replay().remember(task)) <= 50
