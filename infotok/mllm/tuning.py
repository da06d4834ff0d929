"""Tuning a tokenizer and a language model together: what is trained, at what rates, on what order of examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from infotok.errors import InfotokError
from infotok.information.bottleneck import InformationBottleneck
from infotok.mllm import lora
from infotok.mllm.adapter import Adapter
from infotok.mllm.batches import Batch, Example, make_batch
from infotok.mllm.joint import JointStep, StepConfig
from infotok.options import Count, Fraction, Positive, Section
from infotok.random import Purpose, stream
from infotok.training.order import check_images, order


class TuneConfig(StepConfig):
    """How a model is tuned.

    train: all of the language model, or low-rank updates of its layers of `rank`, scaled by alpha / rank. tokenizer:
    train all of it, its encoder alone (codebook and decoder stay those of the pretrained model), or nothing. lm_rate,
    tokenizer_rate, prior_rate: learning rates. clip: largest norm of the gradient of model and tokenizer.
    caption_dropout: share of captions that are not shown. entropy_bits: a token's mean H(q), in bits, that the
    variance is calibrated to; None for the variance of the quantization error.
    """

    steps: Count = 1000
    batch: Count = 8
    train: Literal["full", "lora"] = "full"
    rank: Count = 16
    alpha: Count = 32
    tokenizer: Literal["full", "encoder", "frozen"] = "full"
    lm_rate: Positive = 1e-5
    tokenizer_rate: Positive = 1e-5
    prior_rate: Positive = 1e-2
    clip: Positive = 1.0
    caption_dropout: Fraction = 0.1
    entropy_bits: Annotated[float | None, Field(gt=0)] = None


class CalibrateConfig(Section):
    """images: of the validation split, at most, that the variance is calibrated on. entropy_bits: a token's mean H(q),
    in bits, at the variance; None for the variance of the quantization error."""

    images: Count = 256
    entropy_bits: Annotated[float | None, Field(gt=0)] = None


class Tuner:
    """One tuning, step by step.

    Args:
        bottleneck: the regularizer with its estimator, beta and gamma.
        variance: of the codes' Gaussians, as `calibrated` on the pretrained tokenizer.

    Raises:
        InfotokError: the tokenizer is frozen and the regularizer presses it, or peft is missing.
    """

    def __init__(self, adapter: Adapter, bottleneck: InformationBottleneck, variance: float, config: TuneConfig):
        if config.tokenizer == "frozen" and (bottleneck.beta or bottleneck.gamma):
            raise InfotokError(
                "tokenizer: frozen: beta and gamma would have no gradient to give, since they act on what the encoder "
                "makes; train the tokenizer (full or encoder), or set both to 0"
            )
        self.adapter, self.config, self.attached = adapter, config, None
        if config.train == "lora":
            self.attached = lora.attach(adapter, config.rank, config.alpha)
        else:
            adapter.model.requires_grad_(True)
        _train_tokenizer(adapter, config.tokenizer)
        self.step = JointStep(adapter, bottleneck, variance, config).train()
        groups = self._groups(bottleneck)
        self.pressed = [parameter for name, rows, _ in groups if name != "prior" for parameter in rows]
        self.optimizer = torch.optim.AdamW(
            [{"params": rows, "lr": rate, "name": name} for name, rows, rate in groups if rows], weight_decay=0.0
        )

    def _groups(self, bottleneck: nn.Module) -> list[tuple[str, list[nn.Parameter], float]]:
        """Name, parameters and rate of what learns at one rate."""
        of_tokenizer = [self.adapter.tokenizer, *([] if self.adapter.extra is None else [self.adapter.extra])]
        tokenizer = _learning(of_tokenizer)
        inside = {id(parameter) for parameter in tokenizer}
        model = [parameter for parameter in _learning([self.adapter.model]) if id(parameter) not in inside]
        config = self.config
        return [
            ("model", model, config.lm_rate),
            ("tokenizer", tokenizer, config.tokenizer_rate),
            ("prior", _learning([bottleneck]), config.prior_rate),
        ]

    def update(self, batch: Batch) -> dict[str, float]:
        """One step; returns loss and parts.

        Raises:
            InfotokError: the loss is not finite; nothing has been changed.
        """
        loss, parts = self.step(batch)
        if not torch.isfinite(loss):
            raise InfotokError(
                "the loss is not finite; lower lm_rate, tokenizer_rate or lm_gradient, or train in a wider type"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.pressed, self.config.clip)
        self.optimizer.step()
        return {"loss": float(loss.detach()), "gradient": float(norm)} | {name: float(v) for name, v in parts.items()}

    def run(
        self, examples: Sequence[Example], seed: int, each: Callable[[int, dict[str, float]], None] | None = None
    ) -> list[dict[str, float]]:
        """All steps; `each` is told of every one. Returns their losses and parts."""
        history = []
        for step, (chosen, dropped) in enumerate(self.order(len(examples), seed)):
            history.append(self.update(make_batch(self.adapter, [examples[i] for i in chosen], dropped)))
            if each is not None:
                each(step, history[-1])
        return history

    def order(self, count: int, seed: int) -> Iterator[tuple[list[int], list[bool]]]:
        """Which examples each step shows, and whose captions it drops: the same for every arm of a seed.

        Raises:
            InfotokError: they do not fill a batch.
        """
        config = self.config
        check_images(count, config.batch, "batch")
        for step in range(config.steps):
            numbers = stream(torch.device("cpu"), seed, step, Purpose.TEXTS)
            dropped = torch.rand(config.batch, generator=numbers) < config.caption_dropout
            yield order(count, config.batch, seed, step).tolist(), dropped.tolist()

    def save(self, folder: Path) -> None:
        """Write a folder that `from_pretrained` loads; updates of low rank are merged, after which training is over."""
        if self.attached is not None:
            lora.merge(self.adapter, self.attached)
            self.attached = None
        self.adapter.save(folder)


@torch.no_grad()
def calibrated(adapter: Adapter, pixels: Iterable[Tensor], entropy_bits: float | None = None) -> float:
    """The variance to hold, from pixels (B, 3, H, W) of images, before anything is trained."""
    adapter.model.eval()
    return adapter.calibrated((adapter.features(some) for some in pixels), entropy_bits)


def _train_tokenizer(adapter: Adapter, how: str) -> None:
    adapter.tokenizer.requires_grad_(how == "full")
    if how == "encoder":
        for module in adapter.encoders():
            module.requires_grad_(True)
    if adapter.extra is not None:
        adapter.extra.requires_grad_(how == "full" or adapter.extra_is_new)  # a new one decodes nothing yet


def _learning(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
