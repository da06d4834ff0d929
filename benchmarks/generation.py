"""Images per second drawn in each family, and what the key-value cache is worth to `ar`.

The package draws with a cache alone; the loop without one stands here, and both must draw the same tokens.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import Result, in_turns, timed
from benchmarks.device import Row, device
from benchmarks.training import FAMILIES, SEED, Prepared, new_model, prepared
from infotok.data.texts import encode_captions
from infotok.errors import InfotokError
from infotok.evaluation.generation import draw
from infotok.models.decoding import truncated
from infotok.models.family import Sampling
from infotok.models.packing import Part, pack
from infotok.models.unified import UnifiedModel
from infotok.random import stream
from infotok.training.runtime import autocast
from pipeline.config.params import Params

BATCH = 512  # as evaluation draws
LONGER = [(64, 64), (256, 16)]  # token budgets and batches, beside those of the params
GUIDANCE = (1.0, 2.5)
LEAST_SAME = 99  # percent: a rounding may change a draw, and what follows it


def measure(params: Params, quick: bool) -> Result:
    tokens, batch = max(params.grid.tokens), 8 if quick else BATCH
    rounds, warmup = (1, 1) if quick else (10, 2) if device().type == "cpu" else (4, 1)
    sampling = params.generation.sampling()
    with tempfile.TemporaryDirectory() as folder:
        data = prepared(params, Path(folder) / "data", max(batch, params.train.batch, params.pretrain.batch))
        drawn = _families(params, data, batch, sampling, rounds, warmup)
        cached = []
        for size in [(tokens, batch)] if quick else [(tokens, batch), *LONGER]:
            cached += _cache(params, data, *size, sampling, rounds, warmup)
    tables = {f"Drawing {batch} images of {tokens} tokens": drawn, "Drawing of ar with and without a cache": cached}
    settings = {"rounds": rounds, "precision": params.train.precision, "backbone": params.backbone.model_dump()}
    return Result(settings | {"sampling": sampling.model_dump()}, tables)


def _families(params: Params, data: Prepared, batch: int, sampling: Sampling, rounds: int, warmup: int) -> list[Row]:
    """From captions to pixels, as evaluation does it."""
    tokens, captions = max(params.grid.tokens), [said[0] for said in data.split.captions[:batch]]
    models = {family: new_model(params, family, tokens, data.codec).eval() for family in FAMILIES}
    noise = {"seed": SEED, "precision": params.train.precision, "batch": batch}
    actions = {
        (family, guidance): lambda model=model, guided=params.generation.sampling(guidance=guidance): draw(
            model, captions, data.codec, guided, **noise
        )
        for family, model in models.items()
        for guidance in GUIDANCE
    }
    rows = []
    for (family, guidance), timing in timed(actions, in_turns(actions, rounds, warmup)).items():
        per_second = 1000 * batch / timing["median_ms"]
        rates = {"images_per_s": per_second, "tokens_per_s": tokens * per_second}
        rows.append({"family": family, "guidance": guidance} | timing | rates)
    return rows


def _cache(
    params: Params, data: Prepared, tokens: int, batch: int, sampling: Sampling, rounds: int, warmup: int
) -> list[Row]:
    """Tokens alone, from the same captions and noise."""
    model = new_model(params, "ar", tokens, data.codec).eval()
    ids, valid = encode_captions([said[0] for said in data.split.captions[:batch]], data.codec)
    ids, valid = ids.to(device()), valid.to(device())

    def cached() -> Tensor:
        noise = stream(device(), SEED)
        return model.family.draw(model.backbone, model.tokenizer, ids, valid, sampling, noise).codes

    def uncached() -> Tensor:
        return draw_without_cache(model, ids, valid, sampling, stream(device(), SEED))

    same = 100 * float((cached() == uncached()).float().mean())
    if same < LEAST_SAME:
        raise InfotokError(f"with and without a cache only {same:.1f} % of the tokens drawn are the same")
    actions = {"yes": cached, "no": uncached}
    with autocast(device(), params.train.precision):
        timings = timed(actions, in_turns(actions, rounds, warmup))
    rows = []
    for name, timing in timings.items():
        rate = {"tokens_per_s": 1000 * batch * tokens / timing["median_ms"]}
        rows.append({"tokens": tokens, "batch": batch, "cache": name} | timing | rate | {"same_tokens_%": same})
    return rows


@torch.no_grad()
def draw_without_cache(
    model: UnifiedModel, captions: Tensor, valid: Tensor, sampling: Sampling, generator: torch.Generator
) -> Tensor:
    """Codes (B, K) that `ar` draws for captions (B, L), every token from a pass over all columns before it."""
    family, backbone = model.family, model.backbone
    caption = Part(backbone.embed_text(captions), valid, torch.zeros_like(captions[:, 0]))
    columns, codes = [family.begin.expand(len(captions), 1, -1)], []
    for place in range(family.tokens):
        inputs = torch.cat(columns, 1) + family.place[1, : place + 1]
        everywhere = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
        hidden = backbone(*pack([caption, Part(inputs, everywhere, valid.sum(1), sees=(0,))]))[:, -1]
        logits = truncated(family.head(hidden).float().log_softmax(-1), sampling)
        codes.append(torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0])
        columns.append(family.project(model.tokenizer.embed(codes[-1]))[:, None])
    return torch.stack(codes, 1)
