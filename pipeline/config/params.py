"""What params.yaml may say, and one clear line when it says something else.

A section belongs to a component, whose typed configuration it is, defaults included: a params.yaml states only what
differs.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, NoReturn, Union, get_args

from pydantic import Field, ValidationError

from infotok.data import source_names, source_options
from infotok.data.options import FileOptions, MadeOptions
from infotok.data.sources import scenes
from infotok.errors import InfotokError, SettingError, dotted
from infotok.evaluation.generation import GenerationConfig
from infotok.evaluation.understanding import UnderstandingConfig
from infotok.examiners.perceptual import Distortion
from infotok.information.kernels import Kernels
from infotok.mllm.options import AnswerConfig, ModelConfig, RenderConfig
from infotok.mllm.tuning import TuneConfig
from infotok.mllm.warming import CalibrateConfig
from infotok.models import family_names
from infotok.models.backbone import BackboneConfig
from infotok.options import Count, Section, Seed
from infotok.tokenizer import halvings, patch_grid
from infotok.tokenizer.base import TokenizerConfig
from infotok.training.examiners import ExaminerConfig, PerceptualConfig
from infotok.training.joint import JointConfig
from infotok.training.pretrain import PretrainConfig
from pipeline.config.cells import Cell, parse_arm
from pipeline.config.yaml_file import YamlFile
from pipeline.graph import FROM_SCRATCH, PRETRAINED, Graph

Axis = Field(min_length=1)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*")  # of a model; cells' names have `-` between their parts


class Grid(Section):
    """The axes, which multiply. arm: <estimator>-<beta>-<gamma>. tokens: budgets K of one image."""

    arm: Annotated[list[str], Axis]
    family: Annotated[list[str], Axis] = ["ar"]
    tokens: Annotated[list[Count], Axis] = [8]
    seed: Annotated[list[Seed], Axis] = [0]


class ReportConfig(Section):
    """title: of the report, and of the experiment in MLflow."""

    title: str = "InfoTok"


class Paths(Section):
    """Places that no result depends on. checkpoints: a folder on storage that all machines of a sweep share."""

    checkpoints: str | None = None


# What `data.source` names decides which keys the section has.
Data = Annotated[Union[*source_options()], Field(discriminator="source")]


# Pydantic's kinds of error that speak of Python's types, in words of YAML.
SECTION = "must be a section, its keys indented in the lines below; `infotok params` shows them"
TYPES = {
    "model_type": SECTION,
    "model_attributes_type": SECTION,
    "dict_type": SECTION,
    "list_type": "must be a list, such as [a, b]",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be a text; write it in quotes",
}


class _Shared(Section):
    """What every params.yaml may say."""

    grid: Grid
    data: Data = scenes.Options(source="scenes")
    judge: ExaminerConfig = ExaminerConfig()
    report: ReportConfig = ReportConfig()
    paths: Paths = Paths()

    def cells(self) -> list[Cell]:
        """All cells of the grid, in the order of DVC's matrix."""
        grid = self.grid
        arms = [parse_arm(arm, "grid.arm") for arm in grid.arm]
        return [
            Cell(family, *arm, tokens, seed)
            for family in grid.family
            for arm in arms
            for tokens in grid.tokens
            for seed in grid.seed
        ]


class Params(_Shared):
    """A params.yaml for models that are built and trained here, checked, with the defaults of all components."""

    perceptual: PerceptualConfig = PerceptualConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    pretrain: PretrainConfig = PretrainConfig()
    reconstruction: Distortion = Distortion()
    backbone: BackboneConfig = BackboneConfig()
    train: JointConfig = JointConfig()
    kernels: Kernels = Kernels()
    understanding: UnderstandingConfig = UnderstandingConfig()
    generation: GenerationConfig = GenerationConfig()

    @property
    def graph(self) -> Graph:
        return FROM_SCRATCH

    @property
    def weights(self) -> list[str]:
        """Files and folders of pretrained models that stages read."""
        return []

    def check_files(self) -> None:
        """That files of pretrained models are here."""

    def check_family(self, family: str) -> str:
        """What is wrong with a family's name; nothing where it is right."""
        known = family_names()
        return "" if family in known else f"unknown; known: {', '.join(known)}"

    def check_tokens(self, tokens: int) -> str:
        """What is wrong with a token budget; nothing where it is right."""
        try:
            patches = patch_grid(self.data.image_size, tokens)
            if self.tokenizer.encoder == "convolution":
                halvings(self.data.image_size, patches)
        except InfotokError as error:
            return str(error)
        return ""


