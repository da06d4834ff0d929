"""The joint step: one forward of one module, from pixels to the loss of tokenizer and language model.

The language model reads embeddings of the nearest codes, hard; backward they are soft, so that it teaches the encoder
what it needs to read. How strongly is a setting: at full strength its gradient is known to hurt the tokenizer.
Shapes: B images, h x w tokens, K = h * w, D dimensions of a code, L columns of a sequence, n of what is predicted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from infotok.information.bottleneck import InformationBottleneck
from infotok.information.factored import Factored
from infotok.information.nearest import NearestCodes, look_up, nearest_codes
from infotok.mllm.adapter import PADDING, Adapter, Inputs
from infotok.mllm.batches import Batch
from infotok.options import Scale, Section, Weight

LOGITS = 2**22  # of the vocabulary that are made at once


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

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (scalar) and its parts, detached."""
        adapter, config = self.adapter, self.config
        features, codebook = adapter.features(batch.pixels).float(), adapter.codebook().float()
        codes = nearest_codes(features, codebook)
        vectors = F.embedding(codes, codebook)
        passed = features + (vectors - features).detach()
        error = (adapter.decode(passed).float() - batch.pixels.float()).square().mean()
        of_codes = (vectors - features.detach()).square().mean()
        commitment = (features - vectors.detach()).square().mean()
        understanding = self._understand(batch, codes, features, codebook)
        generation, states = self._generate(batch, codes)
        term = self.bottleneck(
            NearestCodes(features.flatten(1, 2), codebook, self.variance, config.relaxation),
            self._conditional(states, batch.size) if "conditional" in self.bottleneck.estimator.needs else None,
            inputs=batch.pixels,
            vectors=passed.flatten(1, 2),
            text=states[:, 0].float(),  # where the caption has been read, and no code
            has_text=batch.has_caption,
        )
        tokenizer = error + of_codes + config.commitment * commitment
        loss = config.understanding * understanding + config.generation * generation + config.reconstruction * tokenizer
        parts = {"understanding": understanding, "generation": generation, "reconstruction": error}
        parts["commitment"] = commitment
        return loss + term.loss, {name: value.detach() for name, value in parts.items()} | term.parts

    def _understand(self, batch: Batch, codes: Tensor, features: Tensor, codebook: Tensor) -> Tensor:
        """Cross-entropy of the answers given the codes (scalar)."""
        adapter, config = self.adapter, self.config
        given: dict[str, Any] = {"relaxation": config.relaxation, "gradient": config.lm_gradient}
        embedded = look_up(adapter.code_embeddings(), codes, features, codebook, self.variance, **given)
        image = adapter.image_outputs(embedded.to(adapter.model.dtype))
        return self._predicted(batch.ask, batch.answers, image)[0]

    def _generate(self, batch: Batch, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the codes given the captions (scalar), and the states (B, n, width) that predict them."""
        return self._predicted(batch.prompt, self.adapter.draw_targets(codes))

    @torch.no_grad()
    def _conditional(self, states: Tensor, size: tuple[int, int]) -> Factored:
        """The language model's p(code | caption, codes before it)."""
        return Factored(states[:, self.adapter.code_columns(*size)], self.adapter.code_head())

    def _predicted(self, prompt: Inputs, targets: Tensor, image: Any = None) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of targets (B, n) behind a prompt, and the states (B, n, width) that predict them."""
        present = targets != PADDING
        ids = torch.cat([prompt["input_ids"], targets.where(present, 0)], 1)
        mask = torch.cat([prompt["attention_mask"], present.to(prompt["attention_mask"].dtype)], 1)
        hidden = self.adapter.hidden({"input_ids": ids, "attention_mask": mask}, image)
        states = hidden[:, -targets.shape[1] - 1 : -1]
        return cross_entropy(self.adapter, states[present], targets[present]), states


def cross_entropy(adapter: Adapter, states: Tensor, targets: Tensor, logits: int = LOGITS) -> Tensor:
    """Mean cross-entropy (scalar) of targets (N,) given states (N, width), whose N * V logits are never all there."""

    def part(some: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(adapter.head(some).float(), wanted, reduction="sum")

    step = max(1, logits // adapter.model.get_output_embeddings().weight.shape[0])
    pieces = zip(states.split(step), targets.split(step), strict=True)
    sums = [checkpoint(part, some, wanted, use_reentrant=False) for some, wanted in pieces]
    return torch.stack(sums).sum() / len(targets)
