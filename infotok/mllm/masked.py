"""Models of masked discrete diffusion (LLaDA, Lumina-DiMOO, MMaDA): what is masked is predicted from all the rest.

Training masks some of a text's or an image's tokens and asks for these alone. Answering and drawing begin with masks
alone and give up those first that the model is surest of (Chang et al. 2022; Nie et al. 2025). Each sequence is read
alone: attention goes both ways and takes no mask, so that beside a longer sequence it would read padding.
Shapes: B images, h x w tokens, K = h * w, C codes, width of the language model, L columns of a sequence, n of an
answer.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from infotok.errors import InfotokError
from infotok.information.factored import Factored
from infotok.mllm.adapter import PADDING, Drawing, Encoded, Inputs
from infotok.mllm.codes import CodeAdapter
from infotok.mllm.losses import cross_entropies
from infotok.models.families.mask import masked_after, order_agnostic_weight
from infotok.random import shared_random

if TYPE_CHECKING:
    from infotok.mllm.batches import Batch

SHORT = 5  # tokens of an answer that is masked as a whole, as Lumina-DiMOO's training does
ROOM = 32  # tokens that training gives an answer at least, the rest of them padding


@dataclass(frozen=True)
class Unmasking:
    """How an image is drawn. do_sample: draw codes and the order of unmasking by chance, at a temperature, from all
    codes or the `top_k` likeliest; else the likeliest. guidance: 1 for none. steps: forwards, at most one a token."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    guidance: float = 1.0
    steps: int = 64


