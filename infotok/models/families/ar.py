"""Autoregressive family (UniTok/Liquid, Chameleon, Emu3): next-token prediction over image codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infotok.information.channel import Categorical
from infotok.models import family
from infotok.models.backbone import Backbone
from infotok.models.family import Sampling
from infotok.tokenizer.discrete import DiscreteTokenizer, Tokens


class Family(family.Family):
    """Codes left to right: place k holds code k - 1, place 0 a begin mark."""

    def __init__(self, tokenizer: DiscreteTokenizer, width: int):
        super().__init__(tokenizer, width)
        self.begin = nn.Parameter(torch.randn(width) * 0.5)
        self.head = nn.Linear(width, tokenizer.config.codebook, bias=False)

    def generation_inputs(self, tokens: Tokens, generator: torch.Generator) -> Tensor:
        vectors = self.project(tokens.vectors.detach()[:, :-1])
        begin = self.begin.to(vectors.dtype).expand(len(vectors), 1, -1)
        return torch.cat([begin, vectors], 1) + self.place[1]

    def generation_loss(self, hidden: Tensor, tokens: Tokens) -> tuple[Tensor, Categorical]:
        logits = self.head(hidden).float()
        return F.cross_entropy(logits.flatten(0, 1), tokens.codes.flatten()), Categorical(logits)

    @torch.no_grad()
    def draw(
        self,
        backbone: Backbone,
        tokenizer: DiscreteTokenizer,
        captions: Tensor,
        valid: Tensor,
        sampling: Sampling,
        generator: torch.Generator,
    ) -> Tokens:
        from transformers import DynamicCache

        guided = sampling.guidance != 1.0
        if guided:  # the second half sees the begin mark alone: the unconditional twin of every caption
            bare = torch.zeros_like(valid)
            bare[:, 0] = True
            captions, valid = torch.cat([captions, captions]), torch.cat([valid, bare])
        batch, length = captions.shape
        cache = DynamicCache()
        causal = torch.ones(length, length, dtype=torch.bool, device=captions.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=captions.device)
        places = torch.arange(length, device=captions.device).expand(batch, -1)
        backbone(backbone.embed_text(captions), (causal & valid[:, None]) | itself, places, cache)
        start, codes = valid.sum(1), []
        step = self.begin.expand(batch, 1, -1)
        for place in range(self.tokens):
            drawn = torch.ones(batch, place + 1, dtype=torch.bool, device=captions.device)
            allowed = torch.cat([valid, drawn], 1)[:, None]
            hidden = backbone(step + self.place[1, place], allowed, (start + place)[:, None], cache)
            code = _choose(self.head(hidden[:, 0]).float(), sampling, generator)
            codes.append(code)
            step = self.project(tokenizer.embed(code))[:, None]
            if guided:
                step = torch.cat([step, step])
        stacked = torch.stack(codes, 1)
        return Tokens(tokenizer.embed(stacked), stacked)


def _choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Codes (B,) from logits (B, C), or (2 B, C) with the unconditional half second."""
    if sampling.guidance != 1.0:
        conditional, bare = logits.log_softmax(-1).chunk(2)
        logits = bare + sampling.guidance * (conditional - bare)
    logits = logits / sampling.temperature
    if sampling.top_k:
        kept = logits.topk(min(sampling.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kept, -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
