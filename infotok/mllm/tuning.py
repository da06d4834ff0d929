"""Tuning a tokenizer and a language model together: what is trained, at what rates, in how many parts and processes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from infotok.distributed import ALONE, World
from infotok.errors import InfotokError, SettingError
from infotok.information.bottleneck import GIVEN, InformationBottleneck
from infotok.mllm import lora
from infotok.mllm.adapter import PADDING, Adapter
from infotok.mllm.batches import Batch, Example, make_batch
from infotok.mllm.checkpoints import ShardedCheckpoints
from infotok.mllm.examples import StepExamples
from infotok.mllm.joint import JointStep, StepConfig
from infotok.mllm.memory import enough_memory, language_layers, make_again, set_types, tokenizer_blocks
from infotok.mllm.parts import Part, among, rows_of_all
from infotok.mllm.sharding import fill, shard, skeleton, whole_weights
from infotok.mllm.suiting import check_used
from infotok.options import Count, Fraction, Natural, Positive, Precision, Weight
from infotok.training.checkpoints import Checkpoints
from infotok.training.loop import make_optimizer, run
from infotok.training.parallel import Parallel, gathered, replicated
from infotok.training.runtime import autocast, has_bf16

FEWEST_IMAGES = 4  # of which kernel dependence can be estimated


class TuneConfig(StepConfig):
    """How a model is tuned.

    What is trained: train: all of the language model, or low-rank updates of its layers (LoRA) of `rank`, scaled by
    alpha / rank; tokenizer: all of it, its encoder alone (codebook and decoder stay those of the pretrained model), or
    nothing.
    Optimization: steps; batch: images of a step, of all processes; lm_rate, tokenizer_rate, prior_rate: learning rates;
    warmup: steps over which they rise, and final_fraction: what is left of them at the end of the cosine; beta_warmup:
    share of the steps over which beta and gamma rise linearly; clip: largest norm of the gradient of model and
    tokenizer; weight_decay: of matrices; caption_dropout: share of captions that are not shown.
    Information: prior: of codes, whose code length is penalized and that tells the rate: `shared`, one distribution for
    all positions; `low_rank`, one per position whose logits have rank `prior_rank`; or `model`, what the language model
    says of codes without a caption, which it learns from dropped ones. Continuous tokens have a Gaussian per position.
    Memory: accumulate: micro-batches that each process makes of its images, one after the other, which changes memory
    and time but not the result; recompute: keep the inputs of the language model's layers and of the tokenizer's
    blocks alone, and compute their other activations again backward; parallel: of several processes, `replicate` gives
    each all weights, `shard` spreads weights, gradients and optimizer states over them (FSDP2).
    precision: `bf16` computes in bfloat16 (autocast), `fp32` in float32, `auto` in bfloat16 where the processor has it.
    Weights that are trained are float32 in any case: a step of fine-tuning is often less than a 256th of a weight,
    which bfloat16 would round away. Full tuning therefore holds float32 weights, which are its master weights, and no
    second copy. With LoRA the language model's weights are not trained and are held in bfloat16, half the memory.
    checkpoint_every: steps between resumable checkpoints, 0 for none but that of a signal.
    cache: of a frozen tokenizer, keep on disk until the tuning is done what it makes of each training image, K features
    and codes, instead of making it again in every step (`infotok.mllm.cache`).
    """

    steps: Count = 1000
    batch: Count = 8
    accumulate: Count = 1
    train: Literal["full", "lora"] = "full"
    rank: Count = 16
    alpha: Count = 32
    tokenizer: Literal["full", "encoder", "frozen"] = "full"
    lm_rate: Positive = 1e-5
    tokenizer_rate: Positive = 1e-5
    prior_rate: Positive = 1e-2
    warmup: Natural = 50
    final_fraction: Fraction = 0.1
    beta_warmup: Fraction = 0.3
    clip: Positive = 1.0
    weight_decay: Weight = 0.0
    caption_dropout: Fraction = 0.1
    prior: Literal["shared", "low_rank", "model"] = "shared"
    prior_rank: Count = 16
    precision: Precision = "auto"
    recompute: bool = False
    parallel: Parallel = "replicate"
    checkpoint_every: Natural = 100
    cache: bool = True


class Tuner:
    """One tuning of an adapter's model, which it changes in place.

    Args:
        bottleneck: the regularizer with its estimator, beta and gamma, as of `regularizer`.
        variance: of the codes' Gaussians, as `calibrated` on the pretrained tokenizer.
        world: the processes that train together, each with a model of its own, which is moved to `world.device`.

    Raises:
        SettingError: two settings exclude each other, one changes nothing for this model, or peft is missing.
    """

    def __init__(
        self,
        adapter: Adapter,
        bottleneck: InformationBottleneck,
        variance: float,
        config: TuneConfig,
        world: World = ALONE,
    ):
        _check(bottleneck, config, world)
        check_used(adapter, config)
        self.adapter, self.config, self.world, self.attached = adapter, config, world, None
        self.sharded = config.parallel == "shard" and world.size > 1
        if config.train == "lora":
            self.attached = lora.attach(adapter, config.rank, config.alpha)
        else:
            adapter.model.requires_grad_(True)
        _train_tokenizer(adapter, config.tokenizer)
        device = world.device or adapter.device
        narrow = config.precision == "bf16" or (config.precision == "auto" and has_bf16(device))
        set_types(adapter, narrow)
        self.step = JointStep(adapter, bottleneck, variance, config).train()
        self.empty = skeleton(adapter, self.attached) if self.sharded else None
        if config.recompute:
            make_again(language_layers(adapter) + tokenizer_blocks(adapter))
        if self.sharded:
            shard(self.step, world, narrow)  # which moves one layer after the other to the device
        else:
            self.step.to(device)
        self.called: Any = self.step  # and averages gradients, where there are several processes
        if world.size > 1 and not self.sharded:
            self.called = replicated(self.step, lambda *given: self.step(*given), backwards=config.accumulate)
        tokenizer = _learning([adapter.tokenizer, *([] if adapter.extra is None else [adapter.extra])])
        self.of_bottleneck = _learning([bottleneck])
        others = {id(parameter) for parameter in tokenizer + self.of_bottleneck}
        model = [parameter for parameter in _learning([self.step]) if id(parameter) not in others]
        rates = (config.lm_rate, config.tokenizer_rate, config.prior_rate)
        groups = list(zip((model, tokenizer, self.of_bottleneck), rates, strict=True))
        self.optimizer = make_optimizer(groups, config.weight_decay, device)

    def run(
        self,
        data: StepExamples,
        *,
        seed: int,
        checkpoints: Checkpoints | None = None,
        observe: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    ) -> list[dict]:
        """Train, from the newest of the `checkpoints` where there is one; returns the history, a line every 10 steps.

        Args:
            data: the examples of every step, the same in all processes.
            seed: of random numbers that a step draws.
            checkpoints: of `self.checkpoints`.
            observe: called with the step and mean values every 10 steps, in all processes.

        Raises:
            InfotokError: a loss is not finite, memory is not enough, or a checkpoint cannot be written; the last
                checkpoint stays.
            Stopped: as of `infotok.training.loop.run`.
        """
        config = self.config
        with enough_memory(_smaller(config), checkpoints):
            return run(
                self.step,
                self.optimizer,
                lambda step: self.gradients(*data.examples(step), seed=seed, step=step),
                steps=config.steps,
                warmup=config.warmup,
                final=config.final_fraction,
                clip=config.clip,
                unclipped=self.of_bottleneck,  # its loss is apart, and must not shrink the others' steps
                checkpoints=checkpoints,
                checkpoint_every=config.checkpoint_every,
                observe=observe,
                world=self.world,
                own_backward=True,
                careful=True,
            )

    def gradients(
        self, examples: list[Example], dropped: list[bool], *, seed: int = 0, step: int = 0
    ) -> dict[str, Tensor]:
        """Add to all gradients those of one step's loss, the mean over processes; returns the loss and parts of this
        process's share of the examples, detached.

        One micro-batch has a graph at a time. Where the regularizer compares images, all of them pass once more before
        that, without a graph.

        Raises:
            InfotokError: the examples are more or fewer than a batch.
        """
        if len(examples) != self.config.batch:
            raise InfotokError(
                f"batch: the data give {len(examples)} examples for step {step + 1}, not {self.config.batch}; let them "
                "give as many as batch says"
            )
        rows, count = self.world.rows(len(examples)), self.config.accumulate
        batches = self._batches(examples[rows], dropped[rows])
        parts, bottleneck = self._parts(examples, seed, step), self.step.bottleneck
        whole: dict[str, Tensor] = {}
        if count > 1 and (bottleneck.gamma or "vectors" in bottleneck.estimator.needs):
            compared = [self._forward(*each, compared=True) for each in zip(batches, parts, strict=True)]
            whole = rows_of_all(compared, self.world)
        totals: dict[str, Tensor] = {}
        for index, (batch, part) in enumerate(zip(batches, parts, strict=True)):
            bottleneck.train(index == 0)  # in which it counts a step
            bottleneck.gather = among(whole, part) if whole else self.world.gather
            bottleneck.average = self.world.average
            with nullcontext() if self.called is self.step or index == count - 1 else self.called.no_sync():
                loss, values = self._forward(batch, part)
                (loss / count).backward()
            for name, value in (values | {"loss": loss.detach()}).items():
                totals[name] = totals.get(name, 0.0) + value / count
        return totals

    def _batches(self, examples: list[Example], dropped: list[bool]) -> list[Batch]:
        """The micro-batches."""
        if self.sharded:  # making a batch asks the tokenizer for the tokens' grid; the forward then finds it gathered
            self.step.unshard()  # type: ignore[operator]
        size = len(examples) // self.config.accumulate
        shares = [slice(start, start + size) for start in range(0, len(examples), size)]
        return [make_batch(self.adapter, examples[share], dropped[share]) for share in shares]

    def _parts(self, examples: list[Example], seed: int, step: int) -> list[Part]:
        """This process's."""
        own, count = self.config.accumulate, self.world.size * self.config.accumulate
        tokens = (self.adapter.answer_targets([example.answer for example in examples]) != PADDING).sum()
        numbers = range(self.world.rank * own, (self.world.rank + 1) * own)
        return [Part(number, count, int(tokens) / count, seed, step) for number in numbers]

    def _forward(self, batch: Batch, part: Part, compared: bool = False) -> Any:
        with autocast(self.adapter.device, self.config.precision):
            return (self.step if compared else self.called)(batch, part, compared)

    def checkpoints(self, folder: Path) -> Checkpoints:
        """In a folder of this training alone, that all processes see: of what is trained. Call its `clear` after a
        run that ended well."""
        return ShardedCheckpoints(folder, self.world) if self.sharded else Checkpoints(folder, frozen=False)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """In which the adapter's tokenizer can be used, as by `infotok.mllm.health.health`; all processes enter it."""
        with gathered(self.step):
            yield

    def prior(self) -> dict[str, Tensor]:
        """The whole weights of the regularizer's prior, none where it has none of its own; all processes call this."""
        if self.sharded:
            place = "bottleneck.prior."
            weights = whole_weights(self.step)
            return {name.removeprefix(place): value for name, value in weights.items() if name.startswith(place)}
        return {} if self.step.bottleneck.prior is None else self.step.bottleneck.prior.state_dict()

    def save(self, folder: Path) -> None:
        """Write a folder that `from_pretrained` loads, by the first process; all call this. Updates of low rank are
        merged, after which training is over, but where weights are sharded."""
        adapter, attached = self.adapter, self.attached
        if self.empty is not None:
            weights = whole_weights(self.step)
            adapter, attached = copy.deepcopy(self.empty)
            if self.world.first:
                fill(adapter, weights)
        else:
            self.attached = None
        if self.world.first:
            if attached is not None:
                lora.merge(adapter, attached)
            adapter.save(folder)
        self.world.any(False)  # until the folder is there


