"""The joint step: one forward of one module, from pixels to the loss of tokenizer and language model.

The language model reads embeddings of the nearest codes, hard; backward they are soft, so that it teaches the encoder
what it needs to read. How strongly is a setting: at full strength its gradient is known to hurt the tokenizer.
Shapes: B images, h x w tokens, K = h * w, D dimensions of a code, L columns of a sequence, n of what is predicted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from infotok.information.bottleneck import InformationBottleneck
from infotok.information.factored import Factored
from infotok.information.nearest import NearestCodes, look_up, nearest_codes
from infotok.mllm.adapter import PADDING, Adapter
from infotok.mllm.batches import Batch
from infotok.mllm.parts import ONLY, Part
from infotok.options import Scale, Section, Weight
from infotok.random import Purpose

ROWS = 64  # of logits that are made at once: of a vocabulary of 200,000, 50 MB


class StepConfig(Section):
    """The loss of a joint step.

    understanding, generation, reconstruction: weights of the cross-entropy of answers, of that of codes, and of the
    mean squared error of pixels in the processor's scale. commitment: weight of features' distance to their codes,
    where codes' distance to their features counts once. lm_gradient: by how much the language model's gradient
    reaches the tokenizer. relaxation: temperature of the softmax over codes that gradients pass.
    """

    understanding: Weight = 1.0
    generation: Weight = 1.0
    reconstruction: Weight = 1.0
    commitment: Weight = 0.25
    lm_gradient: Weight = 0.05
    relaxation: Scale = 1.0


class JointStep(nn.Module):
    """Holds everything that is trained. variance: of the codes' Gaussians, from `calibrate_variance`, held."""

    def __init__(self, adapter: Adapter, bottleneck: InformationBottleneck, variance: float, config: StepConfig):
        super().__init__()
        self.adapter, self.config, self.variance = adapter, config, variance
        self.model, self.extra, self.bottleneck = adapter.model, adapter.extra, bottleneck

    def train(self, mode: bool = True) -> JointStep:
        """Batch norms stay in evaluation mode: with statistics of the batch an image's codes would depend on the images
        beside it, and would not be those that the saved model gives."""
        super().train(mode)
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, batch: Batch, part: Part = ONLY, compared: bool = False) -> Any:
        """The loss (scalar) and its parts, detached; of one part of a step, they are to be averaged over all.

        compared: instead, the rows that the regularizer compares with those of other parts, by name, detached. It is
        asked for here since a sharded module has its weights in its forward alone.
        """
        return self._compared(batch) if compared else self._losses(batch, part)

    @torch.no_grad()
    def _compared(self, batch: Batch) -> dict[str, Tensor]:
        """As `_losses` gives them, to the last bit."""
        adapter = self.adapter
        features, codebook = adapter.features(batch.pixels).float(), adapter.codebook().float()
        codes = nearest_codes(features, codebook)
        passed = features + (F.embedding(codes, codebook) - features)
        text = adapter.draw_states(batch.prompt, codes)[:, 0].float() if self.bottleneck.gamma else None
        return self.bottleneck.compared(
            inputs=batch.pixels, vectors=passed.flatten(1, 2), text=text, has_text=batch.has_caption
        )

    def _losses(self, batch: Batch, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        adapter, config = self.adapter, self.config
        features, codebook = adapter.features(batch.pixels).float(), adapter.codebook().float()
        codes = nearest_codes(features, codebook)
        vectors = F.embedding(codes, codebook)
        passed = features + (vectors - features).detach()
        error = (adapter.decode(passed).float() - batch.pixels.float()).square().mean()
        of_codes = (vectors - features.detach()).square().mean()
        commitment = (features - vectors.detach()).square().mean()
        understanding = self._understand(batch, codes, features, codebook)
        understanding = part.weighted(understanding, int((batch.answers != PADDING).sum()))
        states, targets = adapter.draw_states(batch.prompt, codes), adapter.draw_targets(codes)
        generation = cross_entropy(adapter.draw_head, states.flatten(0, 1), targets.flatten())
        term = self.bottleneck(
            NearestCodes(features.flatten(1, 2), codebook, self.variance, config.relaxation),
            self._conditional(states, batch) if "conditional" in self.bottleneck.estimator.needs else None,
            inputs=batch.pixels,
            vectors=passed.flatten(1, 2),
            text=states[:, 0].float(),  # where the caption has been read, and no code
            has_text=batch.has_caption,
            generator=part.common_stream(features.device, Purpose.KERNELS),
        )
        tokenizer = error + of_codes + config.commitment * commitment
        loss = config.understanding * understanding + config.generation * generation + config.reconstruction * tokenizer
        parts = {"understanding": understanding, "generation": generation, "reconstruction": error}
        parts["commitment"] = commitment
        return loss + term.loss, {name: value.detach() for name, value in parts.items()} | term.parts

    def _understand(self, batch: Batch, codes: Tensor, features: Tensor, codebook: Tensor) -> Tensor:
        """Cross-entropy of the answers given the codes (scalar), or given pixels, where tokens are not shared."""
        adapter, config = self.adapter, self.config
        image: Any = batch.pixels
        if adapter.shared:
            given: dict[str, Any] = {"relaxation": config.relaxation, "gradient": config.lm_gradient}
            embedded = look_up(adapter.code_embeddings(), codes, features, codebook, self.variance, **given)
            image = adapter.image_outputs(embedded.to(adapter.model.dtype))
        states, present = adapter.states(batch.ask, batch.answers, image), batch.answers != PADDING
        return cross_entropy(adapter.head, states[present], batch.answers[present])

    @torch.no_grad()
    def _conditional(self, states: Tensor, batch: Batch) -> Factored:
        return self.adapter.predicted(states, *batch.size)


def cross_entropy(head: Callable[[Tensor], Tensor], states: Tensor, targets: Tensor, rows: int = ROWS) -> Tensor:
    """Mean cross-entropy (scalar) of targets (N,) given states (N, width), whose N * V logits are never all there."""

    def part(some: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(head(some).float(), wanted, reduction="sum")

    pieces = zip(states.split(rows), targets.split(rows), strict=True)
    sums = [checkpoint(part, some, wanted, use_reentrant=False) for some, wanted in pieces]
    return torch.stack(sums).sum() / len(targets)
