"""Autoregressive family (UniTok/Liquid, Chameleon, Emu3): next-token prediction over image codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infotok.information.channel import Categorical
from infotok.models import family
from infotok.models.backbone import Backbone
from infotok.models.decoding import Prompted, truncated
from infotok.models.family import Predicted, Sampling
from infotok.random import Source
from infotok.tokenizer.base import Tokens
from infotok.tokenizer.discrete import DiscreteTokenizer


class Family(family.Family[DiscreteTokenizer]):
    """Codes left to right: place k holds code k - 1, place 0 a begin mark."""

    tokenizer_class = DiscreteTokenizer

    def __init__(self, tokenizer: DiscreteTokenizer, width: int):
        super().__init__(tokenizer, width)
        self.begin = nn.Parameter(torch.randn(width) * 0.5)
        self.head = nn.Linear(width, tokenizer.config.codebook, bias=False)

    def generation_inputs(self, tokens: Tokens, generator: Source) -> tuple[Tensor, Tensor]:
        vectors = self.project(tokens.vectors.detach()[:, :-1])
        begin = self.begin.to(vectors.dtype).expand(len(vectors), 1, -1)
        inputs = torch.cat([begin, vectors], 1) + self.place[1]
        return inputs, torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)

    def predict(self, hidden: Tensor, tokens: Tokens, asked: Tensor, generator: Source) -> Predicted:
        assert tokens.codes is not None
        logits = self.head(hidden).float()
        return Predicted(F.cross_entropy(logits.flatten(0, 1), tokens.codes.flatten()), Categorical(logits))

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
        prompted, codes = Prompted(backbone, captions, valid, sampling), []
        step = self.begin.expand(len(captions), 1, -1)
        for place in range(self.tokens):
            hidden = prompted.append(step + self.place[1, place], place)[:, 0]
            logits = prompted.guide(self.head(hidden).float().log_softmax(-1))
            code = torch.multinomial(truncated(logits, sampling).softmax(-1), 1, generator=generator)[:, 0]
            codes.append(code)
            step = self.project(tokenizer.embed(code))[:, None]
        stacked = torch.stack(codes, 1)
        return Tokens(tokenizer.embed(stacked), stacked)
