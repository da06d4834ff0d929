"""The joint step: one forward of one module, from pixels to the loss of tokenizer and language model.

It knows no model: what tokens are, how they are read and drawn, says the adapter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from infotok.information.bottleneck import GIVEN, InformationBottleneck
from infotok.mllm.adapter import PADDING, Adapter, Encoded
from infotok.mllm.batches import Batch
from infotok.mllm.codes import CodeAdapter
from infotok.mllm.parts import ONLY, Part
from infotok.mllm.suiting import check_estimator, check_prior
from infotok.options import Scale, Section, Weight
from infotok.random import Purpose


class StepConfig(Section):
    """The loss of a joint step.

    understanding, generation, reconstruction: weights of the cross-entropy of answers, of the loss of drawn tokens, and
    of the mean squared error of pixels in the processor's scale. commitment: weight of features' distance to their
    codes, where codes' distance to their features counts once. lm_gradient: by how much the language model's gradient
    reaches the tokenizer. relaxation: temperature of the softmax over codes that gradients pass.
    """

    understanding: Weight = 1.0
    generation: Weight = 1.0
    reconstruction: Weight = 1.0
    commitment: Weight = 0.25
    lm_gradient: Weight = 0.05
    relaxation: Scale = 1.0


class JointStep(nn.Module):
    """Holds everything that is trained. variance: of the channel, as of `Adapter.calibrated`, held.

    Raises:
        InfotokError: the estimator needs a density that the model has not.
    """

    def __init__(self, adapter: Adapter, bottleneck: InformationBottleneck, variance: float, config: StepConfig):
        super().__init__()
        check_estimator(adapter, bottleneck.name)
        check_prior(adapter, "model" if bottleneck.kind == GIVEN else "")
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
        generator = part.stream(batch.pixels.device, Purpose.TRAINING)  # of noise and masks, alike for arms of a seed
        return self._compared(batch, generator) if compared else self._losses(batch, part, generator)

    @torch.no_grad()
    def _compared(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """As `_losses` gives them, to the last bit."""
        encoded = self._encoded(batch, generator)
        text = self.adapter.drawing(batch.prompt, encoded, generator).text if self.bottleneck.gamma else None
        vectors = encoded.vectors.flatten(1, 2)
        return self.bottleneck.compared(inputs=batch.pixels, vectors=vectors, text=text, has_text=batch.has_caption)

    def _encoded(self, batch: Batch, generator: torch.Generator) -> Encoded:
        if batch.known is None:
            return self.adapter.encode(batch.pixels, self.variance, self.config.relaxation, generator)
        assert isinstance(self.adapter, CodeAdapter)
        known = batch.known
        return self.adapter.quantized(known.features.float(), known.codes, self.variance, self.config.relaxation)

    def _error(self, batch: Batch, encoded: Encoded) -> Tensor:
        """Mean squared error of decoded pixels."""
        if batch.known is not None:
            return batch.known.errors.mean()
        return (self.adapter.decode(encoded.vectors).float() - batch.pixels.float()).square().mean()

    @torch.no_grad()
    def _without_caption(self, batch: Batch, encoded: Encoded, part: Part) -> Any:
        """p(z) as the language model says it, which learns it from dropped captions."""
        prompt = self.adapter.draw_prompt([""] * len(batch.pixels), *batch.size)
        generator = part.stream(batch.pixels.device, Purpose.PREDICTION)
        return self.adapter.drawing(prompt, encoded, generator).predicted

    def _losses(self, batch: Batch, part: Part, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        adapter, config = self.adapter, self.config
        encoded = self._encoded(batch, generator)
        error = self._error(batch, encoded)
        drawing = adapter.drawing(batch.prompt, encoded, generator)
        understanding = adapter.understanding(batch, encoded, config.lm_gradient, generator)
        understanding = part.weighted(understanding, int((batch.answers != PADDING).sum()))
        term = self.bottleneck(
            encoded.channel,
            drawing.predicted,
            prior=self._without_caption(batch, encoded, part) if self.bottleneck.kind == GIVEN else None,
            weight=drawing.weight,
            inputs=batch.pixels,
            vectors=encoded.vectors.flatten(1, 2),
            text=drawing.text,
            has_text=batch.has_caption,
            generator=part.common_stream(batch.pixels.device, Purpose.KERNELS),
        )
        tokenizer = error + encoded.codebook_error + config.commitment * encoded.commitment
        loss = config.understanding * understanding + config.generation * drawing.loss
        loss = loss + config.reconstruction * tokenizer + term.loss
        parts = {"understanding": understanding, "generation": drawing.loss, "reconstruction": error}
        parts["commitment"] = encoded.commitment
        return loss, {name: value.detach() for name, value in parts.items()} | term.parts
