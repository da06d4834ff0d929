"""The phase before tuning, of the tokenizer alone: what a model lacks learns to decode before a language model depends
on it.

Shapes: B images, H x W pixels, h x w tokens, N features, C codes, D dimensions of a code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from infotok.distributed import ALONE, World
from infotok.errors import SettingError
from infotok.information.nearest import nearest_codes
from infotok.mllm.adapter import Adapter
from infotok.mllm.codes import CodeAdapter
from infotok.mllm.examples import StepExamples
from infotok.mllm.memory import enough_memory
from infotok.mllm.suiting import check_calibration
from infotok.options import Count, Fraction, Natural, Positive, Precision, Section, Weight
from infotok.random import Purpose, stream
from infotok.training.checkpoints import Checkpoints
from infotok.training.loop import make_optimizer, run
from infotok.training.runtime import autocast

ROUNDS = 10  # of Lloyd's algorithm, after which codes hardly move


class CalibrateConfig(Section):
    """What all arms start from: how the tokenizer is trained before the language model is, and the variance of codes.

    Variance: images: of the validation split, at most, that it is calibrated on; entropy_bits: a code's mean H(q), in
    bits, at the variance, None for the variance of the quantization error; that of continuous tokens is always a
    hundredth of their own.
    Training: steps: 0 for none, as where the tokenizer lacks nothing; tokenizer: `new` trains what the model lacks
    alone, such as Chameleon's decoder, `full` encoder and codebook too; settle: first put the codes where features lie,
    for a tokenizer that is entirely untrained; batch: images of a step, of all processes; rate: learning rate; warmup:
    steps over which it rises, and final_fraction: what is left of it at the end; clip: gradient norm; weight_decay: of
    matrices; commitment: weight of features' distance to their codes, where codes' distance to their features counts
    once. precision, checkpoint_every: as of `TuneConfig`.
    """

    images: Count = 256
    entropy_bits: Annotated[float | None, Field(gt=0)] = None
    steps: Natural = 0
    tokenizer: Literal["new", "full"] = "new"
    settle: bool = False
    batch: Count = 8
    rate: Positive = 1e-4
    warmup: Natural = 50
    final_fraction: Fraction = 0.1
    clip: Positive = 1.0
    weight_decay: Weight = 0.0
    commitment: Weight = 0.25
    precision: Precision = "auto"
    checkpoint_every: Natural = 100


def warm_up(
    adapter: Adapter,
    data: StepExamples,
    config: CalibrateConfig,
    *,
    seed: int,
    checkpoints: Checkpoints | None = None,
    observe: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    world: World = ALONE,
) -> list[dict]:
    """Train a tokenizer to reconstruct, in place; returns the history: `loss` and its parts, a line every 10 steps.

    Args:
        data: the images of every step, `config.batch` of them; no text is looked at.
        seed: of the codes' first places.
        checkpoints, observe, world: as of `infotok.training.loop.run`.

    Raises:
        InfotokError: as of `check_calibration`, or of `infotok.training.loop.run`.
    """
    check_calibration(adapter, config)
    if config.batch % world.size:
        raise SettingError(
            "batch",
            f"{config.batch} images cannot be shared out among {world.size} processes; set batch to a multiple of "
            f"{world.size}",
        )
    device = world.device or adapter.device
    adapter.model.to(device).requires_grad_(False)
    adapter.tokenizer.requires_grad_(config.tokenizer == "full").float()
    if adapter.extra is not None:
        adapter.extra.to(device).requires_grad_(True).float()
    step_of = Autoencoder(adapter, config)
    if config.settle:
        settle(adapter, _pixels(adapter, data, 0, slice(None)), seed)
    rows = world.rows(config.batch)

    def losses(step: int) -> dict[str, Tensor]:
        pixels = _pixels(adapter, data, step, rows)
        with autocast(device, config.precision):
            return step_of(pixels)

    with enough_memory([f"lower batch ({config.batch})"], checkpoints):
        history = run(
            step_of,
            make_optimizer([(list(step_of.parameters()), config.rate)], config.weight_decay, device),
            losses,
            steps=config.steps,
            warmup=config.warmup,
            final=config.final_fraction,
            clip=config.clip,
            checkpoints=checkpoints,
            checkpoint_every=config.checkpoint_every,
            observe=observe,
            world=world,
            careful=True,
        )
    adapter.extra_is_new = False
    return history


class Autoencoder(nn.Module):
    """A model's tokenizer, with what training adds to it."""

    def __init__(self, adapter: Adapter, config: CalibrateConfig):
        super().__init__()
        self.adapter, self.config = adapter, config
        self.tokenizer, self.extra = adapter.tokenizer, adapter.extra

    def train(self, mode: bool = True) -> Autoencoder:
        """In evaluation mode in any case: an image's codes must not depend on the images beside it."""
        return super().train(False)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Loss and parts (scalars) of pixels (B, 3, H, W): error of pixels, in the processor's scale, and distances of
        features and codes, which have a gradient where the tokenizer is trained and are 0 where it has no codes."""
        adapter = self.adapter
        if not isinstance(adapter, CodeAdapter):
            error = (adapter.decode(adapter.features(pixels)).float() - pixels.float()).square().mean()
            return {"loss": error, "reconstruction": error, "commitment": torch.zeros_like(error)}
        features, codebook = adapter.features(pixels).float(), adapter.codebook().float()
        vectors = F.embedding(nearest_codes(features, codebook), codebook)
        decoded = adapter.decode(features + (vectors - features).detach())
        error = (decoded.float() - pixels.float()).square().mean()
        of_codes = (vectors - features.detach()).square().mean()
        commitment = (features - vectors.detach()).square().mean()
        loss = error + of_codes + self.config.commitment * commitment
        return {"loss": loss, "reconstruction": error, "commitment": commitment}


@torch.no_grad()
def settle(adapter: Adapter, pixels: Tensor, seed: int) -> None:
    """Put the codes where the features of pixels (B, 3, H, W) lie, by k-means."""
    assert isinstance(adapter, CodeAdapter)
    book = adapter.codebook()
    flat = adapter.features(pixels).float().flatten(0, -2)
    numbers = stream(torch.device("cpu"), seed, Purpose.SETTLING)
    chosen = torch.randint(len(flat), (len(book),), generator=numbers).to(flat.device)
    noise = torch.randn(book.shape, generator=numbers).to(flat.device)
    codes = flat[chosen] + 0.05 * flat.std() * noise  # no two alike, where there are fewer features than codes
    for _ in range(ROUNDS):
        nearest = nearest_codes(flat, codes)
        counts = torch.bincount(nearest, minlength=len(codes))[:, None]
        means = torch.zeros_like(codes).index_add_(0, nearest, flat) / counts.clamp_min(1)
        codes = torch.where(counts > 0, means, codes)
    book.copy_(codes)


def _pixels(adapter: Adapter, data: StepExamples, step: int, rows: slice) -> Tensor:
    examples = data.examples(step)[0][rows]
    return adapter.ask([example.image for example in examples], [example.question for example in examples])[
        "pixel_values"
    ]
