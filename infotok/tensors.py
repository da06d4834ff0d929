"""Weights: as safetensors files whose header carries their JSON, no pickles; and spread over processes, a part each."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from infotok.errors import InfotokError


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
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of a tensor alone (`DTensor`)."""
    return hasattr(tensor, "full_tensor")


def own_part(tensor: Tensor) -> Tensor:
    """The part that this process holds, in the same memory; all of what is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, for which all processes must call this; any other itself. Without gradient."""
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor.detach()  # type: ignore[attr-defined]


@torch.no_grad()
def fill(tensor: Tensor, values: Tensor) -> None:
    """Copy values of its whole shape into a tensor; of a sharded one each process does this with its own part."""
    if is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        place: Any = tensor
        values = distribute_tensor(values.to(tensor.device), place.device_mesh, place.placements, src_data_rank=None)
    tensor.copy_(values)


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's state, tensors that share memory (tied embeddings) once."""
    seen, out = set(), {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        mark = tensor.data_ptr() or id(tensor)  # what is empty or sharded has no memory of its own
        if mark not in seen:
            out[name] = tensor.detach()
        seen.add(mark)
    return out


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Of a module's state what training may change: parameters that learn, each once, and buffers."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    learning = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    return learning | {name: value for name, value in module.state_dict().items() if name not in parameters}


def state_digest(module: nn.Module, step: int) -> str:
    """Hexadecimal digest of a module's state after a number of steps."""
    return _digest({name: tensor.detach() for name, tensor in module_tensors(module).items()}, str(step))


def load_module(module: nn.Module, tensors: dict[str, Tensor], path: Path, remedy: str) -> None:
    """Fill a module with the tensors of `module_tensors`.

    Raises:
        InfotokError: names or shapes do not belong to this module.
    """
    load_tensors(module_tensors(module), tensors, path, remedy)


@torch.no_grad()
def load_tensors(wanted: dict[str, Tensor], tensors: dict[str, Tensor], path: Path, remedy: str) -> None:
    """Fill tensors, in place, with those of the same names.

    Raises:
        InfotokError: names or shapes are others.
    """
    if wanted.keys() != tensors.keys() or any(wanted[n].shape != t.shape for n, t in tensors.items()):
        odd = sorted(wanted.keys() ^ tensors.keys()) or [n for n, t in tensors.items() if wanted[n].shape != t.shape]
        raise InfotokError(f"{path}: does not fit this configuration (first at '{odd[0]}'); {remedy}")
    for name, tensor in wanted.items():
        fill(tensor, tensors[name])


def save_module(module: nn.Module, path: Path, description: dict) -> None:
    """Weights, and in the header what builds the module again."""
    write_tensors(path, module_tensors(module), description)
