"""Flow family (MAR, Harmon, Show-o2): continuous tokens left to right, each by a rectified flow from noise.

The backbone's state conditions a small network that gives the velocity of one token (Li et al. 2024; Liu et al. 2023).
A Gaussian read from the same state is the conditional prior of the bottleneck, which needs a density: the flow has none
in closed form. Shapes: B images, K tokens, D dimensions of a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from infotok.distributed import World
from infotok.information.channel import Gaussian
from infotok.models import family
from infotok.models.backbone import Backbone
from infotok.models.decoding import Prompted
from infotok.models.family import Predicted, Sampling
from infotok.random import Source, shared_random, world_of
from infotok.tokenizer.base import Tokens
from infotok.tokenizer.continuous import ContinuousTokenizer

BLOCKS = 3  # of the velocity head
WIDENING = 2  # its width over the backbone's
REPEATS = 4  # times at which a token is noised in one step
MOMENTUM = 0.05  # of the moving statistics of the tokens
FREQUENCIES = 16  # of the embedding of time


class Family(family.Family[ContinuousTokenizer]):
    """Vectors left to right: place k holds vector k - 1, place 0 a begin mark."""

    tokenizer_class = ContinuousTokenizer
    mean: Tensor
    variance: Tensor

    def __init__(self, tokenizer: ContinuousTokenizer, width: int):
        super().__init__(tokenizer, width)
        dimension = tokenizer.config.dimension
        self.begin = nn.Parameter(torch.randn(width) * 0.5)
        self.head = VelocityHead(dimension, width)
        self.density = nn.Linear(width, 2 * dimension)
        self.least_log_variance = 2 * math.log(tokenizer.config.noise)  # no token is less noisy than its channel
        # The flow models tokens of mean 0 and variance 1 per place and dimension, as latent diffusion does: a tokenizer
        # that compresses shrinks what varies, and the flow's errors would not shrink with it.
        self.register_buffer("mean", torch.zeros(tokenizer.tokens, dimension))
        self.register_buffer("variance", torch.ones(tokenizer.tokens, dimension))

    def generation_inputs(self, tokens: Tokens, generator: Source) -> tuple[Tensor, Tensor]:
        if self.training:
            self._follow(tokens.vectors.detach(), world_of(generator))
        vectors = self.project(self._standardized(tokens.vectors.detach())[:, :-1])
        begin = self.begin.to(vectors.dtype).expand(len(vectors), 1, -1)
        inputs = torch.cat([begin, vectors], 1) + self.place[1]
        return inputs, torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)

    def predict(self, hidden: Tensor, tokens: Tokens, asked: Tensor, generator: Source) -> Predicted:
        target = self._standardized(tokens.vectors.detach().float())
        density = self._density(hidden)
        repeated = target.repeat(REPEATS, 1, 1)
        # Repetition by repetition, as `repeat` lays them out.
        time = (
            shared_random(torch.randn, (REPEATS, *target.shape[:2]), generator, dim=1)
            .flatten(0, 1)
            .sigmoid()[..., None]
        )
        noise = shared_random(torch.randn, (REPEATS, *target.shape), generator, dim=1).flatten(0, 1)
        velocity = self.head(torch.lerp(noise, repeated, time), time, hidden.repeat(REPEATS, 1, 1))
        flow = (velocity.float() - (repeated - noise)).square().mean()
        length = -density.log_prob(tokens.vectors.detach()).mean() / target.shape[-1]
        return Predicted(flow + length, density)

    @torch.no_grad()
    def draw(
        self,
        backbone: Backbone,
        tokenizer: ContinuousTokenizer,
        captions: Tensor,
        valid: Tensor,
        sampling: Sampling,
        generator: torch.Generator,
    ) -> Tokens:
        prompted, vectors = Prompted(backbone, captions, valid, sampling), []
        step = self.begin.expand(len(captions), 1, -1)
        for place in range(self.tokens):
            hidden = prompted.append(step + self.place[1, place], place)[:, 0]
            noise = torch.randn(len(captions), tokenizer.config.dimension, generator=generator, device=hidden.device)

            def velocity(vector: Tensor, time: Tensor, hidden: Tensor = hidden) -> Tensor:
                doubled = torch.cat([vector, vector]) if prompted.guided else vector
                return prompted.guide(self.head(doubled, time.expand(len(doubled), 1), hidden).float())

            vector = integrate(velocity, sampling.temperature * noise, sampling.ode_steps)
            vectors.append(vector)
            step = self.project(vector)[:, None]
        return Tokens(torch.stack(vectors, 1) * self.variance.sqrt() + self.mean)

    @torch.no_grad()
    def _follow(self, vectors: Tensor, world: World) -> None:
        """Take the batch of all processes into the moving mean and variance."""
        mean = vectors.float().mean(0)
        spread = (vectors.float() - self.mean).square().mean(0)  # around the old mean, which it will have to cover
        self.mean.lerp_(world.average(mean), MOMENTUM)
        self.variance.lerp_(world.average(spread), MOMENTUM)

    def _standardized(self, vectors: Tensor) -> Tensor:
        return (vectors - self.mean) * self.variance.rsqrt()

    def _density(self, hidden: Tensor) -> Gaussian:
        """The conditional prior of tokens as the tokenizer gives them."""
        mean, log_variance = self.density(hidden).float().chunk(2, -1)
        log_variance = (log_variance + self.variance.log()).clamp(self.least_log_variance, 4.0)
        return Gaussian(mean * self.variance.sqrt() + self.mean, log_variance)


class VelocityHead(nn.Module):
    """Velocity of a noised token given a hidden state: residual layers modulated by state and time (Peebles & Xie 2023,
    adaLN-Zero)."""

    frequencies: Tensor

    def __init__(self, dimension: int, condition: int):
        super().__init__()
        width = WIDENING * condition
        self.inward = nn.Linear(dimension, width)
        self.condition = nn.Linear(condition, width)
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(BLOCKS + 1))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(BLOCKS)
        )
        self.modulation = nn.Linear(width, (3 * BLOCKS + 2) * width)
        self.outward = nn.Linear(width, dimension)
        for layer in (self.modulation, self.outward):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer("frequencies", 2.0 ** torch.linspace(-1, 7, FREQUENCIES), persistent=False)

    def forward(self, noised: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """(..., D) from noised tokens (..., D), times (..., 1) in [0, 1] and hidden states (..., condition)."""
        angles = time * self.frequencies
        embedded = self.time(torch.cat([angles.cos(), angles.sin()], -1))
        parts = self.modulation(nn.functional.silu(embedded + self.condition(condition)))
        parts = parts.chunk(3 * BLOCKS + 2, -1)
        x = self.inward(noised)
        for block in range(BLOCKS):
            shift, scale, gate = parts[3 * block : 3 * block + 3]
            x = x + gate * self.layers[block](self.norms[block](x) * (1 + scale) + shift)
        return self.outward(self.norms[-1](x) * (1 + parts[-1]) + parts[-2])


def integrate(velocity: Callable[[Tensor, Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """The end at time 1 of dx/dt = velocity(x, t) from `start` (B, D) at time 0, by the midpoint rule.

    velocity: takes (B, D) and a time of shape (1, 1), returns (B, D).
    """
    x, size = start, 1 / steps
    for step in range(steps):
        time = torch.full((1, 1), step * size, device=start.device)
        middle = x + 0.5 * size * velocity(x, time)
        x = x + size * velocity(middle, time + 0.5 * size)
    return x
