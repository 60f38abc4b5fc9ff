"""The processes that train together, one per device, as ``torchrun`` starts them, and how they stop."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor, nn

from psp_rt.errors import DeviceError, PspError

TIMEOUT = timedelta(hours=2)  # the others wait this long while the leader reads, measures and writes
GRACE_S = 1.0  # torchrun forwards the Ctrl-C that the terminal already delivered, so it arrives twice
STOPPING = b"\nstopping after this step, saving (Ctrl-C again: quit without saving)\n"


class Interrupted(PspError):
    """The run was stopped by the user, after its state was saved."""

    def __init__(self, images_seen: int, latest: Path) -> None:
        super().__init__(
            f"stopped after {images_seen} images; everything is saved in {latest}. "
            "Run the same command again to resume"
        )


@dataclass(frozen=True, kw_only=True)
class Team:
    """One process of those that train together. A process on its own is a team of one."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process reports and writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until every process has arrived here."""
        if self.size > 1:
            dist.barrier()

    def add_up(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors of every process with those of the leader."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def any_stopped(self, stop_requested: bool, *, step: int = 0, every: int = 1) -> bool:
        """Return whether a stop was requested in any process: all must stop at the same step.

        With several processes, asking waits for the GPU, so it is done only ``every`` few steps.
        """
        if self.size == 1:
            return stop_requested
        if step % every:
            return False
        return bool(self.add_up(torch.tensor(float(stop_requested), device=self.device)) > 0)

    def average_gradients(self, network: nn.Module) -> None:
        """Replace the gradients by their mean over all processes, in one transfer."""
        if self.size == 1:
            return
        gradients = [value.grad for value in network.parameters() if value.grad is not None]
        together = self.add_up(torch.cat([gradient.flatten() for gradient in gradients])) / self.size
        parts = together.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


@contextmanager
def joined(device: str) -> Iterator[Team]:
    """Take part in a team, and end together with its other processes.

    A process that exits early makes torchrun end the others, one of which may still be measuring or
    saving. After an error we do not wait: the others may hang, and torchrun ends them.

    Args:
        device: As for `join`.
    """
    team = join(device)
    try:
        yield team
        team.wait()
    except Interrupted:  # all stop at the same step
        team.wait()
        raise
    finally:
        if team.size > 1:
            dist.destroy_process_group()


def join(device: str) -> Team:
    """Return this process's place in the team, on the device "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        DeviceError: CUDA was requested and is not available.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    chosen = _choose_device(device, number=int(os.environ.get("LOCAL_RANK", "0")) if size > 1 else None)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=TIMEOUT)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return Team(device=chosen, rank=rank, size=size)


def _choose_device(name: str, *, number: int | None) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"the device is {name!r}; expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        device = torch.device("cuda", number if number is not None else device.index or 0)
        if (device.index or 0) >= torch.cuda.device_count():
            raise DeviceError(
                f"{device} is not available: torch finds {torch.cuda.device_count()} CUDA devices; "
                "install a torch for your driver (https://pytorch.org), or train with --device cpu"
            )
    return device


@contextmanager
def stop_requests(*, answers: bool = True) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C was pressed or the process was asked to terminate.

    The first request is answered at once and takes effect after the step in progress, so that what is saved
    is a whole state. A second Ctrl-C ends the process immediately.

    Args:
        answers: Print the answer; one process of a team does.
    """
    requested_at: float | None = None

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal requested_at
        now = time.monotonic()
        if requested_at is not None and number == signal.SIGINT and now - requested_at >= GRACE_S:
            raise KeyboardInterrupt
        if requested_at is None and answers:
            os.write(2, STOPPING)  # print() may be what the signal interrupted
        requested_at = requested_at or now

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread receives signals
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested_at is not None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
