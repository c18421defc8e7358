"""Several processes that train one classifier: PyTorch's distributed package, through Lightning Fabric.

Fabric is imported only where there is more than one process. Every process holds the whole classifier and
works on its share of each batch; gradients are averaged before the step, so all stay equal.
"""

import json
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import errors, runtime
from ..batches import Batch
from ..errors import RecipeError, SightlineError, WorkerLostError
from .gradients import Gradients, norm_statistics
from .losses import Objective


class MainGuardError(RecipeError):
    """The new processes ended before they began: the script that starts them cannot be run again."""

    def __init__(self) -> None:
        super().__init__(runtime.MAIN_GUARD)


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of one run, seen from one of them; without Fabric, a group of one."""

    fabric: Any = None
    exchange: Any = None
    """PyTorch's group of the exchanges of a training, which wait ``lost_seconds``; None: Fabric's, which wait long."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return 0 if self.fabric is None else self.fabric.global_rank

    @property
    def size(self) -> int:
        """How many processes there are."""
        return 1 if self.fabric is None else self.fabric.world_size

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def begin_training(self, classifier: nn.Module) -> "ProcessGroup":
        """Give every process the first one's classifier; then the group, to train it.

        Until here the processes wait for each other as long as reading the images takes. The exchanges of the group
        that is returned fail where a process is silent for ``lost_seconds``.
        """
        self.broadcast_state(classifier)
        if self.fabric is None:
            return self
        from torch.distributed import new_group

        return replace(self, exchange=new_group(timeout=timedelta(seconds=lost_seconds())))

    def averaging(self, gradients: Gradients, *modules: nn.Module) -> Gradients:
        """``gradients`` that end with one exchange: gradients of the modules and loss become the mean of the group.

        Raises WorkerLostError where a process ended.
        """
        if self.fabric is None:
            return gradients

        def averaged(objective: Objective, batch: Batch) -> Float[Tensor, ""]:
            loss = gradients(objective, batch)
            grads = [p.grad for module in modules for p in module.parameters() if p.grad is not None]
            *means, loss = self._mean([*grads, loss.float()])
            torch._foreach_copy_(grads, means)
            return loss

        return averaged

    def sync_norm_stats(self, *modules: nn.Module) -> None:
        """Make the running statistics of norms the mean over the group."""
        if self.fabric is not None and (statistics := norm_statistics(*modules)):
            torch._foreach_copy_(statistics, self._mean(statistics))

    def broadcast_state(self, module: nn.Module) -> None:
        """Give every process the first one's tensors.

        What each has worked out for itself may differ by rounding, and a rounding may turn an eigenvector's sign.
        """
        if self.fabric is not None:
            module.load_state_dict(self.fabric.broadcast(module.state_dict()))

    def sum(self, values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The sum over the group. Raises WorkerLostError."""
        return values if self.fabric is None else self._reduce(values, "sum")

    def broadcast_text(self, text: str) -> str:
        """The first process's text, in every process."""
        return text if self.fabric is None else self.fabric.broadcast(text)

    def any(self, flag: bool, step: int, *, every: int = 50) -> bool:
        """Whether any process has set its flag; asked every few steps where asking makes an accelerator wait."""
        if self.fabric is None:
            return flag
        device = self.fabric.device
        if device.type != "cpu" and step % every:
            return False
        return bool(self._reduce(torch.tensor(float(flag), device=device), "sum").item())

    def _mean(self, tensors: list[Tensor]) -> list[Tensor]:
        flat = self._reduce(torch.cat([t.detach().flatten() for t in tensors]), "mean")
        pieces = flat.split([t.numel() for t in tensors])
        return [piece.view(t.shape) for piece, t in zip(pieces, tensors, strict=True)]

    def _reduce(self, values: Tensor, how: str) -> Tensor:
        try:
            return self.fabric.all_reduce(values, group=self.exchange, reduce_op=how)
        except RuntimeError as error:
            if self.exchange is not None and "timed out" in str(error).lower():
                raise WorkerLostError(
                    f"A process or host of this run did not answer for {lost_seconds():g} s, so all of them stopped."
                ) from error
            raise WorkerLostError() from error


SINGLE_PROCESS = ProcessGroup()

LOST_SECONDS = 120.0
"""Seconds without an answer after which a process counts as lost: far longer than a step, its checkpoint or a
validation takes to reach all, and short enough not to waste an hour of many machines. A process that ends is
noticed at once; this is for a machine or network that falls silent."""


def lost_seconds() -> float:
    """``LOST_SECONDS``, or the variable SIGHTLINE_LOST_SECONDS. Raises RecipeError where that is no time."""
    text = os.environ.get("SIGHTLINE_LOST_SECONDS", "")
    try:
        seconds = float(text or LOST_SECONDS)
    except ValueError:
        seconds = float("nan")
    if not 5 <= seconds <= 86_400:
        raise RecipeError(f"SIGHTLINE_LOST_SECONDS is '{text}': give seconds from 5 to 86400, such as 120.")
    return seconds


def check_processes(processes: int, device: torch.device, batch_size: int) -> None:
    """Raise RecipeError where a batch is smaller than the number of processes, or there are fewer GPUs.

    MainGuardError where the script comes from stdin, so that no new process can import it.
    """
    if processes == 1:
        return
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is not None and not Path(script).exists():
        raise MainGuardError()
    if device.type == "mps":
        raise RecipeError("Several processes need CUDA GPUs or the CPU: use --devices 1 with mps.")
    here = int(os.environ["LOCAL_WORLD_SIZE"]) if "LOCAL_WORLD_SIZE" in os.environ else processes
    if device.type == "cuda" and torch.cuda.device_count() < here:
        raise RecipeError(f"--devices {here} needs as many GPUs, and here are {torch.cuda.device_count()}.")
    if batch_size % processes:
        raise RecipeError(f"A batch of {batch_size} cannot be shared evenly by {processes} processes: change one.")


def is_under_launcher() -> bool:
    """Whether torchrun (or another launcher) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ


def launcher_words() -> str:
    """What goes before a command that continues this run: nothing, or the launcher."""
    return "torchrun ... --no-python " if is_under_launcher() else ""


def is_secondary() -> bool:
    """Whether a launcher started this process, and another one writes and speaks."""
    return is_under_launcher() and os.environ.get("RANK", "0") != "0"


def group_from_env(device: torch.device, processes: int | None = None) -> ProcessGroup:
    """The group that torchrun started this process in, on one host or several.

    Raises RecipeError where it is not of this many ``processes``, or its hosts have different numbers of them.
    """
    total = int(os.environ["WORLD_SIZE"])
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(total)))
    lost_seconds()  # refused before anything waits
    if processes not in (None, total):
        raise RecipeError(
            f"This run trains with {processes} processes, and {total} were started: start {processes}."
        )
    if total % here:
        raise RecipeError(f"This host has {here} of {total} processes: give every host the same --nproc-per-node.")
    return ProcessGroup(_make_fabric(device, here, "ddp", hosts=total // here))


def launch_processes(work: Callable[..., object], processes: int, device: torch.device, *arguments: Any) -> None:
    """Call ``work(group, *arguments)`` in this many new processes and wait for them.

    ``work`` and its arguments travel by pickle to processes of this machine and no further. The SightlineError
    of the first process to fail is raised here; where one is lost without a message, WorkerLostError, and
    MainGuardError where none began.
    """
    try:
        pickle.dumps((work, arguments))
    except Exception as error:
        raise RecipeError(f"What trains in several processes must be picklable: {error}.") from error
    fabric = _make_fabric(device, processes, "ddp_spawn")
    with TemporaryDirectory(prefix="sightline-group-") as letters, _ignore_interrupts():
        threads = torch.get_num_threads()
        try:
            fabric.launch(_run_worker, work, letters, max(1, threads // processes), arguments)
        except Exception as error:  # torch's launcher has its own kinds
            lost = WorkerLostError() if any(Path(letters).iterdir()) else MainGuardError()
            raise _find_worker_error(Path(letters)) or lost from error
        if (found := _find_worker_error(Path(letters))) is not None:
            raise found


def _run_worker(
    fabric: Any, work: Callable[..., object], letters: str, threads: int, arguments: Iterable[Any]
) -> None:
    torch.set_num_threads(threads)
    (Path(letters) / f"{fabric.global_rank:05d}.begun").touch()
    try:
        work(ProcessGroup(fabric), *arguments)
    except SightlineError as error:  # raising it would end the others in the middle of saving
        letter = {"kind": type(error).__name__, "text": str(error)}
        (Path(letters) / f"{fabric.global_rank:05d}.json").write_text(json.dumps(letter))


def _find_worker_error(letters: Path) -> SightlineError | None:
    """The most telling error that a process left: any that is not about another one's end."""
    read = [json.loads(path.read_text()) for path in sorted(letters.glob("*.json"))]
    found = [vars(errors)[each["kind"]](each["text"]) for each in read]
    return next((e for e in found if not isinstance(e, WorkerLostError)), found[0] if found else None)


@contextmanager
def _ignore_interrupts() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal: the children save and end, and this one waits for them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _make_fabric(device: torch.device, processes: int, strategy: str, hosts: int = 1) -> Any:
    import logging
    import warnings

    for name in ("lightning_fabric", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator=device.type, devices=processes, num_nodes=hosts, strategy=strategy)
    if strategy == "ddp":
        fabric.launch()
    return fabric
