"""Weights and resumable checkpoints as safetensors files whose header carries their JSON; no pickles."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn, optim

from infotok.errors import InfotokError


def write_tensors(path: Path, tensors: dict[str, Tensor], meta: dict) -> None:
    """Write a whole safetensors file or nothing: to a temporary name, to the disk, then in place. The header holds
    `meta` and a digest of everything, since the format itself notices damage to its structure alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(meta)
    # One entry alone: safetensors writes several in random order, and equal runs must give equal bytes.
    save_file(contiguous, temporary, metadata={"json": json.dumps({"sha256": _digest(contiguous, text), "meta": text})})
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


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

    One file, `step-<n>.safetensors`, with weights, optimizer moments and the moving average; its header holds the
    history up to that step. The folder belongs to one configuration (its name holds the fingerprint) and goes away when
    the run has ended well.
    """

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
    ) -> None:
        """Write the state after `step` steps; older checkpoints go once it stands. pending: the values of the steps
        since the last line of the history, which the next line averages."""
        tensors = {f"model/{name}": tensor for name, tensor in module_tensors(module).items()}
        tensors |= {f"ema/{name}": tensor for name, tensor in ema.items()}
        for index, parameter in enumerate(_parameters(optimizer)):
            for name, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{index}/{name}"] = value
        target = self.folder / f"step-{step:08d}.safetensors"
        write_tensors(target, tensors, {"step": step, "history": history, "pending": pending})
        for old in self.folder.glob("step-*.safetensors"):
            if old != target:
                old.unlink()

    def restore(
        self, module: nn.Module, optimizer: optim.Optimizer, ema: dict[str, Tensor]
    ) -> tuple[int, list[dict], list[dict[str, float]]]:
        """Load the newest checkpoint, if any, in place; returns (steps done, history so far, pending).

        Raises:
            InfotokError: the newest checkpoint is damaged. Nothing is changed on the disk.
        """
        path = self.latest()
        if path is None:
            return 0, [], []
        remedy = "delete it to train again from the start"
        tensors, meta = read_tensors(path, remedy)
        model = {n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")}
        load_module(module, model, path, remedy)
        for name in ema:
            ema[name].copy_(tensors[f"ema/{name}"])
        for index, parameter in enumerate(_parameters(optimizer)):
            prefix = f"optimizer/{index}/"
            state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            if state:
                optimizer.state[parameter] = {
                    n: t.clone() if n == "step" else t.to(parameter.device).clone() for n, t in state.items()
                }
        return meta["step"], meta["history"], meta["pending"]

    def clear(self) -> None:
        """Remove the folder's own files after a run that ended well."""
        if self.folder.exists():
            for file in self.folder.iterdir():
                file.unlink()
            self.folder.rmdir()


def _parameters(optimizer: optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
