"""What params.yaml may say, and one clear line when it says something else."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args

import yaml
from pydantic import Field, ValidationError

from infotok.data import source_names, source_options
from infotok.errors import InfotokError
from infotok.information.kernels import Kernels
from infotok.models import family_names
from infotok.options import BelowOne, Count, Fraction, Natural, Positive, Scale, Section, Weight
from infotok.tokenizer import halvings, patch_grid
from pipeline.config.cells import Cell, parse_arm


class Grid(Section):
    family: list[str]
    arm: list[str]
    tokens: list[Count]
    seed: list[Natural]


class Paths(Section):
    """input: what the source reads, a file or folder, so that DVC prepares again when it changes."""

    root: str
    input: str
    params: str
    results: str
    reports: str


# What `data.source` names decides which keys the section has.
Data = Annotated[Union[*source_options()], Field(discriminator="source")]


class Judge(Section):
    steps: Count
    perceptual_steps: Count
    batch: Count
    learning_rate: Positive
    seed: Natural


class Tokenizer(Section):
    encoder: Literal["patch", "convolution"]
    codebook: Annotated[int, Field(ge=2)]
    dimension: Count
    width: Count
    hidden: Count
    blocks: Natural
    logit_scale: Positive
    channel: Literal["sampled", "deterministic"]
    relaxation: Positive
    noise: Annotated[BelowOne, Field(gt=0)]
    nested_dropout: Fraction


class Pretrain(Section):
    steps: Count
    batch: Count
    learning_rate: Positive
    warmup: Natural
    usage_weight: Weight
    revive_every: Natural
    precision: Literal["bf16", "fp32", "auto"]
    checkpoint_every: Count


class Reconstruction(Section):
    pixel: Positive
    perceptual: Weight


class Backbone(Section):
    name: str
    width: Count
    layers: Count
    heads: Count


class Train(Section):
    steps: Count
    batch: Annotated[int, Field(ge=2)]
    learning_rate: Positive
    tokenizer_learning_rate: Positive
    prior_learning_rate: Positive
    warmup: Natural
    final_fraction: Fraction
    beta_warmup: Fraction
    target_bits: Weight
    prior: Literal["marginal", "autoregressive"]
    clip: Positive
    weight_decay: Weight
    understanding: Weight
    generation: Weight
    reconstruction: Weight
    questions: Count
    balance: bool
    describe: bool
    caption_dropout: Fraction
    ema: BelowOne
    precision: Literal["bf16", "fp32", "auto"]
    checkpoint_every: Count


class Understanding(Section):
    batch: Count
    longest_answer: Count = 64
    probe_images: Count
    probe_steps: Count


class Generation(Section):
    prompts: Count
    images: Count
    temperatures: Annotated[list[Positive], Field(min_length=1)]
    guidance: Annotated[list[Scale], Field(min_length=1)]
    top_k: Natural
    decoding_steps: Count
    choice_temperature: Weight
    ode_steps: Count
    seed: Natural


class Report(Section):
    title: str


class Params(Section):
    """params.yaml, checked. `cells()` is the grid."""

    grid: Grid
    paths: Paths
    data: Data
    judge: Judge
    tokenizer: Tokenizer
    pretrain: Pretrain
    reconstruction: Reconstruction
    backbone: Backbone
    train: Train
    kernels: Kernels
    understanding: Understanding
    generation: Generation
    report: Report

    def cells(self) -> list[Cell]:
        """All cells, in the order of DVC's matrix."""
        g = self.grid
        return [
            Cell(family, *parse_arm(arm, "grid.arm"), tokens, seed)
            for family in g.family
            for arm in g.arm
            for tokens in g.tokens
            for seed in g.seed
        ]


