"""Training of the judge and of the perceptual features: from the objects of images, or from their texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infotok.data.arrow import Split
from infotok.data.pixels import to_unit
from infotok.data.text import TextCodec
from infotok.data.texts import encode_captions
from infotok.examiners.attributes import attribute_loss
from infotok.examiners.matching import Towers, contrastive_loss, draw_text
from infotok.examiners.places import as_tensors
from infotok.options import Count, Positive, Section, Seed
from infotok.random import stream
from infotok.training.checkpoints import Checkpoints
from infotok.training.loop import make_optimizer, run
from infotok.training.order import order

if TYPE_CHECKING:  # an edited judge does not change the features
    from infotok.examiners.detector import Detector
    from infotok.examiners.judge import Judge
    from infotok.examiners.perceptual import Perceptual


class ExaminerConfig(Section):
    """How the judge is trained, section `judge`."""

    steps: Count = 350
    batch: Count = 96
    learning_rate: Positive = 0.003
    seed: Seed = 1000


class PerceptualConfig(ExaminerConfig):
    """How the perceptual features are trained, section `perceptual`: another seed than the judge's."""

    steps: Count = 300
    seed: Seed = 1001


WEIGHT_DECAY = 0.1  # of training by contrast, which soon knows a small data set by heart
TOKEN_DROPOUT = 0.1
WARMUP = 20  # steps


def train_examiner(
    module: Judge | Perceptual,
    split: Split,
    config: ExaminerConfig,
    *,
    device: torch.device,
    checkpoints: Checkpoints | None = None,
    observe: Callable[[int, dict[str, float]], None] = lambda step, values: None,
) -> list[dict]:
    """Train a network that maps images to attribute logits of slots; returns the history."""
    labels = {name: torch.from_numpy(split.factors[name].copy()) for name in module.classes}

    def loss(images: Tensor, chosen: Tensor) -> Tensor:
        return attribute_loss(module(images), {name: values[chosen].to(device) for name, values in labels.items()})

    return _train(module, split, config, loss, device, checkpoints, observe)


def train_at_places(
    module: Detector | Perceptual,
    split: Split,
    config: ExaminerConfig,
    names: dict[str, list[str]],
    *,
    device: torch.device,
    checkpoints: Checkpoints | None = None,
    observe: Callable[[int, dict[str, float]], None] = lambda step, values: None,
) -> list[dict]:
    """Train a network on the objects of a split, which stand at free places: a detector to find and to read them,
    perceptual features to read them where they stand; returns the history.

    Args:
        names: attribute name -> its values.
    """
    place, attributes = as_tensors(split.objects, names)

    def loss(images: Tensor, chosen: Tensor) -> Tensor:
        what = {name: attributes[name][chosen].to(device) for name in module.classes}
        return module.loss(images, place[chosen].to(device), what)

    return _train(module, split, config, loss, device, checkpoints, observe)


def _train(
    module: nn.Module,
    split: Split,
    config: ExaminerConfig,
    loss: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
    checkpoints: Checkpoints | None,
    observe: Callable[[int, dict[str, float]], None],
) -> list[dict]:
    """loss: of images (B, 3, S, S) in [-1, 1] and their places in the split (B,)."""
    module.to(device)

    def step_losses(step: int) -> dict[str, Tensor]:
        chosen = torch.randint(len(split), (config.batch,), generator=stream(torch.device("cpu"), config.seed, step))
        images = to_unit(torch.from_numpy(split.images[chosen.numpy()]).to(device))
        return {"loss": loss(images, chosen)}

    optimizer = make_optimizer([(list(module.parameters()), config.learning_rate)], 0.01, device)
    warmup = min(20, config.steps)
    return run(
        module, optimizer, step_losses, steps=config.steps, warmup=warmup, checkpoints=checkpoints, observe=observe
    )


def train_matching(
    module: Towers,
    split: Split,
    codec: TextCodec,
    config: ExaminerConfig,
    *,
    device: torch.device,
    checkpoints: Checkpoints | None = None,
    observe: Callable[[int, dict[str, float]], None] = lambda step, values: None,
) -> list[dict]:
    """Train an image and a text network to find each image's text (`draw_text`) among a batch's and each text's image;
    returns the history."""
    module.to(device)
    batch = min(config.batch, len(split))

    def step_losses(step: int) -> dict[str, Tensor]:
        chosen, rng = order(len(split), batch, config.seed, step), np.random.default_rng([config.seed, step])
        texts = [draw_text(split.captions[index], split.questions[index], rng) for index in chosen]
        generator = stream(device, config.seed, step)
        images = augmented(to_unit(torch.from_numpy(split.images[chosen]).to(device)), generator)
        ids, valid = (values.to(device) for values in encode_captions(texts, codec))
        kept = torch.rand(ids.shape, generator=generator, device=device) >= TOKEN_DROPOUT
        kept[:, 0] = True  # the begin mark, so that no text is empty
        return {"loss": contrastive_loss(module.scores(images, ids, valid & kept), texts)}

    optimizer = make_optimizer([(list(module.parameters()), config.learning_rate)], WEIGHT_DECAY, device)
    warmup = min(20, config.steps)
    return run(
        module, optimizer, step_losses, steps=config.steps, warmup=warmup, checkpoints=checkpoints, observe=observe
    )


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, 3, S, S) in [-1, 1] moved, zoomed, brightened, with noise and with a square left out. Never mirrored:
    texts tell left from right."""
    count, _, side, _ = images.shape
    device = images.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device) * 2 - 1

    frame = torch.zeros(count, 2, 3, device=device)
    frame[:, 0, 0] = frame[:, 1, 1] = 1 + 0.15 * uniform(count)
    frame[:, :, 2] = 0.2 * uniform(count, 2)  # of half the image
    grid = F.affine_grid(frame, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    images = images * (1 + 0.1 * uniform(count, 1, 1, 1)) + 0.1 * uniform(count, 1, 1, 1)
    images = images + 0.05 * torch.randn(images.shape, generator=generator, device=device)
    centre = torch.randint(side, (count, 2, 1), generator=generator, device=device)
    near = (torch.arange(side, device=device) - centre).abs() <= side // 8
    return images.masked_fill((near[:, 0, :, None] & near[:, 1, None, :])[:, None], 0.0)
