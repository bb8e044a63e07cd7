"""The processes that train together, one a device, as torchrun starts them."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from fastselfie.errors import LocalError, UserError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among its peers.

    Attributes:
        rank, size: which of how many. local_rank, local_size: likewise on this machine. device: the one that this
            process trains on.
        distributed: whether torchrun started it; one process alone may be, too.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device
    distributed: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """``tensor`` summed over all processes, in place."""
        if self.distributed:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.distributed:
            dist.barrier()

    def gather(self, tensor: Tensor) -> Tensor:
        """Every process's ``tensor`` (equal shapes), along a new first dimension in order of rank."""
        if not self.distributed:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor)
        return torch.stack(parts)

    def gather_objects(self, value: T) -> list[T]:
        """Every process's ``value``, a plain one, in order of rank."""
        values = [value] * self.size
        if self.distributed:
            dist.all_gather_object(values, value)
        return values

    def in_main(self, work: Callable[[], T]) -> T:
        """Do ``work`` in the main process alone; its result, a plain value, or its refusal is everyone's.

        Raises:
            UserError, OSError: ``work`` raised it.
        """
        outcome: list[object] = [None, None]
        if self.is_main:
            try:
                outcome[0] = work()
            except (UserError, OSError) as error:
                outcome[1] = error
        if self.distributed:
            dist.broadcast_object_list(outcome, src=0)
        if isinstance(outcome[1], LocalError) and not self.is_main:
            raise UserError(str(outcome[1]))  # the main process speaks for itself
        if isinstance(outcome[1], (UserError, OSError)):
            raise outcome[1]
        return cast(T, outcome[0])


@contextmanager
def join_world(device_kind: str) -> Iterator[World]:
    """Join the process group that torchrun's environment describes, or be alone without one.

    Both gloo and NCCL groups exist with CUDA: collectives on CPU tensors do not stall the device. Leaves through
    ``destroy_process_group``, else torchrun reports failure. Not after an exception, which may be this process's alone:
    NCCL would wait there for the others, who are in the middle of a collective, and nobody would hear of it.

    Raises:
        UserError: there are more processes on this machine than CUDA devices.
    """
    launched = "WORLD_SIZE" in os.environ
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local_rank, local_size = (int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    device = torch.device("cpu")
    if device_kind == "cuda":
        there = torch.cuda.device_count()
        if local_rank >= there:
            raise UserError(
                f"--nproc-per-node: there is no CUDA device for process {local_rank}; this machine has {there}"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if launched:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    world = World(
        rank=rank, size=size, local_rank=local_rank, local_size=max(local_size, 1), device=device, distributed=launched
    )
    yield world
    if launched:
        world.barrier()
        gc.collect()  # DDP lies in a reference cycle and would keep the group's threads
        dist.destroy_process_group()
