"""A unified multimodal LLM: one tokenizer whose tokens are read to answer and written to draw.

One training sequence holds [image][question 1] ... [question n] [description] [caption][image to draw]; every question
sees the image and itself, the drawn image sees its caption. Shapes: B examples, n questions, L columns, K image tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infotok.data.texts import QuestionBatch, TextBatch
from infotok.information.channel import Channel
from infotok.information.consistency import emphasized
from infotok.information.priors import Priors
from infotok.models.backbone import Backbone
from infotok.models.family import Predicted, family_class
from infotok.models.losses import IGNORED, chosen_cross_entropy
from infotok.models.packing import Part, pack
from infotok.random import Source, world_of
from infotok.tokenizer.base import Tokenizer, Tokens


@dataclass
class Outputs:
    """One training pass. tokens: what flowed through the channel; read: (B, K, D), what of it was read and decoded,
    less by nested dropout. answer_loss: mean nats per predicted token of the answers to questions (scalar).
    description: (B,), nats of each image's caption given its tokens; None where it is not asked for. drawing: what the
    generator says of the tokens. text: pooled caption states (B, width); has_caption: (B,) bool, False where it was
    dropped."""

    posterior: Channel
    tokens: Tokens
    read: Tensor
    answer_loss: Tensor
    description: Tensor | None
    drawing: Predicted
    text: Tensor
    has_caption: Tensor


def before(states: Tensor, columns: Tensor) -> Tensor:
    """(B, A, width): of states (B, L, width) those before columns (B, A), which predict them; before 0 the first."""
    return states.gather(1, (columns - 1).clamp_min(0)[..., None].expand(-1, -1, states.shape[-1]))


class UnifiedModel(nn.Module):
    """Tokenizer, its priors, backbone, and the family's way to draw."""

    def __init__(self, family: str, tokenizer: Tokenizer, backbone: Backbone):
        super().__init__()
        self.family_name = family
        self.tokenizer, self.backbone = tokenizer, backbone
        self.family = family_class(family)(tokenizer, backbone.width)
        self.priors = Priors(tokenizer.make_prior(), tokenizer.tokens, tokenizer.config.dimension)

    def forward(self, images: Tensor, texts: TextBatch, generator: Source, emphasis: Tensor | None = None) -> Outputs:
        """Images (B, 3, S, S) in [-1, 1] and their texts; `generator` feeds the channel and the family. emphasis: how
        many times as large the description's gradient is for the tokens as for the language model (scalar)."""
        posterior = self.tokenizer.encode(images)
        tokens = self.tokenizer.sample(posterior, generator)
        read = self.tokenizer.nested_dropout(tokens.vectors, generator)
        size = self.family.tokens
        start = torch.full((len(images),), size, device=images.device)
        parts = [self._image_part(read)]
        for asked in texts.questions:
            parts.append(Part(self.backbone.embed_text(asked.ids), asked.valid, start, sees=(0,)))
        if texts.description is not None:
            about, described = 0, texts.description
            if emphasis is not None:  # the same columns again, since only this gradient is scaled
                about = len(parts)
                parts.append(self._image_part(emphasized(read, emphasis)))
            parts.append(Part(self.backbone.embed_text(described.ids), described.valid, start, sees=(about,)))
        drawn, to_predict = self._drawing_parts(
            tokens, texts.captions, texts.captions_valid, generator, first=len(parts)
        )
        parts += drawn
        _, *asked_states, captions, drawing = self.backbone.read(parts)
        questions = asked_states[: len(texts.questions)]

        # Of the columns of a question those alone that predict its answer go through the head.
        states = torch.cat([before(s, one.answers) for s, one in zip(questions, texts.questions, strict=True)], 1)
        wanted = torch.cat([one.ids.gather(1, one.answers) for one in texts.questions], 1)
        answers = torch.cat([one.answers for one in texts.questions], 1) > 0
        logits = self.backbone.text_logits(states).float()
        answer_loss = chosen_cross_entropy(logits, wanted, answers)
        answer_loss = world_of(generator).weighted(answer_loss, answers.sum())
        description = None
        if texts.description is not None:
            description = self._nats(asked_states[-1], texts.description)
        predicted = self.family.predict(drawing, tokens, to_predict, generator)
        weight = texts.captions_valid[..., None].to(captions.dtype)
        text = (captions * weight).sum(1) / weight.sum(1)
        has_caption = texts.captions_valid[:, 1:].any(1)
        return Outputs(posterior, tokens, read, answer_loss, description, predicted, text, has_caption)

    def _nats(self, states: Tensor, asked: QuestionBatch) -> Tensor:
        """What the answers cost, (B,) nats, of hidden states (B, L, width) of questions and answers."""
        logits = self.backbone.text_logits(before(states, asked.answers)).float()
        targets = asked.ids.gather(1, asked.answers).masked_fill(asked.answers == 0, IGNORED)
        return F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none").sum(1)

    def predict(self, tokens: Tokens, captions: Tensor, valid: Tensor, generator: Source) -> Predicted:
        """What the generator says of given tokens, teacher-forced."""
        parts, to_predict = self._drawing_parts(tokens, captions, valid, generator, first=0)
        _, drawing = self.backbone.read(parts)
        return self.family.predict(drawing, tokens, to_predict, generator)

    @torch.no_grad()
    def answer(self, vectors: Tensor, questions: Tensor, valid: Tensor, most: int, end: int) -> Tensor:
        """Greedy answers.

        Args:
            vectors: (B, K, D) image vectors. questions: (B, L) ids, valid: (B, L), padded on the right.
            most: answer tokens at most. end: id that ends an answer.

        Returns:
            (B, n) ids; after an end mark everything is the end mark. n is `most`, or less where all answers ended.
        """
        from transformers import DynamicCache

        batch = len(questions)
        image = self._image_part(vectors)
        start = torch.full((batch,), self.family.tokens, device=questions.device)
        cache = DynamicCache()
        embeddings, allowed, positions = pack(
            [image, Part(self.backbone.embed_text(questions), valid, start, sees=(0,))]
        )
        hidden = self.backbone(embeddings, allowed, positions, cache)
        count, seen = valid.sum(1), torch.cat([image.valid, valid], 1)
        last = (self.family.tokens + count - 1)[:, None, None].expand(-1, 1, hidden.shape[-1])
        ids = self.backbone.text_logits(hidden.gather(1, last)[:, 0]).argmax(-1)
        out, ended = [ids], ids == end
        for step in range(1, most):
            if ended.all():
                break
            seen = torch.cat([seen, torch.ones_like(seen[:, :1])], 1)
            place = (start + count + step - 1)[:, None]
            hidden = self.backbone(self.backbone.embed_text(ids)[:, None], seen[:, None], place, cache)
            ids = self.backbone.text_logits(hidden[:, 0]).argmax(-1).masked_fill(ended, end)
            ended = ended | (ids == end)
            out.append(ids)
        return torch.stack(out, 1)

    def _image_part(self, vectors: Tensor) -> Part:
        batch = len(vectors)
        valid = torch.ones(batch, self.family.tokens, dtype=torch.bool, device=vectors.device)
        start = torch.zeros(batch, dtype=torch.long, device=vectors.device)
        return Part(self.family.read_inputs(vectors), valid, start, bidirectional=True)

    def _drawing_parts(
        self, tokens: Tokens, captions: Tensor, valid: Tensor, generator: Source, first: int
    ) -> tuple[list[Part], Tensor]:
        """The caption and the image to draw, as parts `first` and `first + 1`, and the tokens to predict, (B, K)."""
        zero = torch.zeros(len(captions), dtype=torch.long, device=captions.device)
        inputs, to_predict = self.family.generation_inputs(tokens, generator)
        everywhere = torch.ones(inputs.shape[:2], dtype=torch.bool, device=captions.device)
        parts = [
            Part(self.backbone.embed_text(captions), valid, zero),
            Part(inputs, everywhere, valid.sum(1), sees=(first,), bidirectional=self.family.bidirectional),
        ]
        return parts, to_predict

    def describe(self) -> dict[str, Any]:
        """Family and sizes as JSON, enough to build the model again."""
        return {
            "family": self.family_name,
            "tokenizer": self.tokenizer.describe(),
            "backbone": self.backbone.describe(),
        }
