"""The plain way, as PyTorch's tutorials have it: ImageFolder, torchvision transforms, DataLoader, a loop."""

import torch
from networks import parameters
from pytorch_peers import images, network, sgd
from task import BATCH, Answer, Asked, Clock, main


def run(asked: Asked) -> Answer:
    """Train until the clock stops; ``plain+`` is this with another precision and layout."""
    loader = torch.utils.data.DataLoader(
        images(asked), BATCH, shuffle=True, num_workers=asked.workers, drop_last=True
    )
    model = network(asked).train()
    optimizer = sgd(model)
    criterion = torch.nn.CrossEntropyLoss()
    layout = torch.channels_last if asked.layout == "channels_last" else torch.contiguous_format
    clock = Clock(asked)
    for pixels, labels in loader:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=asked.precision == "bfloat16"):
            loss = criterion(model(pixels.contiguous(memory_format=layout)), labels)
        loss.backward()
        optimizer.step()
        if clock.tick():
            break
    return Answer(clock.rate, parameters(model))


if __name__ == "__main__":
    main("torch", run)