def regularizer(
    adapter: Adapter,
    config: TuneConfig,
    *,
    tokens: int,
    estimator: str = "none",
    beta: float = 0.0,
    gamma: float = 0.0,
    **settings: Any,
) -> InformationBottleneck:
    """The regularizer of an arm, with the sizes of a model and the warm-up of a configuration.

    tokens: K, the most that an image has. settings: further ones of `InformationBottleneck`, as `kernels`.
    """
    sizes: dict[str, Any] = adapter.sizes()
    prior = GIVEN if config.prior == "model" else config.prior if "codebook" in sizes else "marginal"
    embeddings = adapter.model.get_input_embeddings()
    return InformationBottleneck(
        estimator,
        beta=beta,
        gamma=gamma,
        tokens=tokens,
        prior=prior,
        rank=config.prior_rank,
        rates=True,
        warmup=config.beta_warmup * config.steps,
        text_width=embeddings.embedding_dim,
        **sizes,
        **settings,
    )


@torch.no_grad()
def calibrated(adapter: Adapter, pixels: Iterable[Tensor], entropy_bits: float | None = None) -> float:
    """The variance to hold, from pixels (B, 3, H, W) of images, before anything is trained."""
    adapter.model.eval()
    return adapter.calibrated((adapter.features(some) for some in pixels), entropy_bits)


