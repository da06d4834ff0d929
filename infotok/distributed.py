"""Several processes that train one network together, each on its rows of every batch.

Together they do what one process does with the whole batch, but for the order in which floating-point numbers are
summed:

- random numbers of a step are drawn for the whole batch, of which a process keeps its rows (`infotok.random`);
- the loss is the average of the processes' losses, its gradient of their gradients, which
  `infotok.training.parallel` averages. A mean over images or tokens is as it is; one over numbers that differ among
  processes is weighted by them (`World.weighted`);
- what compares or counts images of a batch, as contrast, kernels and usage of the codebook do, every process computes
  from the rows of all (`World.gather`).

Without torchrun there is one process, `ALONE`, and nothing here computes anything.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from infotok.errors import InfotokError


@dataclass(frozen=True)
class World:
    """Process `rank` of `size`. device: where its tensors lie, None where alone."""

    rank: int = 0
    size: int = 1
    device: torch.device | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This process's rows of a batch of `count`, which the number of processes divides."""
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, (size * n, ...) from (n, ...) of each; `rows` where alone.

        Backward, a row has the sum of the processes' gradients, so that averaging those of parameters afterwards is
        right whatever each process computes from the rows.
        """
        if self.size == 1:
            return rows
        from torch.distributed.nn.functional import all_gather

        return torch.cat(all_gather(rows))

    @torch.no_grad()
    def average(self, value: Tensor) -> Tensor:
        """The mean over processes of a tensor of any shape, without gradient; `value` where alone."""
        if self.size == 1:
            return value
        total = value.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total / self.size

    def averages(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """`average` of named scalars, in one message."""
        if self.size == 1:
            return values
        stacked = torch.stack([value.detach().float().to(self.device) for value in values.values()])
        return dict(zip(values, self.average(stacked), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any of the processes."""
        if self.size == 1:
            return flag
        return bool(self.average(torch.tensor(float(flag), device=self.device)) > 0)

    def weighted(self, mean: Tensor, count: Tensor | int) -> Tensor:
        """A mean over `count` numbers of this process (scalar), scaled so that the average over processes is the mean
        over the numbers of all."""
        if self.size == 1:
            return mean
        own = torch.as_tensor(count, dtype=torch.float32, device=self.device)
        return mean * (own / self.average(own))

    def require_alike(self, digest: str) -> None:
        """Raises InfotokError where a hexadecimal digest of what training starts from is not that of all processes."""
        if self.size == 1:
            return
        marks = self.gather(torch.tensor([int(digest[:15], 16)], device=self.device))
        if marks.unique().numel() > 1:
            raise InfotokError(
                "the processes do not start from the same weights and step; let all of them see the same folders of "
                "results and of checkpoints (.ckpt)"
            )


ALONE = World()


def join(store: dist.Store, rank: int, size: int, device: torch.device) -> World:
    """Connect this process with the others, which must call this too: by NCCL between GPUs, else by Gloo."""
    # What PyTorch 2.13 names in its place is private, and versions before have it not.
    warnings.filterwarnings("ignore", r"torch\.distributed\.nn\.functional\.all_gather is deprecated", FutureWarning)
    cuda = device.type == "cuda"
    backend, bound = ("nccl", device) if cuda else ("gloo", None)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, device_id=bound)
    return World(rank, size, device)


def leave() -> None:
    """Disconnect, if connected. Other processes may go on alone."""
    if dist.is_initialized():
        dist.destroy_process_group()
