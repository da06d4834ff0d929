"""Models whose tokens are vectors, not codes (MAR, Harmon, Show-o2).

The channel is Gaussian around the encoder's features, with a variance that is held: noise that the decoder and the
language model learn to live with, without which a rate would be infinite. In training all three get a sample of it, in
use the features themselves. The language model reads vectors as embeddings; a head of the model's own draws them.
Shapes: B images, h x w tokens, K = h * w, D dimensions of a token, width of the language model.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from infotok.errors import InfotokError, SettingError
from infotok.information.channel import Gaussian
from infotok.mllm.adapter import Drawing, Encoded, Inputs
from infotok.mllm.causal import CausalText

NOISE = 0.1  # standard deviation of the channel over that of features


class ContinuousAdapter(CausalText):
    """A model that writes texts token by token, and draws vectors."""

    has_density = False
    unused = dict.fromkeys(
        ("entropy_bits", "settle", "commitment", "relaxation", "prior", "prior_rank", "cache", "top_k"),
        "is of codes, and this model has continuous tokens",
    )

    @property
    @abc.abstractmethod
    def dimension(self) -> int:
        """D."""

    @abc.abstractmethod
    def embed(self, vectors: Tensor) -> Tensor:
        """Embeddings (B, K, width) of vectors (B, h, w, D), for `hidden`."""

    @abc.abstractmethod
    def draw_loss(self, prompt: Inputs, vectors: Tensor, generator: torch.Generator) -> Tensor:
        """The head's loss (scalar) of drawing vectors (B, h, w, D), a mean over images, after prompts of
        `draw_prompt`; generator: of its noise and times."""

    def tokens_of(self, pixels: Tensor) -> Tensor:
        return self.features(pixels)

    def vectors_of(self, drawn: Tensor) -> Tensor:
        return drawn

    def sizes(self) -> dict[str, int]:
        return {"dimension": self.dimension}

    def calibrated(self, features: Iterable[Tensor], entropy_bits: float | None) -> float:
        """That at which noise has a tenth of the spread of features, the mean over dimensions of their variance over
        images and places.

        Raises:
            InfotokError: entropy_bits is given, which is of codes; there are no features, or all are alike.
        """
        if entropy_bits is not None:
            raise SettingError("entropy_bits", f"{self.unused['entropy_bits']}; leave it out")
        flat = torch.cat([some.detach().double().flatten(0, 2).cpu() for some in features])
        spread = float(flat.var(0, unbiased=False).mean()) if len(flat) else math.nan
        if not 0 < spread < math.inf:
            raise InfotokError("the encoder's features do not vary over images; give images, and an encoder that works")
        return NOISE**2 * spread

    def encode(self, pixels: Tensor, variance: float, relaxation: float, generator: torch.Generator) -> Encoded:
        features = self.features(pixels).float()
        mean = features.flatten(1, 2)
        channel = Gaussian(mean, torch.full_like(mean, math.log(variance)))
        none = mean.new_zeros(())
        return Encoded(channel, channel.sample(generator).view(features.shape), None, none, none)

    def read(self, pixels: Tensor, encoded: Encoded, lm_gradient: float) -> Tensor:
        still = encoded.vectors.detach()
        return self.embed(still + lm_gradient * (encoded.vectors - still))

    def drawing(self, prompt: Inputs, encoded: Encoded, generator: torch.Generator) -> Drawing:
        loss = self.draw_loss(prompt, encoded.vectors.detach(), generator)
        with torch.no_grad():
            text = self.hidden(prompt)[:, -1].float()
        return Drawing(loss, text, None)

    def sampling(self, temperature: float, guidance: float, top_k: int) -> dict[str, Any]:
        if top_k:
            raise SettingError("top_k", f"{self.unused['top_k']}; leave it out")
        return {"temperature": temperature} | ({} if guidance == 1 else {"guidance": guidance})

    def draw(self, captions: list[str], h: int, w: int, **sampling: Any) -> Tensor:
        """By the model's head; sampling: what it takes."""
        # Seeded from the global stream, as what transformers draws.
        generator = torch.Generator(self.device).manual_seed(int(torch.randint(2**62, ())))
        return self.draw_vectors(self.draw_prompt(captions, h, w), h, w, generator, **sampling)

    @abc.abstractmethod
    def draw_vectors(self, prompt: Inputs, h: int, w: int, generator: torch.Generator, **sampling: Any) -> Tensor:
        """(B, h, w, D), without gradient."""
