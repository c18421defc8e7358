"""Lightning: a module with a training step, a Trainer without loggers and bars, a DataLoader over a folder."""

import torch
from networks import parameters
from pytorch_peers import images, network, sgd
from task import BATCH, Answer, Asked, Clock, main
from torch import Tensor

# isort: split
# Only now: torchvision must be repaired first.
import lightning


class Task(lightning.LightningModule):
    """The network and how it is trained."""

    def __init__(self, asked: Asked):
        super().__init__()
        self.network = network(asked)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of a batch."""
        pixels, labels = batch
        return torch.nn.functional.cross_entropy(self.network(pixels), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD."""
        return sgd(self.network)


class Watch(lightning.Callback):
    """Ends training when the clock says so."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """One step is done."""
        trainer.should_stop = self.clock.tick()


def run(asked: Asked) -> Answer:
    """Train until the clock stops."""
    loader = torch.utils.data.DataLoader(
        images(asked),
        BATCH,
        shuffle=True,
        num_workers=asked.workers,
        drop_last=True,
        persistent_workers=asked.workers > 0,
    )
    clock, task = Clock(asked), Task(asked)
    trainer = lightning.Trainer(
        accelerator="cpu",
        precision="bf16-mixed" if asked.precision == "bfloat16" else "32-true",
        max_epochs=1,
        max_steps=clock.last,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Watch(clock)],
    )
    trainer.fit(task, loader)
    return Answer(clock.rate, parameters(task.network))


if __name__ == "__main__":
    main("lightning", run)
