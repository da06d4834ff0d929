"""How much of an image comes back from its tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from infotok.data.pixels import to_bytes
from infotok.examiners.judges import ObjectJudge
from infotok.examiners.scenes import matched, read_scenes, same
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


def objects_kept(judge: ObjectJudge, images: Tensor, decoded: Tensor, metadata: dict) -> float:
    """Of the objects that the judge reads in either image, the share that it reads the same, at the same place, in
    both. metadata: manifest of the data."""
    kept = objects = 0
    both = (read_scenes(judge, those, metadata) for those in (images, decoded))
    for before, after in zip(*both, strict=True):
        pairs = matched(after, before)
        kept += sum(same(after[i], before[j]) for i, j in pairs)
        objects += len(before) + len(after) - len(pairs)
    return kept / max(1, objects)
