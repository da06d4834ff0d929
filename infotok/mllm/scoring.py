"""What a model of transformers makes of held-out images: tokens, answers, drawings.

Shapes: n images, h x w tokens of one, C codes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from infotok.data.answers import score
from infotok.data.arrow import Split
from infotok.information.bottleneck import GIVEN, InformationBottleneck
from infotok.information.factored import Factored
from infotok.information.rate import code_statistics
from infotok.information.units import NATS_PER_BIT
from infotok.mllm.adapter import Adapter, Drawing, Encoded
from infotok.mllm.codes import CodeAdapter
from infotok.mllm.data import Grid, Pictures, by_size
from infotok.mllm.losses import cross_entropies
from infotok.random import Purpose, stream

CACHED = 1 << 16  # sizes of images whose size after the processor is remembered


def grid_of(adapter: Adapter) -> Grid:
    """(width, height) of an image to (height, width) of the pixels that the model's processor makes of it."""

    @lru_cache(CACHED)
    def grid(width: int, height: int) -> tuple[int, int]:
        pixels = adapter.ask([Image.new("RGB", (width, height))], [""])["pixel_values"]
        return int(pixels.shape[-2]), int(pixels.shape[-1])

    return grid


def of_one_size(split: Split, rows: Sequence[int], grid: Grid, batch: int) -> Iterator[list[int]]:
    """Rows of a split in batches of images that the processor gives one size."""
    for group in by_size(split, rows, grid).values():
        for start in range(0, len(group), batch):
            yield group[start : start + batch]


def code_use(codes: Sequence[Tensor], codebook: int) -> dict[str, float]:
    """How many codes images use: perplexity and dead codes over all tokens, and the bits of an image at that entropy.

    codes: (h, w) each.
    """
    pooled = code_statistics(torch.cat([part.flatten() for part in codes])[:, None], codebook)
    tokens = sum(part.numel() for part in codes) / len(codes)
    return {
        "perplexity": pooled["perplexity"],
        "dead_codes": pooled["dead_codes"],
        "code_entropy_bits": tokens * pooled["code_entropy_bits"],
        "capacity_bits": tokens * math.log2(codebook),
    }


def token_use(adapter: Adapter, tokens: Sequence[Tensor], variance: float | None = None) -> dict[str, float]:
    """How images use what tokens may be: `code_use`, or of vectors `active_dimensions`, how many of the K D dimensions
    vary over images more than the channel's noise.

    tokens: of `tokens_of_images`. variance: of the channel, None for that which would be calibrated on these tokens.
    """
    if isinstance(adapter, CodeAdapter):
        return code_use(tokens, len(adapter.codebook()))
    if variance is None:
        variance = adapter.calibrated((one[None] for one in tokens), None)
    return {"active_dimensions": float((torch.stack(list(tokens)).float().var(0) > variance).sum())}


@torch.no_grad()
def tokens_of_images(adapter: Adapter, pictures: Pictures, rows: Sequence[int], grid: Grid, batch: int) -> list[Tensor]:
    """The codes (h, w) of images, or their vectors (h, w, D), in the order of `rows`."""
    found: dict[int, Tensor] = {}
    for some in of_one_size(pictures.split, rows, grid, batch):
        pixels = adapter.ask([pictures[row] for row in some], [""] * len(some))["pixel_values"]
        found |= dict(zip(some, adapter.tokens_of(pixels).cpu(), strict=True))
    return [found[row] for row in rows]


