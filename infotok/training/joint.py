"""IB-regularized joint training of tokenizer, prior and language model: the objective of the paper.

    L = w_u (answers + w_d description) + w_g drawing + w_r D(x, dec(z)) + the arm's term, an `InformationBottleneck`

whose priors learn in every arm, the baseline too, so that every run reports a rate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from infotok.data.pixels import to_unit
from infotok.data.texts import TextBatch
from infotok.distributed import ALONE, World
from infotok.examiners.perceptual import Distortion, Perceptual, perceptual_distortion
from infotok.information.bottleneck import Consistency, InformationBottleneck
from infotok.information.kernels import Kernels
from infotok.information.objective import NONE
from infotok.models.unified import UnifiedModel
from infotok.options import BelowOne, Count, Fraction, Natural, Positive, Precision, Section, Weight
from infotok.random import Purpose, Source, Stream, stream
from infotok.training.checkpoints import Checkpoints, GatheredCheckpoints
from infotok.training.graph import Compile, one_graph, resolved
from infotok.training.inputs import Inputs
from infotok.training.loop import Training, at_once, make_optimizer, step_by_step
from infotok.training.parallel import Parallel, collect, sharded, to_train
from infotok.training.runtime import autocast, uses_bf16
from infotok.training.step import Losses

WIDTHS = 16  # a step that is one graph has texts whose columns are a multiple of it


class JointConfig(Section):
    """Section `train`: how every arm trains. What an arm adds, estimator, beta and gamma, is not in it.

    Optimization: steps, batch (images a step); learning_rate of the language model, tokenizer_learning_rate,
    prior_learning_rate; warmup: steps over which they rise, and final_fraction: what is left of them at the end of the
    cosine; clip: gradient norm; weight_decay; ema: decay of a moving average of the weights, 0: off; precision: bf16
    autocast, fp32, or auto: bf16 where the processor has it; checkpoint_every: steps between resumable checkpoints.
    compile: `record` a step as a CUDA graph, which gives the same numbers sooner; `fuse` its operations by
    torch.compile too, which takes a minute or more first and changes last digits; `never`; or auto: `record` for one
    process on a GPU. parallel: of several processes, `replicate` gives each all weights, `shard` spreads weights,
    gradients and optimizer states over them (FSDP2), for a model that one device cannot hold.
    Objective: weights of understanding, generation and reconstruction; beta_warmup: share of the steps over which beta
    and gamma rise linearly; target_bits: above 0, a multiplier that starts at the arm's beta drives the rate to these
    bits per image, the target coming down from the first step's rate over `beta_warmup`; consistency: what gamma
    rewards, `contrast`, a bound on I(Z;T) by a critic that finds each image's caption among the batch's, or
    `likelihood`, by the language model, which writes the caption: gamma is the weight of its nats for the tokens,
    beside `describe`, which alone the language model hears; prior: `marginal`, or `autoregressive`, which is tighter:
    the one whose code length is penalized; both are learned and reported.
    What a step shows: questions per image, packed into one sequence; balance: drawn evenly from the families of an
    image's questions, not as often as the data ask; describe: weight of a nat of the image's caption, which is asked
    for beside the questions, whose answers weigh 1 together; 0: it is not asked for; caption_dropout: share of captions
    left out, for classifier-free guidance.
    """

    steps: Count = 1200
    batch: Annotated[int, Field(ge=2)] = 48
    learning_rate: Positive = 0.005
    tokenizer_learning_rate: Positive = 0.002
    prior_learning_rate: Positive = 0.02
    warmup: Natural = 50
    final_fraction: Fraction = 0.03
    beta_warmup: Fraction = 0.3
    target_bits: Weight = 0.0
    consistency: Consistency = "contrast"
    prior: Literal["marginal", "autoregressive"] = "marginal"
    clip: Positive = 1.0
    weight_decay: Weight = 0.05
    understanding: Weight = 1.0
    generation: Weight = 1.0
    reconstruction: Weight = 1.0
    questions: Count = 1
    balance: bool = False
    describe: Weight = 0.1
    caption_dropout: Fraction = 0.1
    ema: BelowOne = 0.0
    precision: Precision = "auto"
    compile: Compile = "auto"
    parallel: Parallel = "replicate"
    checkpoint_every: Count = 100

    @model_validator(mode="after")
    def _likelihood_is_of_a_description(self) -> JointConfig:
        if self.consistency == "likelihood" and not (self.describe and self.understanding):
            key = "understanding" if self.describe else "describe"
            raise ValueError(f"consistency: likelihood is of the caption that describe asks for; set {key} above 0")
        return self


@dataclass
class Given:
    """What a step is given: images (B, S, S, 3) uint8, their texts, and what its random numbers come from."""

    images: Tensor
    texts: TextBatch
    noise: Source
    kernel_noise: Source


class StepData(Protocol):
    """What a step trains on, the same whenever it is asked for: `infotok.training.batches.Batches`, or your held."""

    def images(self, step: int) -> Tensor:
        """(B, S, S, 3) uint8."""

    def texts(self, step: int) -> TextBatch:
        """Questions and captions of the same images."""


def joint_steps(
    model: UnifiedModel,
    perceptual: Perceptual,
    batches: StepData,
    config: JointConfig,
    *,
    estimator: str = "none",
    beta: float = 0.0,
    gamma: float = 0.0,
    seed: int,
    device: torch.device,
    kernels: Kernels = Kernels(),
    distortion: Distortion = Distortion(),
    checkpoints: Checkpoints | None = None,
    keep_end: bool = False,
    observe: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    world: World = ALONE,
) -> Training:
    """Train in place, in every process of `world`, whose rows `batches` gives; returns the history.

    estimator, beta, gamma: the arm, as `InformationBottleneck` takes them. keep_end: leave a checkpoint of the end.

    Raises:
        InfotokError: a loss is not finite, or a checkpoint is damaged.
    """
    held = to_train(model, config.parallel, world, device)
    perceptual.to(device).requires_grad_(False).eval()
    information = InformationBottleneck(
        estimator,
        beta=beta,
        gamma=gamma,
        consistency=config.consistency,
        prior=config.prior,
        priors=held.priors,
        warmup=config.beta_warmup * config.steps,
        target_bits=config.target_bits if config.target_bits and estimator != NONE else None,
        kernels=kernels,
        text_width=held.backbone.width,
        gather=world.gather,
        average=world.average,
    ).to(device)

    precision = "bf16" if uses_bf16(device, config.precision) else "fp32"  # asked once: no graph can ask

    def step_losses(given: Given) -> dict[str, Tensor]:
        images = to_unit(given.images)
        with autocast(device, precision):
            out = held(images, given.texts, given.noise, information.emphasis(config.understanding * config.describe))
            decoded = held.tokenizer.decode(out.read)
        error = perceptual_distortion(perceptual, decoded.float(), images, distortion)
        term = information(
            out.posterior,
            out.drawing.distribution,
            channel=held.tokenizer.channel_of(out.posterior.detach()),
            weight=out.drawing.weight,
            inputs=images,
            vectors=out.tokens.vectors,
            text=out.text,
            has_text=out.has_caption,
            text_nats=None if out.description is None else out.description.detach(),
            generator=given.kernel_noise,
        )
        parts = {"understanding": out.answer_loss, "generation": out.drawing.loss, "reconstruction": error}
        understanding = out.answer_loss
        if out.description is not None:
            parts["description"] = out.description.mean()
            understanding = understanding + config.describe * parts["description"]
        loss = (
            config.understanding * understanding
            + config.generation * out.drawing.loss
            + config.reconstruction * error
            + term.loss
        )
        return {"loss": loss, **parts, **term.parts}

    trained = nn.ModuleDict({"model": held, "information": information})
    losses: Losses = step_losses
    if held is not model:
        losses = sharded(trained, step_losses, world, held.backbone.layers)
        checkpoints = checkpoints and GatheredCheckpoints(checkpoints.folder, world)
    prior = list(held.priors.parameters())
    tokenizer = list(held.tokenizer.parameters())
    special = {id(p) for p in prior + tokenizer}
    groups = [
        ([p for p in trained.parameters() if id(p) not in special], config.learning_rate),  # language model and critic
        (tokenizer, config.tokenizer_learning_rate),
        (prior, config.prior_learning_rate),
    ]

    def streams(step: int) -> list[Stream]:
        noise = stream(device, seed, step, Purpose.TRAINING, world=world)
        return [noise, stream(device, seed, step, Purpose.KERNELS)]

    compile = resolved(config.compile, "train.compile", device, world)
    in_graph = compile != "never"

    def make(step: int, sources: list[Source]) -> Given:
        texts = batches.texts(step)
        return Given(batches.images(step), texts.widened(WIDTHS) if in_graph else texts, *sources)

    inputs = Inputs(make, streams, device)
    if in_graph:
        inputs.rehearse(trained, step_losses)
    history = yield from step_by_step(
        trained,
        make_optimizer(groups, config.weight_decay, device, in_graph, fused=compile != "fuse"),
        losses,
        steps=config.steps,
        warmup=config.warmup,
        final=config.final_fraction,
        clip=config.clip,
        unclipped=prior,  # its loss is apart from the objective, and must not shrink the others' steps
        ema=config.ema,
        checkpoints=checkpoints,
        checkpoint_every=config.checkpoint_every,
        keep_end=keep_end,
        given=inputs,
        whole=lambda step: one_graph(step, compile, device),
        observe=observe,
        world=world,
    )
    if held is not model:
        collect(model, held, device)
    return history


train_jointly = at_once(joint_steps)
