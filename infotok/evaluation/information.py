"""What the tokens carry: rate, bounds on I(X;Z), code statistics, and usable bits per factor. In bits per image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infotok.data.arrow import Split
from infotok.data.text import TextCodec
from infotok.data.texts import encode_captions
from infotok.information.bounds import information_bounds
from infotok.information.channel import Channel
from infotok.information.kernels import Kernels
from infotok.information.units import NATS_PER_BIT
from infotok.models.unified import UnifiedModel
from infotok.random import Purpose, stream
from infotok.tokenizer.base import Tokens
from infotok.training.runtime import autocast

BOUND_IMAGES = 1000  # the lower bound cannot exceed log2 of it


@torch.no_grad()
def channel_information(model: UnifiedModel, train: Channel, test: Channel, tokens: Tokens) -> dict[str, float]:
    """Rates, bounds and use of the channel.

    Args:
        train, test: the distributions that the tokens of those images follow.
        tokens: sampled tokens of the test images.

    The rate's prior is the aggregate posterior of the training images per position, the best marginal prior there is,
    so the rate does not depend on how well a learned prior was trained; the autoregressive rate is under the prior that
    training learned. `upper_bits` is the lowest of the upper bounds: both rates and the leave-one-out one, which says
    little where no two images share a code.
    """
    entropy = test.entropy().sum(-1).mean().item()
    rate = test.code_length(train.aggregate()).sum(-1).mean().item() - entropy
    predicted = model.priors(tokens.vectors)["autoregressive"]
    tighter = test.code_length(predicted).sum(-1).mean().item() - entropy
    some = slice(BOUND_IMAGES)
    lower, upper = information_bounds(test[some].cross_log_prob(tokens[some].values))
    return {
        "information/rate_bits": rate / NATS_PER_BIT,
        "information/autoregressive_rate_bits": tighter / NATS_PER_BIT,
        "information/posterior_entropy_bits": entropy / NATS_PER_BIT,
        "information/lower_bits": lower.item() / NATS_PER_BIT,
        "information/upper_bits": min(upper.item(), rate, tighter) / NATS_PER_BIT,
        "information/capacity_bits": model.tokenizer.capacity_bits,
        **{f"information/{name}": value for name, value in model.tokenizer.health(tokens, test).items()},
    }


@torch.no_grad()
def generator_code_length(
    model: UnifiedModel, tokens: Tokens, captions: list[str], codec: TextCodec, *, precision: str, batch: int = 500
) -> float:
    """Mean -log2 p(z | caption) of images' tokens under the generator, bits per image; an upper bound on it where the
    family has but that, and differential for continuous tokens."""
    device, total = tokens.vectors.device, 0.0
    for start in range(0, len(captions), batch):
        ids, valid = encode_captions(captions[start : start + batch], codec)
        part = tokens[start : start + batch]
        with autocast(device, precision):
            predicted = model.predict(part, ids.to(device), valid.to(device), stream(device, start, Purpose.PREDICTION))
        length = -predicted.distribution.log_prob(part.values)
        total += (length if predicted.weight is None else length * predicted.weight).sum().item()
    return total / len(captions) / NATS_PER_BIT


@torch.no_grad()
def dependences(
    tokens: Tokens, images: np.ndarray, captions: list[str], codec: TextCodec, kernels: Kernels
) -> dict[str, float]:
    """CKA of tokens with pixels and with bags of caption words, over images (n, S, S, 3) uint8."""
    vectors = tokens.vectors
    words = torch.zeros(len(captions), codec.vocabulary, device=vectors.device)
    for row, caption in enumerate(captions):
        words[row, codec.encode(caption)] = 1.0
    pixels = torch.from_numpy(images.copy()).to(vectors.device).float() / 255
    generator = stream(vectors.device, 0, Purpose.DEPENDENCE)
    exact = kernels.model_copy(update={"normalized": True})
    return {
        "information/dependence": exact.dependence(pixels, vectors, generator).item(),
        "information/dependence_text": exact.dependence(words, vectors, generator).item(),
    }


def usable_bits(
    train_vectors: Tensor,
    train: dict[str, np.ndarray],
    test_vectors: Tensor,
    test: dict[str, np.ndarray],
    sizes: dict[str, int],
    *,
    steps: int,
    seed: int,
) -> dict[str, float]:
    """V-information (Xu et al. 2020) about every factor that one small MLP extracts from the tokens.

    H(f) - cross-entropy of the probe on test images, summed over a factor's slots; slots that are undefined (-1) in
    some images count by how often they are defined. A probe worse than the constant guess counts as 0, which is the
    constant guess.

    Args:
        train_vectors, test_vectors: (n, K, D). train, test: factor name -> (n, slots) categories.
        sizes: factor name -> number of categories.

    Returns:
        bits per image by factor name.
    """
    device = train_vectors.device
    slots = {name: train[name].shape[1] for name in sizes}
    labels = {n: torch.from_numpy(np.array(train[n])).long().to(device) for n in sizes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = nn.Sequential(
            nn.Linear(train_vectors[0].numel(), 256), nn.ReLU(), nn.Linear(256, sum(slots[n] * sizes[n] for n in sizes))
        ).to(device)

    def logits(vectors: Tensor) -> dict[str, Tensor]:
        parts = probe(vectors.flatten(1)).split([slots[n] * sizes[n] for n in sizes], dim=-1)
        return {n: part.view(len(vectors), slots[n], sizes[n]) for n, part in zip(sizes, parts, strict=True)}

    optimizer = torch.optim.AdamW(probe.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        chosen = torch.randint(len(train_vectors), (256,), generator=stream(device, seed, step), device=device)
        out = logits(train_vectors[chosen])
        losses = [
            F.cross_entropy(out[n].flatten(0, 1), labels[n][chosen].flatten(), ignore_index=-1) * slots[n]
            for n in sizes
        ]
        optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()

    bits = {}
    with torch.no_grad():
        for name, read in logits(test_vectors).items():
            truth = torch.from_numpy(np.array(test[name])).long().to(device)
            total = 0.0
            for slot in range(slots[name]):
                defined = truth[:, slot] >= 0
                values = truth[defined, slot]
                if not len(values):
                    continue
                shares = torch.bincount(values, minlength=sizes[name]).double() / len(values)
                entropy = -(shares[shares > 0] * shares[shares > 0].log()).sum().item()
                gain = entropy - F.cross_entropy(read[defined, slot], values).item()
                total += max(0.0, gain) / NATS_PER_BIT * len(values) / len(truth)
            bits[name] = total
    return bits


def factor_information(
    train_vectors: Tensor, train: Split, test_vectors: Tensor, test: Split, factors: dict, *, steps: int, seed: int
) -> dict[str, float]:
    """`usable_bits` of all factors, and their sums over structure and over nuisance.

    Args:
        factors: {"structure": {name: categories}, "nuisance": {...}} of the data's manifest.
    """
    sizes = factors["structure"] | factors["nuisance"]
    bits = usable_bits(train_vectors, train.factors, test_vectors, test.factors, sizes, steps=steps, seed=seed)
    sums = {f"information/{kind}_bits": sum(bits[name] for name in names) for kind, names in factors.items()}
    return sums | {f"information/factor/{name}": value for name, value in bits.items()}