@torch.no_grad()
def reconstruct(
    adapter: Adapter, pictures: Pictures, rows: Sequence[int], grid: Grid, batch: int
) -> tuple[dict[str, float], list[Image.Image]]:
    """How images come back from their tokens: mean PSNR and SSIM at the size that the processor gives them; and the
    images that come back."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    sums: Counter[str] = Counter()
    found: dict[int, Image.Image] = {}
    for some in of_one_size(pictures.split, rows, grid, batch):
        pixels = adapter.ask([pictures[row] for row in some], [""] * len(some))["pixel_values"]
        decoded = adapter.unit_pixels(adapter.decode(adapter.vectors_of(adapter.tokens_of(pixels)))).float()
        real, each = adapter.unit_pixels(pixels).float(), (1, 2, 3)
        measured = {
            "psnr": peak_signal_noise_ratio(decoded, real, data_range=1.0, dim=each),
            "ssim": structural_similarity_index_measure(decoded, real, data_range=1.0),
        }
        sums.update({name: float(value) * len(some) for name, value in measured.items()})
        found |= dict(zip(some, images_of(decoded), strict=True))
    return {name: total / len(rows) for name, total in sums.items()}, [found[row] for row in rows]


def images_of(pixels: Tensor) -> list[Image.Image]:
    """Images of pixels (n, 3, H, W) between 0 and 1."""
    made = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(one) for one in made]


@torch.no_grad()
def information(
    adapter: Adapter,
    bottleneck: InformationBottleneck,
    variance: float,
    pictures: Pictures,
    rows: Sequence[int],
    grid: Grid,
    batch: int,
) -> dict[str, float]:
    """Bits per image: the rate under the prior that training learned, and, where the language model says how likely
    tokens are, the code length of images' codes given their longest captions.

    variance: of the channel, held in training.
    """
    bottleneck.eval()
    rate = length = 0.0
    captioned = 0
    for some in of_one_size(pictures.split, rows, grid, batch):
        pixels = adapter.ask([pictures[row] for row in some], [""] * len(some))["pixel_values"]
        generator = stream(pixels.device, some[0], Purpose.PREDICTION)
        encoded = adapter.encode(pixels, variance, 1.0, generator)
        channel: Any = encoded.channel
        if bottleneck.kind == GIVEN:
            prior = _drawing(adapter, [""] * len(some), encoded, generator).predicted
        else:
            prior = bottleneck.prior(None).first(channel.tokens)
        rate += float((channel.code_length(prior) - channel.entropy()).sum())
        if not adapter.has_density:
            continue
        texts = [max(pictures.split.captions[row], key=len, default="") for row in some]
        kept = [index for index, text in enumerate(texts) if text]
        if kept:
            encoded = adapter.encode(pixels[kept], variance, 1.0, generator)
            length += _code_length(_drawing(adapter, [texts[i] for i in kept], encoded, generator), encoded)
            captioned += len(kept)
    bits = {"rate_bits": rate / len(rows) / NATS_PER_BIT}
    return bits | ({"generator_nll_bits": length / captioned / NATS_PER_BIT} if captioned else {})


def _drawing(adapter: Adapter, captions: list[str], encoded: Encoded, generator: torch.Generator) -> Drawing:
    return adapter.drawing(adapter.draw_prompt(captions, *encoded.vectors.shape[1:3]), encoded, generator)


def _code_length(drawing: Drawing, encoded: Encoded) -> float:
    """Sum of -log p of images' codes, nats, some tokens at a time; of a masked model in expectation over masks."""
    predicted, codes = drawing.predicted, encoded.codes
    assert isinstance(predicted, Factored)
    assert codes is not None
    states, right, bias = predicted.left.float().flatten(0, -2), predicted.right.float(), predicted.bias
    lengths = cross_entropies(lambda some: F.linear(some, right, bias), states, codes.flatten())
    return float((lengths if drawing.weight is None else lengths * drawing.weight.flatten()).sum())


@dataclass(frozen=True)
class Answered:
    """Scores of a split's questions. right: (n,) from 0 to 1; families: (n,) names. cut: answers that the limit
    ended."""

    right: np.ndarray
    families: np.ndarray
    cut: int

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    def by_family(self) -> dict[str, float]:
        return {name: float(self.right[self.families == name].mean()) for name in dict.fromkeys(sorted(self.families))}


def answer_all(
    adapter: Adapter, pictures: Pictures, rows: Sequence[int], grid: Grid, *, batch: int, longest: int, rule: str
) -> Answered:
    """Ask every question about images of a split, by the model's own `generate`, greedily.

    longest: tokens of an answer, at most. rule: when an answer is right, of `infotok.data.answers`.
    """
    right, families, cut = [], [], 0
    tokenizer = adapter.processor.tokenizer
    for some in of_one_size(pictures.split, rows, grid, max(1, batch)):
        pairs = [(row, pair) for row in some for pair in pictures.split.questions[row]]
        images = {row: pictures[row] for row in some}
        for start in range(0, len(pairs), batch):
            part = pairs[start : start + batch]
            asked = [pair["question"] for _, pair in part]
            said = adapter.answer([images[row] for row, _ in part], asked, max_new_tokens=longest)
            for text, (_, pair) in zip(said, part, strict=True):
                right.append(score(text, pair, rule))
                families.append(pair["family"])
                cut += len(tokenizer(text, add_special_tokens=False)["input_ids"]) >= longest
    return Answered(np.array(right), np.array(families), cut)


@torch.no_grad()
def draw_tokens(
    adapter: Adapter,
    captions: Sequence[str],
    size: tuple[int, int],
    *,
    seed: int,
    batch: int,
    temperature: float = 0.0,
    guidance: float = 1.0,
    top_k: int = 0,
) -> Tensor:
    """Codes (n, h, w), or vectors (n, h, w, D), that the model itself draws from captions; temperature 0: the most
    likely ones.

    The global random stream, which transformers draws from, is left as it was.
    """
    sampling, drawn = adapter.sampling(temperature, guidance, top_k), []
    devices = [adapter.device] if adapter.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        for start in range(0, len(captions), batch):
            torch.manual_seed(seed + start)
            drawn.append(adapter.draw(list(captions[start : start + batch]), *size, **sampling).cpu())
    return torch.cat(drawn)


@torch.no_grad()
def pictures_of(adapter: Adapter, tokens: Tensor, batch: int) -> list[Image.Image]:
    """The images of tokens as `draw_tokens` gives them."""
    made = []
    for some in tokens.split(batch):
        made += images_of(adapter.unit_pixels(adapter.decode(adapter.vectors_of(some.to(adapter.device)))))
    return made