def _check(bottleneck: InformationBottleneck, config: TuneConfig, world: World) -> None:
    """Raises SettingError where settings exclude each other."""
    if config.tokenizer == "frozen" and (bottleneck.beta or bottleneck.gamma):
        raise SettingError(
            "tokenizer",
            "is frozen, and beta and gamma would have no gradient to give, since they act on what the encoder makes; "
            "train the tokenizer (full or encoder), or set both to 0",
        )
    parts = world.size * config.accumulate
    if config.batch % parts:
        raise SettingError(
            "batch",
            f"{config.batch} images cannot be shared out among {world.size} processes with {config.accumulate} "
            f"micro-batches each; set batch to a multiple of {parts}, or lower accumulate",
        )
    if "vectors" in bottleneck.estimator.needs and config.batch < FEWEST_IMAGES:
        raise SettingError(
            "batch",
            f"{bottleneck.name} compares at least {FEWEST_IMAGES} images of a step, not {config.batch}; raise batch, "
            "with accumulate where memory is short",
        )
    if bottleneck.multiplier is not None and config.accumulate > 1:
        raise SettingError(
            "accumulate",
            "target_bits moves beta by the rate of a whole step, which a micro-batch does not know; set accumulate to "
            "1 or give beta itself",
        )


def _smaller(config: TuneConfig) -> list[str]:
    """What would need less memory."""
    return [
        f"lower batch ({config.batch}) or raise accumulate ({config.accumulate})",
        *([] if config.recompute else ["set recompute: true"]),
        *([] if config.train == "lora" else ["set train: lora"]),
    ]


def _train_tokenizer(adapter: Adapter, how: str) -> None:
    adapter.tokenizer.requires_grad_(how == "full")
    if how == "encoder":
        for module in adapter.encoders():
            module.requires_grad_(True)
    if adapter.extra is not None:
        adapter.extra.requires_grad_(how == "full" or adapter.extra_is_new)  # a new one decodes nothing yet


def _learning(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