class PretrainedParams(_Shared):
    """A params.yaml for pretrained models of transformers: one with the section `models`, which says what the families
    of the grid are. The grid's tokens are the most that an image may have."""

    models: Annotated[dict[str, ModelConfig], Field(min_length=1)]
    calibrate: CalibrateConfig = CalibrateConfig()
    tune: TuneConfig = TuneConfig()
    kernels: Kernels = Kernels()
    understanding: AnswerConfig = AnswerConfig()
    generation: RenderConfig = RenderConfig()

    @property
    def graph(self) -> Graph:
        return PRETRAINED

    def kind_of(self, family: str) -> str:
        """What the configuration of a model calls `model_type`.

        Raises:
            SettingError: as of `ModelConfig.kind`.
        """
        try:
            return self.models[family].kind
        except InfotokError as error:
            raise SettingError(("models", family, "name"), str(error)) from None

    @property
    def weights(self) -> list[str]:
        """As of `Params`."""
        of_models = [model.folder for model in self.models.values()]
        decoders = [Path(model.decoder) for model in self.models.values() if model.decoder]
        return [path.as_posix() for path in dict.fromkeys([*of_models, *decoders]) if path is not None]

    def check_files(self) -> None:
        """
        Raises:
            SettingError: the folder of a model or the file of a decoder is missing. The hub is not asked.
        """
        for family, model in self.models.items():
            if model.folder is not None:
                self.kind_of(family)
            if model.decoder is not None and not Path(model.decoder).is_file():
                key = ("models", family, "decoder")
                raise SettingError(key, f"{model.decoder}: there is no such file; give a VQGAN's weights")

    def check_family(self, family: str) -> str:
        """As of `Params`."""
        if family in self.models:
            return ""
        return f"no name in the section models, which has {', '.join(self.models)}"

    def check_tokens(self, tokens: int) -> str:
        """As of `Params`; whether a model can make so many, the stage `inspect` says, which has it at hand."""
        return ""


AnyParams = Params | PretrainedParams


def load_params(path: str | Path) -> AnyParams:
    """Read and check a params file.

    Raises:
        InfotokError: with file, line, key and remedy, for anything that a run could not use.
    """
    file = YamlFile(Path(path))
    if not isinstance(file.content, dict):
        what = "is empty" if file.content is None else "holds no sections"
        raise InfotokError(f"{path}:1: {what}; write sections of parameters, at least `grid:` with its key `arm`")
    kind: type[AnyParams] = PretrainedParams if "models" in file.content else Params
    try:
        params = kind.model_validate(file.content)
    except ValidationError as problem:
        # A misspelled key is also a missing one; the misspelling is what to name.
        error = min(problem.errors(), key=lambda error: error["type"] != "extra_forbidden")
        place = _place(error)
        if error["type"] == "invalid_key":  # whose line stands under its text
            place = (*place, str(error["loc"][-1]))
        raise InfotokError(f"{path}:{file.line(place)}: {_explain(error, kind)}") from None
    _check_meaning(params, file)
    return params


def _place(error: Any) -> tuple:
    """Where in the file an error lies; pydantic also names the kind of section that `data.source` chose."""
    loc = tuple(error["loc"])
    if error["type"].startswith("union_tag"):
        return (*loc, "source")
    if "[" in str(loc[-1]) or error["type"] == "invalid_key":  # which of several types, or the key that is none
        loc = loc[:-1]
    return loc[:1] + loc[2:] if loc and loc[0] == "data" and len(loc) > 1 else loc


def _fields(error: Any, params: type[AnyParams]) -> list[str]:
    """The keys that the section of an unknown key may have."""
    model: Any = params
    kinds = {get_args(one.model_fields["source"].annotation)[0]: one for one in source_options()}
    for part in error["loc"][:-1]:
        if part in kinds:
            model = kinds[part]
        elif hasattr(model, "model_fields"):
            model = model.model_fields[part].annotation
        else:  # names that the file chooses, each with a section of its own
            model = get_args(model)[1]
    return list(model.model_fields) if hasattr(model, "model_fields") else []


def _explain(error: Any, params: type[AnyParams]) -> str:
    """One pydantic error as `key: what is wrong; what would be right`."""
    key, kind = dotted(_place(error)), error["type"]
    if kind == "union_tag_invalid":
        return f"'{key}' is '{error['ctx']['tag']}', unknown; known: {', '.join(source_names())}"
    if kind == "extra_forbidden":
        name, fields = str(error["loc"][-1]), _fields(error, params)
        other = Params if params is PretrainedParams else PretrainedParams
        if len(error["loc"]) == 1 and name in other.model_fields:
            which = "with" if params is PretrainedParams else "without"
            own = [section for section in fields if section not in other.model_fields]
            return f"'{key}' is no section of a study {which} `models`, whose own are {', '.join(own)}"
        near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys here: {', '.join(fields)}"
        return f"unknown key '{key}'; {hint}"
    if kind == "union_tag_not_found":
        return f"'{key}' is missing; known sources: {', '.join(source_names())}"
    if kind == "missing":
        return f"'{key}' is missing; `infotok params` shows all keys and their defaults"
    if kind == "too_short" and key.startswith("grid."):
        return f"'{key}' is empty; the grid needs at least one value on every axis"
    if kind == "invalid_key":
        return f"the key {error['loc'][-1]}{f' of {key!r}' if key else ''} is no text; keys are names"
    if error["input"] is None:
        return f"'{key}' is empty; write its value, or leave the key out if it has a default"
    value = "" if isinstance(error["input"], (dict, Section)) else f" is {_as_yaml(error['input'])}"
    if kind == "model_type" and error["loc"][0] == "models" and isinstance(error["input"], str):
        return f"'{key}'{value}: must be a section; write {{name: {error['input']}}}"
    said = TYPES.get(kind) or error["msg"].removeprefix("Value error, ")
    return f"'{key}'{value}: {said[0].lower() + said[1:]}"


