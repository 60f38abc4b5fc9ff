"""The processes that train together, one for each device, as ``torchrun`` starts them."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from psp_rt.errors import DeviceError
from trainer.loop.interruptions import Interrupted

LONGEST_WAIT = timedelta(hours=2)  # for the leader, who reads, measures and writes alone


@dataclass(frozen=True, kw_only=True)
class Team:
    """One process among those that train together; alone, it does nothing."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that reports and writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.size > 1:
            dist.barrier()

    def add_up(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the leader's tensors, in their place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def any_asked(self, asked: bool, *, step: int = 0, every: int = 1) -> bool:
        """Whether any process was asked to stop: one that stops alone leaves the others waiting.

        To ask each other waits for the GPU, so they may do it only ``every`` few steps.
        """
        if self.size == 1:
            return asked
        if step % every:
            return False
        return bool(self.add_up(torch.tensor(float(asked), device=self.device)) > 0)

    def average_gradients(self, network: nn.Module) -> None:
        """Give every process the mean gradient, in one transfer."""
        if self.size == 1:
            return
        gradients = [value.grad for value in network.parameters() if value.grad is not None]
        together = self.add_up(torch.cat([gradient.flatten() for gradient in gradients])) / self.size
        parts = together.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


@contextmanager
def joined(device: str) -> Iterator[Team]:
    """Take part, and end together with the other processes.

    One that ends early does not wait for the one that still measures and saves, and torchrun, where it
    fails on its way out, then ends that one, too. After an error nobody is waited for: the others may
    hang, and torchrun ends them.

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
        leave(team)


def join(device: str) -> Team:
    """Find this process's place and device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        DeviceError: CUDA was asked for and cannot be had.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    chosen = _device(device, number=int(os.environ.get("LOCAL_RANK", "0")) if size > 1 else None)
    if size > 1 and not dist.is_initialized():
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=LONGEST_WAIT)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return Team(device=chosen, rank=rank, size=size)


def leave(team: Team) -> None:
    """End what `join` began."""
    if team.size > 1:
        dist.destroy_process_group()


def _device(name: str, *, number: int | None) -> torch.device:
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
                f"{device} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices; "
                "install a torch for your driver (https://pytorch.org), or train with --device cpu"
            )
    return device