class MaskedAdapter(CodeAdapter):
    """A model that predicts what stands at masks.

    mask_id, end_id, padding_id: entries of the vocabulary: a mask, what ends an answer, and what stands behind it.
    """

    mask_id: int
    end_id: int
    padding_id: int

    @abc.abstractmethod
    def hidden(self, embedded: Tensor) -> Tensor:
        """Last hidden states (1, L, width) of embeddings (1, L, width), each predicting its own place."""

    def states(self, rows: list[Tensor], images: Tensor | None = None) -> list[Tensor]:
        """Hidden states (L, width) of sequences of ids (L,) each; images: embeddings (B, K, width) in the place of the
        ids of codes."""
        found = []
        for index, ids in enumerate(rows):
            embedded = self.model.get_input_embeddings()(ids)
            if images is not None:
                place = torch.isin(ids, self.code_ids())[:, None]
                embedded = embedded.masked_scatter(place, images[index].to(embedded.dtype))
            found.append(self.hidden(embedded[None])[0])
        return found

    # Training.

    def drawing(self, prompt: Inputs, encoded: Encoded, generator: torch.Generator) -> Drawing:
        """Each image's loss is the mean over its masks, which gives a token at ratio t of masks the weight 1 / t."""
        codes, prompts = encoded.codes, rows_of(prompt)
        assert codes is not None
        targets = self.draw_targets(codes)
        columns = self.code_columns(*codes.shape[1:])
        masked = random_masks(torch.ones_like(targets[:, columns], dtype=torch.bool), generator)
        given = targets.clone()
        given[:, columns] = targets[:, columns].masked_fill(masked, self.mask_id)
        made = self.states([torch.cat(pair) for pair in zip(prompts, given, strict=True)])
        states = torch.stack([row[-targets.shape[1] :] for row in made])[:, columns]
        losses = self._row_means(states, targets[:, columns], masked)
        with torch.no_grad():  # of prompts alone: beside codes they would have read them
            text = torch.stack([row[-1] for row in self.states(prompts)]).float()
        predicted = Factored(states, self.code_head())
        return Drawing(losses.mean(), text, predicted, order_agnostic_weight(masked))

    def understanding(self, batch: Batch, encoded: Encoded, lm_gradient: float, generator: torch.Generator) -> Tensor:
        """Masks of an answer, and apart from them masks of the padding behind it; a mean over masks stands for all of
        an answer's tokens."""
        answer = batch.answers != PADDING
        room = max(ROOM, answer.shape[1])
        targets = torch.full((len(answer), room), self.padding_id, device=self.device)
        targets[:, : answer.shape[1]] = batch.answers.where(answer, self.padding_id)
        answer = torch.nn.functional.pad(answer, (0, room - answer.shape[1]))
        short = answer & (answer.sum(1, keepdim=True) <= SHORT)
        masked = random_masks(answer, generator) | short
        behind = random_masks(~answer, generator)
        given = targets.masked_fill(masked | behind, self.mask_id)
        images = self.embedded(encoded, lm_gradient).flatten(1, 2)
        sequences = [torch.cat(pair) for pair in zip(rows_of(batch.ask), given, strict=True)]
        states = torch.stack([row[-room:] for row in self.states(sequences, images)])
        losses = self._row_means(states, targets, masked) + self._row_means(states, targets, behind)
        tokens = answer.sum(1)
        return (losses * tokens).sum() / tokens.sum()

    def _row_means(self, states: Tensor, targets: Tensor, masked: Tensor) -> Tensor:
        """(B,): mean cross-entropy of the masked targets (B, n) of each row; 0 where a row has none."""
        losses = torch.zeros(masked.shape, device=states.device)
        if masked.any():
            losses = losses.masked_scatter(masked, cross_entropies(self.head, states[masked], targets[masked]))
        return losses.sum(1) / masked.sum(1).clamp_min(1)

    # Answering and drawing.

    @torch.no_grad()
    def answer(self, images: list[Any], questions: list[str], **sampling: Any) -> list[str]:
        """By unmasking `max_new_tokens` places, in `steps` forwards, by default one a place."""
        room = sampling.pop("max_new_tokens", ROOM)
        steps = min(sampling.pop("steps", room), room)
        if sampling:
            raise InfotokError(f"{', '.join(sampling)}: a masked model takes max_new_tokens and steps to answer")
        asked = self.ask(images, questions)
        read = self.code_embeddings()[self.codes(asked["pixel_values"])].flatten(1, 2)
        said = []
        for prompt, image in zip(rows_of(asked), read, strict=True):
            ids = torch.full((room,), self.mask_id, device=self.device)
            for step in range(steps):
                states = self.states([torch.cat([prompt, ids])], image[None])[0][-room:]
                logits = self.head(states).float()
                logits[:, self.mask_id] = -torch.inf
                sure, likeliest = logits.softmax(-1).max(-1)
                hidden = ids == self.mask_id
                surest = sure.masked_fill(~hidden, -1).topk(math.ceil(int(hidden.sum()) / (steps - step))).indices
                ids[surest] = likeliest[surest]
            told = ids.tolist()
            end = told.index(self.end_id) if self.end_id in told else room
            said.append(self.processor.tokenizer.decode(told[:end], skip_special_tokens=True).strip())
        return said

    @torch.no_grad()
    def draw(self, captions: list[str], h: int, w: int, **sampling: Any) -> Tensor:
        """By unmasking with the cosine schedule; sampling: as of `Unmasking`."""
        try:
            how = Unmasking(**sampling)
        except TypeError:
            known = ", ".join(Unmasking.__dataclass_fields__)
            raise InfotokError(f"{', '.join(sampling)}: a masked model takes {known} to draw") from None
        (bare,) = rows_of(self.draw_prompt([""], h, w))
        prompts = [rows_of(self.draw_prompt([caption], h, w))[0] for caption in captions]
        return torch.stack([self._draw(prompt, bare, h, w, how) for prompt in prompts])

    def _draw(self, prompt: Tensor, bare: Tensor, h: int, w: int, how: Unmasking) -> Tensor:
        """Codes (h, w) after a prompt; bare: the prompt without a caption, for guidance."""
        count, columns = h * w, self.code_columns(h, w)
        codes = torch.zeros(1, count, dtype=torch.long, device=self.device)
        masked = torch.ones_like(codes, dtype=torch.bool)

        def logits_after(prompt: Tensor) -> Tensor:
            given = self.draw_targets(codes.view(1, h, w))[0]
            given[columns] = given[columns].masked_fill(masked[0], self.mask_id)
            states = self.states([torch.cat([prompt, given])])[0][-len(given) :]
            return states[columns].float() @ self.code_head().float().T

        for left in masked_after(count, min(how.steps, count)):
            logits = logits_after(prompt)
            if how.guidance != 1:
                without = logits_after(bare)
                logits = without + how.guidance * (logits - without)
            drawn, confidence = _chosen(logits, how)
            codes = codes.where(~masked, drawn)
            confidence = confidence.masked_fill(~masked[0], torch.inf)
            masked = (confidence.argsort().argsort() < left)[None]
        return codes.view(h, w)


def rows_of(inputs: Inputs) -> list[Tensor]:
    """Ids of each row without padding."""
    rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
    return [ids[present] for ids, present in rows]


def random_masks(present: Tensor, generator: torch.Generator) -> Tensor:
    """(B, n) bool: which of the tokens that are present (B, n) are masked: at least one, by the cosine schedule.

    The share is cos(pi u / 2) of a uniform u, rounded up.
    """
    count = present.sum(1, keepdim=True)
    share = torch.cos(0.5 * math.pi * shared_random(torch.rand, (len(present), 1), generator))
    order = shared_random(torch.rand, present.shape, generator).masked_fill(~present, torch.inf)
    return present & (order.argsort(1).argsort(1) < (share * count).ceil().clamp_min(1))


def _chosen(logits: Tensor, how: Unmasking) -> tuple[Tensor, Tensor]:
    """Codes (K,) of logits (K, C), and how sure they are (K,)."""
    sure = logits.log_softmax(-1)
    if not how.do_sample:
        confidence, codes = sure.max(-1)
        return codes, confidence
    if how.top_k:
        least = logits.topk(min(how.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    codes = torch.distributions.Categorical(logits=logits / how.temperature).sample()
    chance = torch.distributions.Gumbel(logits.new_zeros(()), logits.new_ones(())).sample((len(codes),))
    return codes, sure.gather(-1, codes[:, None])[:, 0] + how.temperature * chance
