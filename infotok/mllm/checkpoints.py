"""Resumable checkpoints of a sharded training: every process writes its part (`torch.distributed.checkpoint`)."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn, optim

from infotok.distributed import World
from infotok.errors import InfotokError
from infotok.training.checkpoints import Checkpoints, aside_of, parameters_of, remove

STATE = "state.json"  # steps, history and digests of the other files


class ShardedCheckpoints(Checkpoints):
    """Folders `step-<n>` in one that all processes see, of what is trained and of the optimizer's moments: the newest
    two."""

    NAMES = "step-????????"
    by_all = True

    def __init__(self, folder: Path, world: World):
        super().__init__(folder, frozen=False)
        self.world = world

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
        """As of `Checkpoints`, by all processes.

        Raises:
            InfotokError: one of them cannot write; earlier checkpoints stay.
        """
        import torch.distributed.checkpoint as dcp

        target = self.folder / f"step-{step:08d}"
        temporary = target.with_name(f"{target.name}.tmp")
        failed, digests = "", {}
        try:
            if self.world.first:
                remove(temporary)
                temporary.mkdir(parents=True)
        except OSError as error:
            failed = str(error)
        self._require(target, failed)  # before all write together
        try:
            dcp.save(self._state(module, optimizer), checkpoint_id=temporary)
            # What this process wrote; the first one's digest covers what describes them all.
            own = [*temporary.glob(f"__{self.world.rank}_*.distcp"), *([temporary / ".metadata"] * self.world.first)]
            digests = {file.name: _digest(file) for file in own}
        except (OSError, dcp.CheckpointException) as error:
            failed = str(error).strip().splitlines()[-1]
        everyone: list[Any] = [None] * self.world.size
        dist.all_gather_object(everyone, (failed, digests))
        failed = next((said for said, _ in everyone if said), "")
        if not failed and self.world.first:
            meta = {"step": step, "history": history, "pending": pending}
            meta["files"] = {name: digest for _, found in everyone for name, digest in found.items()}
            try:
                self._finish(temporary, target, meta)
            except OSError as error:
                failed = str(error)
        self._require(target, failed)
        return target

    def _require(self, target: Path, failed: str) -> None:
        """Raises InfotokError in all processes where one has failed."""
        if self.world.any(bool(failed)):
            reason = failed or "another process says why"
            raise InfotokError(f"{target}: cannot be written ({reason}); make room and run the same again")

    def _finish(self, temporary: Path, target: Path, meta: dict) -> None:
        """A checkpoint is there once it bears its name; older ones but one go."""
        (temporary / STATE).write_text(json.dumps(meta))
        remove(target)  # of a run that did not see it, as it was set aside
        os.replace(temporary, target)
        self._thin_out()

    def restore(
        self,
        module: nn.Module,
        optimizer: optim.Optimizer,
        ema: dict[str, Tensor],
        extra: dict[str, Tensor] | None = None,
    ) -> tuple[int, list[dict], list[dict[str, float]]]:
        """As of `Checkpoints`, by all processes."""
        import torch.distributed.checkpoint as dcp

        if self.world.first:
            self._clean()
        while path := self.latest():
            self._wait()  # until all have looked
            complaint = self._damage(path)
            if self.world.any(bool(complaint)):
                self._set_aside(path, complaint)
                continue
            meta = json.loads((path / STATE).read_text())
            kept: dict[str, Any] = dict(dcp.FileSystemReader(path).read_metadata().state_dict_metadata)
            state = self._state(module, optimizer)
            for index, parameter in enumerate(parameters_of(optimizer)):
                prefix = f"optimizer/{index}/"
                for name in (key.removeprefix(prefix) for key in kept if key.startswith(prefix)):
                    moment = torch.zeros_like(parameter)
                    if name == "step":
                        moment = torch.zeros((), device=parameter.device)
                    optimizer.state[parameter][name] = state[prefix + name] = moment
            odd = sorted(state.keys() ^ kept.keys()) or [n for n in kept if state[n].shape != kept[n].size]
            if odd:
                remedy = "delete it to train again from the start"
                raise InfotokError(f"{path}: does not fit this configuration (first at '{odd[0]}'); {remedy}")
            dcp.load(state, checkpoint_id=path)
            return meta["step"], meta["history"], meta["pending"]
        return 0, [], []

    def _state(self, module: nn.Module, optimizer: optim.Optimizer) -> dict[str, Any]:
        """By name the tensors themselves, which loading fills."""
        state: dict[str, Any] = {f"model/{name}": tensor.detach() for name, tensor in self._kept(module).items()}
        for index, parameter in enumerate(parameters_of(optimizer)):
            for name, value in optimizer.state.get(parameter, {}).items():
                state[f"optimizer/{index}/{name}"] = value
        return state

    def _damage(self, path: Path) -> str:
        """What is wrong with a checkpoint's files, of which each process reads some; nothing where they are whole."""
        try:
            files = json.loads((path / STATE).read_text())["files"]
            for name in sorted(files)[self.world.rank :: self.world.size]:
                if _digest(path / name) != files[name]:
                    return f"{path / name}: is damaged (its checksum does not match)"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{path}: is damaged ({str(error).splitlines()[0]})"
        return ""

    def _set_aside(self, path: Path, complaint: str) -> None:
        if self.world.first:
            remove(aside_of(path))
            os.replace(path, aside_of(path))
        self._wait()
        if complaint:
            self._warn(f"{complaint}; it is set aside as {aside_of(path).name}")

    def _wait(self) -> None:
        """Until all processes are here."""
        self.world.any(False)


def _digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