def _as_yaml(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


def _check_meaning(params: AnyParams, file: YamlFile) -> None:
    """Checks that need more than one value."""

    def fail(key: tuple, message: str) -> NoReturn:
        raise InfotokError(f"{file.path}:{file.line(key)}: '{dotted(key)}' {message}")

    grid, data = params.grid, params.data
    for name in getattr(params, "models", {}):
        if not NAME.fullmatch(name):
            fail(("models", name), "names files; use letters, digits, '_' and '.', and no '-'")
    if isinstance(params, PretrainedParams):  # whose models and budgets no default can know
        for axis, what in (("family", f"some of {', '.join(params.models)}"), ("tokens", "the most of an image")):
            if axis not in grid.model_fields_set:
                fail(("grid", axis), f"is missing; give {what}")
    for axis in Grid.model_fields:
        values = getattr(grid, axis)
        if repeated := {value for value in values if values.count(value) > 1}:
            fail(("grid", axis), f"repeats {sorted(repeated)[0]!r}; every value may stand once")
    for index, family in enumerate(grid.family):
        if wrong := params.check_family(family):
            fail(("grid", "family", index), f"is '{family}', {wrong}")
    for index, arm in enumerate(grid.arm):
        parse_arm(arm, f"{file.path}:{file.line(('grid', 'arm', index))}: grid.arm")
    for index, tokens in enumerate(grid.tokens):
        if wrong := params.check_tokens(tokens):
            fail(("grid", "tokens", index), f"is {tokens}: {wrong}")
    if (shared := params.paths.checkpoints) is not None and not Path(shared).is_absolute():
        fail(
            ("paths", "checkpoints"), f"is '{shared}', which every checkout would look for in itself; begin it with `/`"
        )
    if isinstance(data, FileOptions) and sum(data.shares(set()).values()) >= 1:
        fail(("data", "validation"), "and data.test leave no share of the images for training")
    section, batches = ("tune", [params.tune.batch]) if isinstance(params, PretrainedParams) else ("train", [])
    if isinstance(params, Params):
        batches = [params.train.batch, params.pretrain.batch]
    if isinstance(data, MadeOptions) and max(batches) > data.train:
        fail(("data", "train"), "has fewer images than one batch")
    training = getattr(params, section)
    if training.caption_dropout == 0 and max(params.generation.guidance) > 1:
        fail(
            (section, "caption_dropout"),
            f"is 0, but generation.guidance {params.generation.guidance} compares with drawing without a caption, "
            "which is never trained then; make it more than 0, or guidance [1.0]",
        )
    if isinstance(params, PretrainedParams) and params.tune.batch % params.tune.accumulate:
        fail(
            (section, "accumulate"),
            f"is {params.tune.accumulate}, which does not divide tune.batch, {params.tune.batch}; make batch a "
            "multiple of it",
        )
    if isinstance(params, PretrainedParams) and params.tune.prior == "model" and training.caption_dropout == 0:
        fail(
            (section, "caption_dropout"),
            "is 0, but the prior `model` is what the language model says without a caption, which is never trained "
            "then; make it more than 0, or choose another prior",
        )
    if isinstance(params, PretrainedParams) and not params.calibrate.steps:
        for key, none in (("settle", False), ("tokenizer", "new")):
            if getattr(params.calibrate, key) != none:
                fail(("calibrate", key), "is of a training, and calibrate.steps is 0; give steps, or leave it out")
    if training.batch < 4 and any(arm.startswith("hsic-") for arm in grid.arm):
        fail((section, "batch"), f"is {training.batch}; the hsic arms need at least 4 images a step")
    pressing = [arm for arm in grid.arm if arm != "none-0-0"]
    if isinstance(params, PretrainedParams) and params.tune.tokenizer == "frozen" and pressing:
        fail(
            ("tune", "tokenizer"),
            f"is frozen, so the arm {pressing[0]} has nothing to press: beta and gamma act on what the encoder makes; "
            "train the tokenizer (full or encoder), or keep none-0-0 alone",
        )
