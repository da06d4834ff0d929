"""Resumable checkpoints of one training run."""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn, optim

from infotok.distributed import World
from infotok.errors import InfotokError
from infotok.tensors import fill, load_tensors, module_tensors, read_tensors, trained_tensors, whole, write_tensors

log = logging.getLogger("infotok")


class Checkpoints:
    """The resumable state of one training run in a folder of its own.

    Files `step-<n>.safetensors` with weights, optimizer moments and the moving average, whose headers hold the history
    up to that step: the newest two, so that damage to one costs little. The folder belongs to one configuration and one
    state of the code (its name holds both) and goes away when the run has ended well.

    frozen: keep parameters that are not trained too. Without them whoever resumes brings them along.
    """

    KEPT = 2
    NAMES = "step-*.safetensors"
    by_all = False  # whether all processes write a checkpoint together

    def __init__(self, folder: Path, frozen: bool = True):
        self.folder, self.frozen = folder, frozen

    def latest(self) -> Path | None:
        """The newest checkpoint."""
        return max(self.folder.glob(self.NAMES), default=None)

    def save(
        self,
        step: int,
        module: nn.Module,
        optimizer: optim.Optimizer,
        ema: dict[str, Tensor],
        history: list[dict],
        pending: list[dict[str, float]],
        extra: dict[str, Tensor] | None = None,
    ) -> Path:
        """Write the state after `step` steps; older checkpoints but one go once it stands. pending: the values of the
        steps since the last line of the history, which the next line averages. extra: further tensors to bring back.

        Raises:
            InfotokError: it cannot be written; earlier checkpoints stay.
        """
        tensors = {f"model/{name}": tensor for name, tensor in self._kept(module).items()}
        tensors |= {f"ema/{name}": tensor for name, tensor in ema.items()}
        tensors |= {f"extra/{name}": tensor for name, tensor in (extra or {}).items()}
        for index, parameter in enumerate(parameters_of(optimizer)):
            for name, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{index}/{name}"] = value
        target = self.folder / f"step-{step:08d}.safetensors"
        self._write(target, tensors, {"step": step, "history": history, "pending": pending})
        return target

    def _write(self, target: Path, tensors: dict[str, Tensor], meta: dict) -> None:
        write_tensors(target, tensors, meta)
        self._thin_out()

    def restore(
        self,
        module: nn.Module,
        optimizer: optim.Optimizer,
        ema: dict[str, Tensor],
        extra: dict[str, Tensor] | None = None,
    ) -> tuple[int, list[dict], list[dict[str, float]]]:
        """Load the newest good checkpoint, if any, in place; returns (steps done, history so far, pending).

        A checkpoint can be made again, so a damaged one is set aside with a warning, and what a killed writer left
        goes away.

        Raises:
            InfotokError: the checkpoint is whole and fits another architecture.
        """
        self._clean()
        while path := self.latest():
            if found := self._read(path):
                break
        else:
            return 0, [], []
        (tensors, meta), remedy = found, "delete it to train again from the start"
        model = {n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")}
        load_tensors(self._kept(module), model, path, remedy)
        for prefix, own in (("ema", ema), ("extra", extra or {})):
            for name in own:
                fill(own[name], tensors[f"{prefix}/{name}"])
        for index, parameter in enumerate(parameters_of(optimizer)):
            prefix = f"optimizer/{index}/"
            state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            if state:
                for name, value in state.items():
                    moment = value.to(parameter.device)
                    if name != "step":  # in the parameter's own layout of memory, over which a fused optimizer walks
                        moment = torch.empty_like(parameter, dtype=value.dtype)
                        fill(moment, value)
                    optimizer.state[parameter][name] = moment
        return meta["step"], meta["history"], meta["pending"]

    def _kept(self, module: nn.Module) -> dict[str, Tensor]:
        return module_tensors(module) if self.frozen else trained_tensors(module)

    def _read(self, path: Path) -> tuple[dict[str, Tensor], dict] | None:
        """A checkpoint's content; None once it is set aside for its damage."""
        try:
            return read_tensors(path, f"it is set aside as {aside_of(path).name}")
        except InfotokError as error:
            with suppress(FileNotFoundError):  # another process that trains with this one did it
                os.replace(path, aside_of(path))
            self._warn(str(error))
            return None

    def _warn(self, complaint: str) -> None:
        older = self.latest()
        log.warning("%s, and training goes on from %s", complaint, older.name if older else "the start")

    def _thin_out(self) -> None:
        """Older checkpoints than the newest go."""
        for old in sorted(self.folder.glob(self.NAMES))[: -self.KEPT]:
            remove(old)

    def _clean(self) -> None:
        """What a killed writer left goes."""
        for left in self.folder.glob("*.tmp"):
            remove(left)

    def clear(self) -> None:
        """Remove the folder after a run that ended well; of several processes the first is to call this."""
        remove(self.folder)


class GatheredCheckpoints(Checkpoints):
    """Of a network that is sharded over processes, which all write them together: the same files as those of one
    process, from which any number of processes goes on, sharded or not."""

    by_all = True

    def __init__(self, folder: Path, world: World):
        super().__init__(folder)
        self.world = world

    def _write(self, target: Path, tensors: dict[str, Tensor], meta: dict) -> None:
        """One tensor after the other is gathered, and leaves the device for the memory of the first process."""
        gathered = {}
        for name, tensor in tensors.items():
            full = whole(tensor)
            if self.world.first:
                gathered[name] = full.cpu()
        if self.world.first:
            super()._write(target, gathered, meta)


def aside_of(path: Path) -> Path:
    """Where a damaged checkpoint is put."""
    return path.with_name(f"{path.name}.damaged")


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def parameters_of(optimizer: optim.Optimizer) -> list[nn.Parameter]:
    """Of all groups, in the order that checkpoints number them in."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
