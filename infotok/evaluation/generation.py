"""Images drawn from captions, and their distance from real ones: gFID and KID in the judge's features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infotok.data.pixels import to_bytes, to_unit
from infotok.data.text import TextCodec
from infotok.data.texts import encode_captions
from infotok.examiners.judges import ObjectJudge
from infotok.examiners.matcher import Matcher
from infotok.models.family import Decoding, Sampling
from infotok.models.unified import UnifiedModel
from infotok.options import Count, Seed
from infotok.random import Purpose, stream
from infotok.training.runtime import autocast
from infotok.tried import Guidance, Temperatures


class GenerationConfig(Decoding):
    """How generation is evaluated. prompts: of each GenEval tag. images: per prompt. temperatures, guidance: what the
    validation prompts choose among, per cell; temperature 1 and no guidance (1, the first) are always shown too. seed:
    of prompts and sampling."""

    prompts: Count = 16
    images: Count = 8
    temperatures: Temperatures = [1.0, 0.6, 0.3]
    guidance: Guidance = [1.0, 1.5, 2.5]
    seed: Seed = 7

    def sampling(self, temperature: float = 1.0, guidance: float = 1.0) -> Sampling:
        """These settings at one temperature and guidance."""
        shared = {name: getattr(self, name) for name in Decoding.model_fields}
        return Sampling(**shared, temperature=temperature, guidance=guidance)


@torch.no_grad()
def draw(
    model: UnifiedModel,
    captions: list[str],
    codec: TextCodec,
    sampling: Sampling,
    *,
    seed: int,
    precision: str,
    budget: int = 0,
    batch: int = 512,
) -> Tensor:
    """One image per caption: (n, S, S, 3) uint8; from the first `budget` tokens alone if it is not 0."""
    device, out = next(model.parameters()).device, []
    for start in range(0, len(captions), batch):
        ids, valid = encode_captions(captions[start : start + batch], codec)
        generator = stream(device, seed, start, Purpose.DRAWING)
        with autocast(device, precision):
            tokens = model.family.draw(
                model.backbone, model.tokenizer, ids.to(device), valid.to(device), sampling, generator
            )
            vectors = model.tokenizer.keep(tokens.vectors, budget) if budget else tokens.vectors
            out.append(to_bytes(model.tokenizer.decode(vectors)).cpu())
    return torch.cat(out)


@torch.no_grad()
def standardized_features(
    judge: ObjectJudge | Matcher, reference: Tensor, *others: Tensor, batch: int = 500
) -> list[Tensor]:
    """The judge's features (n, 128) of sets of uint8 images (n, S, S, 3), `reference` first. Every dimension has mean 0
    and variance 1 over the reference, so that distances do not depend on the scale of the judge's weights."""
    device = next(judge.parameters()).device
    sets = [
        torch.cat([judge.features(to_unit(chunk.to(device))) for chunk in images.split(batch)])
        for images in (reference, *others)
    ]
    mean, deviation = sets[0].mean(0), sets[0].std(0)
    # A dimension that is constant over the reference, a dead unit, stays unscaled.
    scale = torch.where(deviation > 1e-6, deviation, 1.0)
    return [(features - mean) / scale for features in sets]


class _Given(nn.Module):
    """Stands where torchmetrics wants a network: what it is given are features already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Tensor, drawn: Tensor) -> float:
    """FID of features (n, d) by torchmetrics; comparable only for the same features and numbers of images."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Given(real.shape[1])).to(real.device)
    metric.update(real, real=True)
    metric.update(drawn, real=False)
    return float(metric.compute())


def kernel_distance(real: Tensor, drawn: Tensor, seed: int) -> float:
    """KID of features (n, d) by torchmetrics: mean over 50 subsets of at most 500 images."""
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(500, len(real), len(drawn))
    metric = KernelInceptionDistance(feature=_Given(real.shape[1]), subsets=50, subset_size=size).to(real.device)
    metric.update(real, real=True)
    metric.update(drawn, real=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # torchmetrics draws the subsets from the global stream
        return float(metric.compute()[0])
