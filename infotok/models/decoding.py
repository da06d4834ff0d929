"""Drawing image tokens after captions that are read once: what the families' samplers share.

Shapes: B images, L caption columns, n new columns, C codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infotok.models.backbone import Backbone
from infotok.models.family import Sampling


class Prompted:
    """Captions in a key-value cache, behind which images are drawn.

    With guidance a second half of the batch sees the begin mark alone, the unconditional twin of every caption; callers
    give inputs for B images and get hidden states of both halves, which `guide` brings together again.
    """

    def __init__(self, backbone: Backbone, captions: Tensor, valid: Tensor, sampling: Sampling):
        from transformers import DynamicCache

        self.backbone, self.guidance, self.images = backbone, sampling.guidance, len(captions)
        self.guided = sampling.guidance != 1.0
        if self.guided:
            bare = torch.zeros_like(valid)
            bare[:, 0] = True
            captions, valid = torch.cat([captions, captions]), torch.cat([valid, bare])
        batch, self.length = captions.shape
        self.cache, self.valid, self.start = DynamicCache(), valid, valid.sum(1)
        causal = torch.ones(self.length, self.length, dtype=torch.bool, device=captions.device).tril()
        itself = torch.eye(self.length, dtype=torch.bool, device=captions.device)
        places = torch.arange(self.length, device=captions.device).expand(batch, -1)
        backbone(backbone.embed_text(captions), (causal & valid[:, None]) | itself, places, self.cache)

    def append(self, inputs: Tensor, place: int) -> Tensor:
        """Hidden states (B or 2 B, 1, width) of one more column (B, 1, width), token `place`, which sees the caption
        and the columns before it and stays in the cache."""
        drawn = torch.ones(len(self.valid), place + 1, dtype=torch.bool, device=inputs.device)
        allowed = torch.cat([self.valid, drawn], 1)[:, None]
        return self.backbone(self._doubled(inputs), allowed, (self.start + place)[:, None], self.cache)

    def whole(self, inputs: Tensor) -> Tensor:
        """Hidden states (B or 2 B, n, width) of an image's columns (B, n, width), which see the caption and each other
        and are forgotten again."""
        columns = inputs.shape[1]
        drawn = torch.ones(len(self.valid), columns, dtype=torch.bool, device=inputs.device)
        allowed = torch.cat([self.valid, drawn], 1)[:, None].expand(-1, columns, -1)
        places = self.start[:, None] + torch.arange(columns, device=inputs.device)
        hidden = self.backbone(self._doubled(inputs), allowed, places, self.cache)
        self.cache.crop(-columns)
        return hidden

    def guide(self, values: Tensor) -> Tensor:
        """(B, ...) values bare + guidance * (conditional - bare) of both halves; values themselves without guidance."""
        if not self.guided:
            return values
        conditional, bare = values.chunk(2)
        return bare + self.guidance * (conditional - bare)

    def _doubled(self, inputs: Tensor) -> Tensor:
        return torch.cat([inputs, inputs]) if self.guided else inputs


def truncated(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits (..., C) at the temperature, all but the `top_k` highest excluded."""
    logits = logits / sampling.temperature
    if sampling.top_k:
        kept = logits.topk(min(sampling.top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kept, -torch.inf)
    return logits
