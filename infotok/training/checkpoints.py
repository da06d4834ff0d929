"""Weights and resumable checkpoints as safetensors files whose header carries their JSON; no pickles."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn, optim

from infotok.errors import InfotokError

log = logging.getLogger("infotok")


def write_tensors(path: Path, tensors: dict[str, Tensor], meta: dict) -> None:
    """Write a whole safetensors file or nothing: to a temporary name, to the disk, then in place. The header holds
    `meta` and a digest of everything, since the format itself notices damage to its structure alone.

    Raises:
        InfotokError: it cannot be written, as on a full disk; what bore the name before is still there.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(meta)
    # One entry alone: safetensors writes several in random order, and equal runs must give equal bytes.
    header = {"json": json.dumps({"sha256": _digest(contiguous, text), "meta": text})}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(contiguous, temporary, metadata=header)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InfotokError(f"{path}: cannot be written ({reason}); make room and run the same again") from None
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict]:
    """Tensors and JSON of a file of `write_tensors`.

    Raises:
        InfotokError: the file is missing or damaged; `remedy` says what would help.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()["json"]  # noqa: SIM118
        header = json.loads(header)
        if header["sha256"] != _digest(tensors, header["meta"]):
            raise ValueError("its checksum does not match")
        return tensors, json.loads(header["meta"])
    except FileNotFoundError:
        raise InfotokError(f"{path}: is missing; {remedy}") from None
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise InfotokError(f"{path}: is damaged ({str(error).splitlines()[0]}); {remedy}") from None


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    """sha256 of names, types, shapes, values and the JSON text."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's state, tensors that share memory (tied embeddings) once."""
    seen, out = set(), {}
    for name, tensor in module.state_dict().items():
        if tensor.numel() and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        out[name] = tensor
    return out


def state_digest(module: nn.Module, step: int) -> str:
    """Hexadecimal digest of a module's state after a number of steps."""
    return _digest({name: tensor.detach().cpu() for name, tensor in module_tensors(module).items()}, str(step))


def load_module(module: nn.Module, tensors: dict[str, Tensor], path: Path, remedy: str) -> None:
    """Fill a module with the tensors of `module_tensors`.

    Raises:
        InfotokError: names or shapes do not belong to this module.
    """
    wanted = module_tensors(module)
    if wanted.keys() != tensors.keys() or any(wanted[n].shape != t.shape for n, t in tensors.items()):
        odd = sorted(wanted.keys() ^ tensors.keys()) or [n for n, t in tensors.items() if wanted[n].shape != t.shape]
        raise InfotokError(f"{path}: does not fit this configuration (first at '{odd[0]}'); {remedy}")
    module.load_state_dict(tensors, strict=False)


class Checkpoints:
    """The resumable state of one training run in a folder of its own.

    Files `step-<n>.safetensors` with weights, optimizer moments and the moving average, whose headers hold the history
    up to that step: the newest two, so that damage to one costs little. The folder belongs to one configuration and one
    state of the code (its name holds both) and goes away when the run has ended well.
    """

    KEPT = 2

    def __init__(self, folder: Path):
        self.folder = folder

    def latest(self) -> Path | None:
        """The newest checkpoint."""
        return max(self.folder.glob("step-*.safetensors"), default=None)

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
        tensors = {f"model/{name}": tensor for name, tensor in module_tensors(module).items()}
        tensors |= {f"ema/{name}": tensor for name, tensor in ema.items()}
        tensors |= {f"extra/{name}": tensor for name, tensor in (extra or {}).items()}
        for index, parameter in enumerate(_parameters(optimizer)):
            for name, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{index}/{name}"] = value
        target = self.folder / f"step-{step:08d}.safetensors"
        write_tensors(target, tensors, {"step": step, "history": history, "pending": pending})
        for old in sorted(self.folder.glob("step-*.safetensors"))[: -self.KEPT]:
            old.unlink()
        return target

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
        for left in self.folder.glob("*.tmp"):
            left.unlink(missing_ok=True)
        found = None
        while found is None:
            path = self.latest()
            if path is None:
                return 0, [], []
            found = self._read(path)
        (tensors, meta), remedy = found, "delete it to train again from the start"
        model = {n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")}
        load_module(module, model, path, remedy)
        for prefix, own in (("ema", ema), ("extra", extra or {})):
            for name in own:
                own[name].copy_(tensors[f"{prefix}/{name}"])
        for index, parameter in enumerate(_parameters(optimizer)):
            prefix = f"optimizer/{index}/"
            state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            if state:
                optimizer.state[parameter] = {
                    n: t.clone() if n == "step" else t.to(parameter.device).clone() for n, t in state.items()
                }
        return meta["step"], meta["history"], meta["pending"]

    def _read(self, path: Path) -> tuple[dict[str, Tensor], dict] | None:
        """A checkpoint's content; None once it is set aside for its damage."""
        aside = path.with_name(path.name + ".damaged")
        try:
            return read_tensors(path, f"it is set aside as {aside.name}")
        except InfotokError as error:
            with suppress(FileNotFoundError):  # another process that trains with this one did it
                os.replace(path, aside)
            older = self.latest()
            log.warning("%s, and training goes on from %s", error, older.name if older else "the start")
            return None

    def clear(self) -> None:
        """Remove the folder's own files after a run that ended well."""
        if self.folder.exists():
            for file in self.folder.iterdir():
                file.unlink()
            self.folder.rmdir()


def _parameters(optimizer: optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
