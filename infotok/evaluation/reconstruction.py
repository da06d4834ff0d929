"""How much of an image comes back from its tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from infotok.data.pixels import to_bytes
from infotok.examiners.judge import Judge
from infotok.examiners.reading import ATTRIBUTES, examine
from infotok.tokenizer.base import Tokenizer


@torch.no_grad()
def reconstruct(tokenizer: Tokenizer, vectors: Tensor, batch: int = 500) -> Tensor:
    """(n, S, S, 3) uint8 images of vectors (n, K, D)."""
    return torch.cat([to_bytes(tokenizer.decode(part)).cpu() for part in vectors.split(batch)])


def fidelity(images: np.ndarray | Tensor, decoded: Tensor) -> tuple[float, float]:
    """(PSNR in dB, SSIM) of uint8 images (n, S, S, 3), by torchmetrics; PSNR is the mean over images."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    a, b = (x if isinstance(x, Tensor) else torch.from_numpy(np.array(x)) for x in (decoded, images))
    a, b = (x.permute(0, 3, 1, 2).float() for x in (a, b))
    psnr = peak_signal_noise_ratio(a, b, data_range=255.0, reduction="elementwise_mean", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(a, b, data_range=255.0)
    assert isinstance(ssim, Tensor)  # without `return_full_image`
    return float(psnr), float(ssim)


def objects_kept(judge: Judge, images: Tensor, decoded: Tensor) -> float:
    """Share of quadrants that hold an object in either image in which the judge reads the same from both."""
    before, after = examine(judge, images), examine(judge, decoded)
    any_object = (before["presence"] == 1) | (after["presence"] == 1)
    same = torch.stack([before[name] == after[name] for name in ("presence", *ATTRIBUTES)]).all(0)
    return (same & any_object).sum().item() / max(1, any_object.sum().item())
