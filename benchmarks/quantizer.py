"""Quantization forward and backward: our discrete tokenizer's against `VectorQuantize` of vector-quantize-pytorch, the
encoder and decoder left out, at the same sizes and under the same upstream gradient.

All take turns, and those that do the same are compared in the same turn: other work on the machine slows both. What
differs is in the column `does`. Ours always learns its codebook by gradient, and gives the posterior that rates
need; theirs learns it by moving averages or gradient. Theirs passes the gradient straight through to the features
(not by its rotation, which takes longer); the one that samples passes it through the posterior, as ours does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vector_quantize_pytorch import VectorQuantize

from benchmarks.common import Result, extra_percent, in_turns, timed
from benchmarks.device import Row, device
from benchmarks.training import SEED
from infotok.random import stream
from infotok.tokenizer.discrete import DiscreteTokenizer
from pipeline.config.params import Params

OURS, ARGMAX = "ours, sampled", "ours, deterministic"
ALIKE = {OURS: "theirs, cosine, sampled, EMA", ARGMAX: "theirs, cosine, EMA"}  # which draw codes in the same way
SIZES = [(64, 64, 32, 1024), (32, 64, 64, 4096)]  # batch, tokens, dimension, codebook, beside those of the params
NONE: dict = {}
THEIRS = {
    "theirs, cosine, EMA": ("argmax, commitment, codebook by EMA", {"use_cosine_sim": True}),
    "theirs, cosine, fixed": ("argmax, commitment, codebook fixed", {"use_cosine_sim": True, "ema_update": False}),
    "theirs, cosine, sampled, EMA": (
        "Gumbel sample, softmax gradient, commitment, codebook by EMA",
        {
            "use_cosine_sim": True,
            "stochastic_sample_codes": True,
            "straight_through": True,
            "route_gradients_to_input": False,
        },
    ),
    "theirs, plain, EMA": ("argmax of distances, commitment, codebook by EMA", NONE),
    "theirs, plain, learned": (
        "argmax of distances, commitment, codebook by gradient",
        {"ema_update": False, "learnable_codebook": True},
    ),
}


def measure(params: Params, quick: bool) -> Result:
    own = (params.train.batch, max(params.grid.tokens), params.tokenizer.dimension, params.tokenizer.codebook)
    sizes = [own] if quick else [own, *SIZES]
    rounds, warmup = (2, 1) if quick else (40, 3)
    tables, compared = {}, []
    for size in sizes:
        what = "batch {} x {} tokens x {} dimensions, {} codes".format(*size)
        rows, alike = _times(params, size, rounds, warmup)
        tables[f"Quantization, forward and backward: {what}"] = rows
        compared += [{"sizes": what} | row for row in alike]
    tables["Ours beyond theirs of the same turn"] = compared
    return Result({"sizes": sizes, "rounds": rounds, "rotation_trick": False}, tables)


def _times(params: Params, size: tuple[int, int, int, int], rounds: int, warmup: int) -> tuple[list[Row], list[Row]]:
    """A row for each quantizer, and one for each of ours against theirs."""
    batch, tokens, dimension, codebook = size
    generator = stream(device(), SEED)
    shape = (batch, tokens, dimension)
    features, upstream = (torch.randn(shape, generator=generator, device=device()) for _ in range(2))
    quantizers = _ours(params, size, generator) | _theirs(dimension, codebook)

    def forward_and_backward(module: nn.Module, quantize: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        module.zero_grad(set_to_none=True)
        given = features.clone().requires_grad_()
        vectors, loss = quantize(given)
        ((vectors * upstream).sum() + loss).backward()

    actions = {name: lambda one=one: forward_and_backward(*one[1:]) for name, one in quantizers.items()}
    seconds = in_turns(actions, rounds, warmup)
    rows: list[Row] = [
        {"quantizer": name, "does": quantizers[name][0]} | row | extra_percent(seconds[name], seconds[OURS])
        for name, row in timed(actions, seconds).items()
    ]
    alike: list[Row] = [
        {"quantizer": ours, "against": theirs} | extra_percent(seconds[ours], seconds[theirs])
        for ours, theirs in ALIKE.items()
    ]
    return rows, alike


def _ours(params: Params, size: tuple[int, int, int, int], generator: torch.Generator) -> dict[str, tuple]:
    """By name: what it does, the module, and features -> vectors and loss."""
    _, _, dimension, codebook = size
    # The tokenizer's encoder and decoder are not used; its K only sizes them.
    small = {"image_size": params.data.image_size, "tokens": max(params.grid.tokens)}

    def quantizer(channel: str, usage: bool) -> tuple[nn.Module, Callable]:
        changes = {"dimension": dimension, "codebook": codebook, "channel": channel}
        tokenizer = DiscreteTokenizer(params.tokenizer.model_copy(update=changes), **small).to(device())
        used = torch.zeros(codebook, dtype=torch.bool, device=device())

        def quantize(features: Tensor) -> tuple[Tensor, Tensor]:
            posterior = tokenizer.posterior_of(F.normalize(features, dim=-1))
            tokens = tokenizer.sample(posterior, generator)
            if not usage:
                return tokens.vectors, tokens.vectors.new_zeros(())
            used[tokens.codes.flatten()] = True
            return tokens.vectors, -tokenizer.usage_entropy(posterior)

        return tokenizer, quantize

    return {
        OURS: ("posterior, Gumbel sample, softmax gradient, as in joint training", *quantizer("sampled", False)),
        "ours, sampled, usage": ("the same and the usage of codes, as in pretraining", *quantizer("sampled", True)),
        ARGMAX: ("posterior, argmax, softmax gradient", *quantizer("deterministic", False)),
    }


def _theirs(dimension: int, codebook: int) -> dict[str, tuple]:
    """As `_ours`."""

    def quantizer(settings: dict) -> tuple[nn.Module, Callable]:
        module = VectorQuantize(dimension, codebook, rotation_trick=False, **settings).to(device())

        def quantize(features: Tensor) -> tuple[Tensor, Tensor]:
            vectors, _, loss = module(features)
            return vectors, loss.sum()

        return module, quantize

    return {name: (does, *quantizer(settings)) for name, (does, settings) in THEIRS.items()}
