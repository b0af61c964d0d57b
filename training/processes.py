"""The processes of a run: one, or as many as torchrun started. What they exchange adds up to what one would compute."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    """rank: of this one.   count: how many there are.   device: what this one computes on."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this one writes the files and the log."""
        return self.rank == 0

    def share(self, rows: int) -> range:
        """This process's rows of a batch. rows must be a multiple of the number of processes."""
        size = rows // self.count
        return range(self.rank * size, (self.rank + 1) * size)

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """The parts of all processes, one after another. No gradient flows through it."""
        if self.count == 1:
            return part.detach()
        if not part.numel():
            return part.new_empty(self.count * len(part), *part.shape[1:])
        parts = [torch.empty_like(part) for _ in range(self.count)]
        dist.all_gather(parts, part.detach().contiguous())
        return torch.cat(parts)

    def add_up(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the processes."""
        if self.count > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            dist.barrier()

    def leave(self) -> None:
        """End the group: a process that just ends may do so while its threads still talk to the others."""
        if self.count > 1:
            dist.destroy_process_group()


def device_alone() -> str:
    """What a command of one process computes on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def join_processes() -> Processes:
    """Join the group that torchrun's variables describe; without them this process is alone."""
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if count > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo")
    return Processes(rank, count, device)
