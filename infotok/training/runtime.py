"""Where and how a process computes: device, threads, precision.

On CPU one thread a process is the fastest for networks of this size, two processes fill two cores.
"""

from __future__ import annotations

import os

import torch

from infotok.errors import InfotokError


def start() -> torch.device:
    """Set threads and determinism, and return the device to compute on.

    INFOTOK_THREADS overrides the single CPU thread; INFOTOK_DEVICE the choice of CUDA where there is one. Of several
    processes on one machine each takes the GPU of its LOCAL_RANK.

    Raises:
        InfotokError: there is no GPU for this process.
    """
    threads = int(os.environ.get("INFOTOK_THREADS", "1"))
    torch.set_num_threads(threads)
    # A sharp posterior is full of probabilities near 1e-40, on which a processor is a hundred times slower.
    torch.set_flush_denormal(True)
    name = os.environ.get("INFOTOK_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        index, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if index >= count:
            raise InfotokError(f"LOCAL_RANK: {index}, but there are {count} GPUs; start no more processes than GPUs")
        name = f"cuda:{index}"
        torch.cuda.set_device(index)
    if name.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # One CPU thread repeats itself anyway, and the switch alone costs a second of imports.
    if name.startswith("cuda") or threads > 1:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # no code here reads an unset tensor
    return torch.device(name)


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 pays here: on CUDA, and on processors with bf16 matrix units. Without them bf16 is emulated, and
    a training step was measured at half the speed of fp32."""
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.cuda.is_bf16_supported()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast for `bf16`, none for `fp32`; `auto` is bf16 where `has_bf16`."""
    enabled = precision == "bf16" or (precision == "auto" and has_bf16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
