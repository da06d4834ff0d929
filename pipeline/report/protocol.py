"""How the numbers of the report came about: the data and the tasks they allow, settings, protocols, warnings."""

from __future__ import annotations

from collections.abc import Iterable

from infotok.data.answers import DESCRIPTIONS
from pipeline.config.cells import arm_name
from pipeline.config.params import AnyParams, Params
from pipeline.report.analysis import Analysis
from pipeline.report.frame import ARM, present
from pipeline.report.tables import MISSING, Table

# Of the section `data`, what every source has or the manifest says better.
KNOWN = ("source", "seed", "image_size", "vocabulary", "max_rejects", "objects", "questions")
FLOORS = {
    "understanding/question_only": ("question-only baseline", "no image shown"),
    "understanding/majority": ("majority baseline", "always the most frequent training answer"),
}
JUDGE = {
    "judge/objects": "judge, ceiling of its scores (objects)",
    "judge/retrieval": "judge, ceiling of retrieval (real test images)",
}
CHANCE = "judge/retrieval_chance"  # stands beside the scores
WHERE = {"across": "of one in another split", "within": "of one in the same split"}
SPLITS = ("train", "validation", "test", "novel")
REASONS = 6  # for rejects, at most, that are named


def tasks_sentence(analysis: Analysis) -> str:
    """The data set, the tasks it allows, and why one is left out."""
    right = {"understanding": f"the answer is right, by {DESCRIPTIONS[analysis.params.understanding.answers]}"}
    tasks = [f"{task.name} ({task.label}: {right.get(task.name, task.right)})" for task in analysis.tasks]
    left = [f"{name}, because {reason}" for name, reason in analysis.manifest.get("why_not", {}).items()]
    sentence = f"Data: {analysis.params.data.source}. Tasks: {' and '.join(tasks) or 'none'}."
    return sentence + f" Left out: {'; '.join(left)}." * bool(left)


def protocol(analysis: Analysis) -> list[tuple[str, str]]:
    """How the numbers came about, as (what, value)."""
    params, frame, judge = analysis.params, analysis.frame, analysis.judge
    rows = [("cells", f"{len(frame)} (seeds {_list(sorted(frame.seed.unique()))})"), *_data(analysis)]
    rows += [
        *_training(params),
        *(_generation(analysis) if analysis.generation else []),
    ]
    told = {name: value for name, value in judge.get("metrics", {}).items() if name != CHANCE}
    for name, value in told.items():
        rows.append((JUDGE.get(name, name.replace("/", ", ")), f"{value:.4g}"))
    shared = _shared([judge.get("protocol", {})])
    rows += [(key if key == "judge" else f"judge: {key}", value) for key, value in shared]
    for family, group in frame.groupby("family", sort=False):
        for name, (label, meaning) in FLOORS.items():
            if present(group, name):
                rows.append((f"{family}: {label}", f"{group[name].mean():.3f} ({meaning})"))
        if {"understanding/accuracy_low", "understanding/accuracy_high"} <= set(group):
            half = (group["understanding/accuracy_high"] - group["understanding/accuracy_low"]).mean() / 2
            rows.append((f"{family}: accuracy of one cell", f"known to ±{half:.3f} (mean Wilson 95 % half-width)"))
    for stage in analysis.study.graph.described:
        found = [stages[stage].get("protocol", {}) for stages in analysis.results.values() if stage in stages]
        rows += [(f"{stage}: {key}", value) for key, value in _shared(found)]
    return rows


def _training(params: AnyParams) -> list[tuple[str, str]]:
    """What was trained, and how long."""
    if isinstance(params, Params):
        steps = (
            f"{params.pretrain.steps} steps of pretraining, {params.train.steps} joint steps of batch "
            f"{params.train.batch}"
        )
        return [
            ("training", steps),
            ("backbone and channel", f"{params.backbone.name}; {params.tokenizer.channel} tokens in training"),
        ]
    tune = params.tune
    return [
        ("models", "; ".join(f"{name}: {model.name}" for name, model in params.models.items())),
        ("training", f"{tune.steps} joint steps of batch {tune.batch}; LM {tune.train}, tokenizer {tune.tokenizer}"),
    ]


