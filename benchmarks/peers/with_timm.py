"""timm: its folder reader, its loader with the prefetcher that its training script uses, its SGD.

timm's own augmentation resizes; ours is put in its place, so that the task is the same. Images stay uint8
until the batch, as timm likes it.
"""

import torch
from networks import parameters
from pytorch_peers import network, transforms
from task import BATCH, LR, MEAN, MOMENTUM, STD, WEIGHT_DECAY, Answer, Asked, Clock, main

# isort: split
# Only now: torchvision must be repaired first.
from timm.data import create_dataset, create_loader
from timm.data.transforms import ToNumpy
from timm.optim import create_optimizer_v2
from torchvision.transforms import Compose


def run(asked: Asked) -> Answer:
    """Train until the clock stops."""
    case = asked.case
    mode = "L" if case.channels == 1 else "RGB"
    dataset = create_dataset("", root=str(asked.folder / "train"), split="train", input_img_mode=mode)
    loader = create_loader(
        dataset,
        input_size=(case.channels, case.size, case.size),
        batch_size=BATCH,
        is_training=True,
        mean=(MEAN,) * case.channels,
        std=(STD,) * case.channels,
        num_workers=asked.workers,
        persistent_workers=asked.workers > 0,
        device=torch.device("cpu"),
    )
    dataset.transform = Compose([*transforms(asked, tensors=False), ToNumpy()])
    model = network(asked).train()
    optimizer = create_optimizer_v2(model, opt="sgd", lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    criterion = torch.nn.CrossEntropyLoss()
    clock = Clock(asked)
    for pixels, labels in loader:
        loss = criterion(model(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if clock.tick():
            break
    return Answer(clock.rate, parameters(model))


if __name__ == "__main__":
    main("timm", run)
