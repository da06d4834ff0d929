"""Peak memory and time of the information terms of large codebooks, forward and backward: the plain forms, which hold
(B, K, C) logits, and the chunked ones; of lookup-free codes the sums over bits, too. On a CPU each is done in a
process of its own, whose peak is its own.

The cost is what a training step asks of the public plug-in with `dib`: cost, the prior's own loss and the rate, under
a prior that positions share. The look-up gives embeddings of the nearest codes, hard forward and soft backward.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import Result, forget_peak, give_back, in_turns, peak_mib, timed, where_alone
from benchmarks.device import Row, device
from infotok.information.bits import BitPrior, lookup_free
from infotok.information.bottleneck import posterior_logits
from infotok.information.channel import Categorical
from infotok.information.factored import SharedPrior
from infotok.information.nearest import NearestCodes, look_up, nearest_codes
from infotok.information.objective import code_cost
from infotok.random import stream
from pipeline.config.params import Params

SIZES = {  # images, tokens, codes, dimensions
    "Chameleon 512 x 512": (1, 1024, 8192, 256),
    "Emu3 256 x 256": (1, 1024, 32768, 4),
    "Emu3 512 x 512": (1, 4096, 32768, 4),
}
LOOKUP_FREE = {f"{bits} bits": (1, 1024, 2**bits, bits) for bits in (13, 18)}
QUICK = {"tiny": (2, 64, 512, 4), "tiny, 4 times the codes": (2, 64, 2048, 4)}
WIDTH = 256  # of an embedding
NOISE = 0.1  # features are codes and this much noise
ROUNDS = 2


def measure(params: Params, quick: bool) -> Result:
    rounds = 1 if quick else ROUNDS
    measured = (
        ("Code length, rate and their gradients", COSTS, SIZES),
        ("Straight-through look-up", LOOK_UPS, SIZES),
        ("Code length, rate and their gradients of lookup-free codes", ["chunked", *BITS], LOOKUP_FREE),
    )
    tables = {
        title: [_row(form, name, size, rounds) for name, size in (QUICK if quick else sizes).items() for form in forms]
        for title, forms, sizes in measured
    }
    return Result({"rounds": rounds, "look-up width": WIDTH, "noise": NOISE}, tables)


def _row(form: str, name: str, size: tuple[int, int, int, int], rounds: int) -> Row:
    images, tokens, codes, dimension = size
    # A GPU's peak can be forgotten, and a process more would cost seconds.
    peak, busy, timing = (where_alone if device().type == "cpu" else _here)(_measured, form, size, rounds)
    logits = images * tokens * codes * 4 / 2**20
    about = {"form": form, "sizes of": name, "B": images, "K": tokens, "C": codes, "D": dimension}
    return about | {"peak_MiB": peak, "of B*K*C floats": peak / logits, "cpu_s": busy} | timing


def _here(work: Callable, *arguments: object) -> Any:
    return work(*arguments)


def _measured(form: str, size: tuple[int, int, int, int], rounds: int) -> tuple[float, float, Row]:
    """MiB at the peak beyond what was there before; seconds of the processor a round, which other processes do not
    lengthen; seconds on the clock and what the device did."""
    give_back()
    images, tokens, codes, dimension = size
    generator = stream(device(), 0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device())

    codebook = randn(codes, dimension).requires_grad_()
    chosen = torch.randint(codes, (images, tokens), generator=generator, device=device())
    features = (codebook.detach()[chosen] + NOISE * randn(images, tokens, dimension)).requires_grad_()
    work = (COSTS | LOOK_UPS | BITS)[form](features, codebook)
    forget_peak()
    before, busy = peak_mib(), time.process_time()
    seconds = in_turns({form: work}, rounds, warmup=0)
    peak, busy = peak_mib() - before, (time.process_time() - busy) / rounds
    return peak, busy, timed({form: work}, seconds)[form]


def _plain_cost(features: Tensor, codebook: Tensor) -> Callable[[], None]:
    prior = SharedPrior(len(codebook)).to(codebook.device)
    return _cost_of(lambda: Categorical(posterior_logits(features, codebook)), prior, code_cost, [features, codebook])


def _chunked_cost(features: Tensor, codebook: Tensor) -> Callable[[], None]:
    prior = SharedPrior(len(codebook)).to(codebook.device)
    return _cost_of(
        lambda: NearestCodes(features, codebook, NOISE**2), prior, NearestCodes.code_cost, [features, codebook]
    )


def _bits_cost(features: Tensor, codebook: Tensor) -> Callable[[], None]:
    """The codes are the signs of features; the list of them is left alone."""
    prior = BitPrior(features.shape[-1]).to(features.device)
    return _cost_of(lambda: lookup_free(features, NOISE**2), prior, code_cost, [features])


def _cost_of(channel: Callable, prior: nn.Module, cost: Callable, learned: list[Tensor]) -> Callable[[], None]:
    def work() -> None:
        q, r = channel(), prior()
        loss = cost(q.detach(), r, 0.0) + 0.01 * cost(q, r.detach(), 0.0)
        with torch.no_grad():
            cost(q, r, 1.0)
        torch.autograd.grad(loss, [*learned, r.logits])

    return work


def _plain_look_up(features: Tensor, codebook: Tensor) -> Callable[[], None]:
    table = _table(codebook)

    def work() -> None:
        q = posterior_logits(features, codebook).softmax(-1)
        hot = F.one_hot(q.argmax(-1), len(codebook)).float()
        rows = (hot + q - q.detach()) @ table
        torch.autograd.grad(rows.sum(), [features, codebook, table])

    return work


def _chunked_look_up(features: Tensor, codebook: Tensor) -> Callable[[], None]:
    table = _table(codebook)

    def work() -> None:
        rows = look_up(table, nearest_codes(features, codebook), features, codebook, NOISE**2)
        torch.autograd.grad(rows.sum(), [features, codebook, table])

    return work


def _table(codebook: Tensor) -> Tensor:
    return torch.linspace(-1, 1, len(codebook) * WIDTH, device=codebook.device).view(-1, WIDTH).requires_grad_()


COSTS = {"plain": _plain_cost, "chunked": _chunked_cost}
BITS = {"bits": _bits_cost}
LOOK_UPS = {"plain look-up": _plain_look_up, "chunked look-up": _chunked_look_up}