def _data(analysis: Analysis) -> list[tuple[str, str]]:
    """The data set: its settings, images of every split, what of it was left out and what stands in it twice."""
    data, manifest = analysis.params.data, analysis.manifest
    options = data.model_dump(exclude_none=True)
    # The examiner's own split is no part of the experiment.
    splits = {name: about["images"] for name, about in manifest.get("splits", {}).items() if name != "judge"}
    splits = splits or {name: n for name in SPLITS if isinstance(n := options.get(name), int)}
    own = {name: value for name, value in options.items() if name not in (*KNOWN, *SPLITS)}
    settings = [f"{name.replace(', ', ' ').replace('_', ' ')} {text}" for name, text in _flat(own).items() if text]
    rows = [
        ("data", ", ".join([data.source, f"{data.image_size}×{data.image_size} pixels", *settings])),
        ("images", ", ".join(f"{number} {name}" for name, number in splits.items()) or MISSING),
    ]
    if rejects := manifest.get("rejects"):
        rows.append(("rejects", _counted(rejects["count"], rejects.get("reasons", {}))))
        if kept := rejects.get("kept"):
            rows.append(("kept, but worth a look", _counted(sum(kept.values()), kept)))
    if duplicates := manifest.get("duplicates"):
        counts = [f"{number} {WHERE.get(where, where)}" for where, number in duplicates.items() if number]
        rows.append(("images that are copies", ", ".join(counts) or "none"))
    return rows


def _counted(count: int, reasons: dict[str, int]) -> str:
    """A number and what it is made of, the most frequent first."""
    if not count:
        return "none"
    named = sorted(reasons.items(), key=lambda reason: -reason[1])
    more = f"; … ({len(named)} reasons)" * (len(named) > REASONS)
    return f"{count}: " + "; ".join(f"{reason} ({number})" for reason, number in named[:REASONS]) + more


def _generation(analysis: Analysis) -> list[tuple[str, str]]:
    """How images are drawn; how many from which prompts the stage itself says where they are no tags'."""
    config, rows = analysis.params.generation, []
    if analysis.generation.judge == "objects":
        rows.append(("generation", f"{config.prompts} prompts per tag, {config.images} images per prompt"))
    top = config.top_k or "off"
    return [
        *rows,
        ("sampling", f"top-k {top}, seed {config.seed}; per cell, validation prompts choose"),
        ("temperatures tried", _list(config.temperatures)),
        ("guidance tried", _list(config.guidance)),
    ]


def settings(analysis: Analysis) -> Table | None:
    """Temperature and guidance per arm, one value a seed."""
    names = [n for n in ("generation/temperature", "generation/guidance") if n in analysis.frame]
    if not names:
        return None
    rows = [
        [
            family,
            str(tokens),
            arm_name(*arm),
            *(_list(group[name].dropna()) for name in names),
        ]
        for (family, *arm, tokens), group in analysis.frame.groupby(ARM, sort=False)
    ]
    header = ["family", "K", "arm", *(name.split("/")[1] for name in names)]
    return Table("Temperature and guidance chosen on validation, per seed", header, rows, 3)


def warnings(analysis: Analysis) -> list[str]:
    """Warnings of all stages, each once, with the cells that gave it; `none` where there are none."""
    if not analysis.results:
        return ["not known: this report was made again from its ablation.csv, and what the stages recorded is gone"]
    given: dict[str, list[str]] = {}
    for text in analysis.judge.get("warnings", []):
        given.setdefault(f"judge: {text}", [])
    for cell, stages in analysis.results.items():
        for stage, result in stages.items():
            for text in result.get("warnings", []):
                given.setdefault(f"{stage}: {text}", []).append(cell.key)
    return [f"{text} ({', '.join(cells)})" if cells else text for text, cells in given.items()] or ["none"]


def _list(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or MISSING


def _flat(value, prefix: str = "") -> dict[str, str]:
    """Nested dicts as `a, b` -> text."""
    if isinstance(value, dict):
        return {
            k: v for key, part in value.items() for k, v in _flat(part, f"{prefix}, {key}" if prefix else key).items()
        }
    if isinstance(value, (list, tuple)):
        return {prefix: ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)}
    return {prefix: f"{value:g}" if isinstance(value, float) else str(value)}


def _shared(protocols: list[dict]) -> list[tuple[str, str]]:
    """The values all cells agree on; of the others, how many there are."""
    values: dict[str, list[str]] = {}
    for found in protocols:
        for key, value in _flat(found).items():
            values.setdefault(key, [])
            if value not in values[key]:
                values[key].append(value)
    return [
        (key.replace("_", " "), found[0] if len(found) == 1 else "per cell: " + "; ".join(found[:6])
         + (f"; … ({len(found)} values)" if len(found) > 6 else ""))
        for key, found in values.items()
    ]  # fmt: skip