class _Lines:
    """Line numbers of the keys of a YAML file."""

    def __init__(self, text: str):
        self.lines: dict[tuple, int] = {}
        if (node := yaml.compose(text, Loader=yaml.SafeLoader)) is not None:
            self._walk(node, ())

    def _walk(self, node, path):
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                self.lines[(*path, key.value)] = key.start_mark.line + 1
                self._walk(value, (*path, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self._walk(value, (*path, index))

    def of(self, path: tuple) -> int:
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def _dotted(path: tuple) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _place(error: dict) -> tuple:
    """Where in the file an error lies; pydantic also names the kind of section that `data.source` chose."""
    loc = tuple(error["loc"])
    if error["type"].startswith("union_tag"):
        return (*loc, "source")
    return loc[:1] + loc[2:] if loc[0] == "data" and len(loc) > 2 else loc


def _fields(error: dict) -> dict[str, Any]:
    """The keys that the section of an unknown key may have."""
    section, *rest = error["loc"][:-1] or (None,)
    if section == "data":
        kinds = {get_args(one.model_fields["source"].annotation)[0]: one for one in source_options()}
        fields = kinds[rest[0]].model_fields
        for part in rest[1:]:
            fields = fields[part].annotation.model_fields
        return fields
    return Params.model_fields[section].annotation.model_fields if section else Params.model_fields


def _explain(error: dict) -> str:
    """One pydantic error as `key: what is wrong; what would be right`."""
    key, kind = _dotted(_place(error)), error["type"]
    if kind == "union_tag_invalid":
        return f"'{key}' is '{error['ctx']['tag']}', unknown; known: {', '.join(source_names())}"
    if kind == "extra_forbidden":
        name, fields = str(error["loc"][-1]), _fields(error)
        near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys here: {', '.join(fields)}"
        return f"unknown key '{key}'; {hint}"
    if kind in ("missing", "union_tag_not_found"):
        return f"'{key}' is missing; add it (the params.yaml of the repository shows its default)"
    return f"'{key}' is {error['input']!r}: {error['msg'][0].lower() + error['msg'][1:]}"


def load_params(path: str | Path) -> Params:
    """Read and check a params file.

    Raises:
        InfotokError: with file, line, key and remedy, for anything that a run could not use.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InfotokError(f"{path}: cannot be read ({error.strerror}); name a params file with --params") from None
    except UnicodeDecodeError:
        raise InfotokError(f"{path}: is not UTF-8 text; write params as UTF-8 YAML") from None
    try:
        raw, lines = yaml.safe_load(text), _Lines(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise InfotokError(f"{path}:{line}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(raw, dict):
        raise InfotokError(f"{path}:1: must hold sections of parameters (grid, data, ...), found {type(raw).__name__}")
    try:
        params = Params.model_validate(raw)
    except ValidationError as problem:
        # A misspelled key is also a missing one; the misspelling is what to name.
        error = min(problem.errors(), key=lambda error: error["type"] != "extra_forbidden")
        raise InfotokError(f"{path}:{lines.of(_place(error))}: {_explain(error)}") from None
    _check_meaning(params, path, lines)
    return params


def _check_meaning(params: Params, path: Path, lines: _Lines) -> None:
    """Checks that need more than one value."""

    def fail(key: tuple, message: str):
        raise InfotokError(f"{path}:{lines.of(key)}: '{_dotted(key)}' {message}")

    for axis in ("family", "arm", "tokens", "seed"):
        values = getattr(params.grid, axis)
        if not values:
            fail(("grid", axis), "is empty; the grid needs at least one value on every axis")
        if repeated := {value for value in values if values.count(value) > 1}:
            fail(("grid", axis), f"repeats {sorted(repeated)[0]!r}; every value may stand once")
    for index, family in enumerate(params.grid.family):
        if family not in family_names():
            fail(("grid", "family", index), f"is '{family}', an unknown family; known: {', '.join(family_names())}")
    for index, arm in enumerate(params.grid.arm):
        parse_arm(arm, f"{path}:{lines.of(('grid', 'arm', index))}: grid.arm")
    for index, tokens in enumerate(params.grid.tokens):
        try:
            grid = patch_grid(params.data.image_size, tokens)
            if params.tokenizer.encoder == "convolution":
                halvings(params.data.image_size, grid)
        except InfotokError as error:
            fail(("grid", "tokens", index), f"is {tokens}: {error}")
    if params.backbone.width % params.backbone.heads:
        fail(("backbone", "width"), f"must be a multiple of backbone.heads ({params.backbone.heads})")
    if (params.backbone.width // params.backbone.heads) % 2:
        fail(("backbone", "width"), "divided by backbone.heads must be even (rotary positions turn pairs)")
    if params.tokenizer.width % 4:
        fail(("tokenizer", "width"), "must be a multiple of 4 (attention heads)")
    if params.data.source == "scenes" and max(params.train.batch, params.pretrain.batch) > params.data.train:
        fail(("data", "train"), "has fewer images than one batch")
    if params.data.source != "scenes" and sum(params.data.shares(set()).values()) >= 1:
        fail(("data", "validation"), "and data.test leave no share of the images for training")
    if params.train.batch < 4 and any(arm.startswith("hsic-") for arm in params.grid.arm):
        fail(("train", "batch"), f"is {params.train.batch}; the hsic arms need at least 4 images a step")
    if 1.0 not in params.generation.temperatures:
        fail(("generation", "temperatures"), "must contain 1.0, at which every score is also shown")
    if not math.isclose(params.generation.guidance[0], 1.0):
        fail(("generation", "guidance"), "must begin with 1.0 (no guidance)")
