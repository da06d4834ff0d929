"""Where and how a process computes: device, threads, precision.

On CPU one thread a process is the fastest for networks of this size, two processes fill two cores.
"""

from __future__ import annotations

import os
import re

import torch

from infotok.errors import InfotokError


def start() -> torch.device:
    """Set threads and determinism, and return the device to compute on.

    INFOTOK_THREADS overrides the single CPU thread; INFOTOK_DEVICE (`cpu`, `cuda` or `cuda:<number>`) the choice of
    CUDA where there is one. Of several processes on one machine each takes the GPU of its LOCAL_RANK.

    Raises:
        InfotokError: a variable says something else, or there is no such GPU.
    """
    threads = _whole("INFOTOK_THREADS", 1, least=1)
    torch.set_num_threads(threads)
    # A sharp posterior is full of probabilities near 1e-40, on which a processor is a hundred times slower.
    torch.set_flush_denormal(True)
    name = _device()
    if name.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # One CPU thread repeats itself anyway, and the switch alone costs a second of imports.
    if name.startswith("cuda") or threads > 1:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # no code here reads an unset tensor
    return torch.device(name)


def _device() -> str:
    variable, name = "INFOTOK_DEVICE", os.environ.get("INFOTOK_DEVICE", "")
    if not name:
        variable, name = "the device", "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    if not re.fullmatch(r"cuda(:\d+)?", name):
        raise InfotokError(f"{variable}: '{name}' is no device; set it to cpu, cuda or cuda:<number>, or unset it")
    count = torch.cuda.device_count()
    if not count:
        raise InfotokError(f"{variable}: '{name}', but PyTorch finds no GPU here; unset it to compute on the CPU")
    if name == "cuda" and os.environ.get("LOCAL_RANK"):
        name = f"cuda:{_whole('LOCAL_RANK', 0)}"
        variable = "LOCAL_RANK"
    if (index := int(name.partition(":")[2] or 0)) >= count:
        raise InfotokError(f"{variable}: {name}, but there are {count} GPUs; start no more processes than GPUs")
    torch.cuda.set_device(index)
    return name


def _whole(variable: str, default: int, least: int = 0) -> int:
    """A whole number of the environment, the default where it is unset or empty."""
    text = os.environ.get(variable) or str(default)
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise InfotokError(f"{variable}: '{text}' is no whole number of at least {least}; set it so, or unset it")
    return int(text)


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 pays here: on CUDA, and on processors with bf16 matrix units. Without them bf16 is emulated, and
    a training step was measured at half the speed of fp32."""
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.cuda.is_bf16_supported()


def uses_bf16(device: torch.device, precision: str) -> bool:
    """Whether a precision is bf16 here: `auto` is where `has_bf16`."""
    return precision == "bf16" or (precision == "auto" and has_bf16(device))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast where `uses_bf16`, else none."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(device, precision))
