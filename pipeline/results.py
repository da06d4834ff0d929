"""What makes a result valid.

Every stage writes `metrics.json`:

    {"stage": "train", "cell": {"family", "estimator", "beta", "gamma", "tokens", "seed", "arm"} or null,
     "fingerprint": configuration that made it, "source": digest of the code that made it,
     "protocol": {...}, "metrics": {"understanding/accuracy": 0.81, ...}, "warnings": [...], "sha256": of all that}

and training stages write `history.jsonl`, one JSON object a line: {"step": 10, "train/loss": 2.3, ...}. How long a
stage took lies elsewhere (`Study.duration_file`): a stage made again writes the same bytes, so what follows it need not
run.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from infotok.errors import InfotokError
from infotok.files import write_text
from pipeline.config.cells import Cell
from pipeline.config.recipes import fingerprint, source_digest
from pipeline.config.study import Study

METRICS, HISTORY = "metrics.json", "history.jsonl"


def write_result(
    study: Study,
    stage: str,
    cell: Cell | None,
    *,
    source: str,
    metrics: dict[str, float],
    protocol: dict,
    warnings: list[str],
) -> dict:
    """Write `metrics.json` of one finished stage and return its content. source: of the code that it began with."""
    result = {
        "stage": stage,
        "cell": cell.as_dict() if cell else None,
        "fingerprint": fingerprint(study, stage, cell),
        "source": source,
        "protocol": protocol,
        "metrics": metrics,
        "warnings": warnings,
    }
    result["sha256"] = _digest(json.loads(json.dumps(result)))
    write_text(study.output(stage, cell) / METRICS, json.dumps(result, indent=1) + "\n")
    return result


def parse_result(text: str) -> dict:
    """The content of a `metrics.json`.

    Raises:
        ValueError: it is no JSON object, or its checksum does not match.
    """
    result = json.loads(text)
    if not isinstance(result, dict) or result.get("sha256") != _digest(result):
        raise ValueError("its checksum does not match")
    return result


def _digest(result: dict) -> str:
    content = {name: value for name, value in result.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_result(study: Study, stage: str, cell: Cell | None) -> dict:
    """Read `metrics.json` and check that this configuration and this code made it.

    Raises:
        InfotokError: it is missing, damaged, or from another configuration or code.
    """
    folder: Path = study.output(stage, cell)
    path = folder / METRICS

    def again() -> str:  # looks through the whole grid
        return study.repro_of(stage, cell)

    try:
        result = parse_result(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InfotokError(f"{path}: is missing; run `{again()}`") from None
    except (ValueError, OSError):
        raise InfotokError(f"{path}: is damaged; delete {folder} and run `{again()}`") from None
    if (found := result.get("fingerprint")) != (expected := fingerprint(study, stage, cell)):
        raise InfotokError(
            f"{path}: is from another configuration (fingerprint {found}, {study.params_file} has {expected}); "
            f"run `{again()}`"
        )
    if result["source"] != source_digest(study, stage, cell):
        force = again().replace("dvc repro", "dvc repro --force --single-item", 1)
        raise InfotokError(
            f"{path}: was made by other code than the files now here (edited while it ran?); run `{force}`"
        )
    return result


def state(study: Study, stage: str, cell: Cell | None) -> str:
    """`done`, `missing`, or `stale`: made by another configuration or other code."""
    if not (study.output(stage, cell) / METRICS).exists():
        return "missing"
    try:
        read_result(study, stage, cell)
    except InfotokError:
        return "stale"
    return "done"
