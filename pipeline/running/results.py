"""Where results lie and what makes one valid.

Every stage writes `metrics.json`:

    {"stage": "train", "cell": {"family", "estimator", "beta", "arm", "tokens", "seed"} or null,
     "fingerprint": configuration that made it, "source": digest of the code that made it,
     "protocol": {...}, "metrics": {"understanding/accuracy": 0.81, ...}, "warnings": [...], "sha256": of all that}

and training stages write `history.jsonl`, one JSON object a line: {"step": 10, "train/loss": 2.3, ...}. How long a
stage took lies elsewhere (`Layout.took`): a stage made again writes the same bytes, so what follows it need not run.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from infotok.errors import InfotokError
from pipeline.config.cells import Cell, stage_key
from pipeline.config.params import Params
from pipeline.files import write_text

# The sections of params.yaml that a stage's result depends on, its inputs' sections included.
SECTIONS = {
    "prepare": ["data"],
    "judge": ["data", "judge"],
    "perceptual": ["data", "judge"],
    "pretrain": ["data", "judge", "tokenizer", "pretrain", "reconstruction"],
    "train": ["data", "judge", "tokenizer", "pretrain", "reconstruction", "backbone", "kernels", "train"],
}
SECTIONS["understand"] = [*SECTIONS["train"], "understanding"]
SECTIONS["generate"] = [*SECTIONS["train"], "generation"]


@dataclass(frozen=True)
class Layout:
    """Paths of one configuration's results, relative to the repository's root."""

    params: Params
    root: Path = Path(".")

    @property
    def results(self) -> Path:
        return self.root / self.params.paths.results

    @property
    def reports(self) -> Path:
        return self.root / self.params.paths.reports

    @property
    def data(self) -> Path:
        return self.results / "data"

    @property
    def judge(self) -> Path:
        return self.results / "judge"

    @property
    def perceptual(self) -> Path:
        return self.results / "perceptual"

    def folder(self, stage: str, cell: Cell | None) -> Path:
        """The output folder of any stage; `cell` is None for those that run once for the whole grid."""
        if cell is None:
            return {"prepare": self.data, "judge": self.judge, "perceptual": self.perceptual}[stage]
        return self.tokenizer(cell) if stage == "pretrain" else self.stage(stage, cell)

    def tokenizer(self, cell: Cell) -> Path:
        return self.results / "tokenizer" / cell.tokenizer_key

    def stage(self, stage: str, cell: Cell) -> Path:
        """Folder of `train`, `understand` or `generate` of one cell."""
        return self.results / stage / cell.key

    def checkpoints(self, stage: str, key: str, fingerprint: str) -> Path:
        return self._scratch(f"{stage}-{key}") / fingerprint

    def took(self, stage: str, cell: Cell | None) -> Path:
        """The file that says how many seconds a stage took when it last ran here."""
        return self._scratch("took") / stage_key(stage, cell) / stage

    def _scratch(self, name: str) -> Path:
        """Where lies what no result depends on."""
        return self.root / ".ckpt" / f"{self.params.paths.results.replace('/', '-')}-{name}"


def fingerprint(params: Params, stage: str, cell: Cell | None = None) -> str:
    """Short hash of everything in the configuration that this result depends on."""
    content = {section: getattr(params, section).model_dump() for section in SECTIONS[stage]}
    if cell is not None:
        content["cell"] = cell.as_dict()
        if stage == "pretrain":
            content["cell"] = cell.tokenizer_key
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@cache
def source_digest(stage: str, family: str = "", root: Path = Path(".")) -> str:
    """Hash of the code files that dvc.yaml names as this stage's dependencies.

    DVC hashes dependencies after the command, so code edited while a stage runs would pass as the code that
    made its result. A stage takes this digest when it starts; the report compares.
    """
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    names = [d.replace("${item.family}", family) for d in stages[stage]["deps"] if not d.startswith("$")]
    digest = hashlib.sha256()
    for name in sorted(names):
        path = root / name
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        for file in files:
            digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def write_result(
    folder: Path,
    params: Params,
    stage: str,
    cell: Cell | None,
    *,
    source: str,
    metrics: dict[str, float],
    protocol: dict,
    warnings: list[str],
) -> dict:
    """Write `metrics.json` of one finished stage and return its content."""
    result = {
        "stage": stage,
        "cell": cell.as_dict() if cell else None,
        "fingerprint": fingerprint(params, stage, cell),
        "source": source,
        "protocol": protocol,
        "metrics": metrics,
        "warnings": warnings,
    }
    result["sha256"] = _digest(json.loads(json.dumps(result)))
    write_text(folder / "metrics.json", json.dumps(result, indent=1) + "\n")
    return result


def parse_result(text: str) -> dict:
    """The content of a `metrics.json`.

    Raises:
        ValueError: it is no JSON object, or its checksum (which older ones lack) does not match.
    """
    result = json.loads(text)
    if not isinstance(result, dict) or result.get("sha256", _digest(result)) != _digest(result):
        raise ValueError("its checksum does not match")
    return result


def _digest(result: dict) -> str:
    content = {name: value for name, value in result.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_result(folder: Path, params: Params, stage: str, cell: Cell | None, root: Path = Path(".")) -> dict:
    """Read `metrics.json` and check that this configuration and this code made it.

    Raises:
        InfotokError: it is missing, damaged, or from another configuration or code.
    """
    path = folder / "metrics.json"
    try:
        result = parse_result(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InfotokError(f"{path}: is missing; run `dvc repro` to make it") from None
    except (ValueError, OSError):
        raise InfotokError(f"{path}: is damaged; delete {folder} and run `dvc repro`") from None
    expected = fingerprint(params, stage, cell)
    if result.get("fingerprint") != expected:
        found = result.get("fingerprint", "none")
        raise InfotokError(
            f"{path}: is from another configuration (fingerprint {found}, params.yaml has {expected}); run `dvc repro`"
        )
    if result["source"] != source_digest(stage, cell.family if cell else "", root):
        raise InfotokError(
            f"{path}: was made by other code than the files now here (edited while it ran?); "
            f"run `dvc repro --force --single-item {stage}{'@' + cell.key if cell else ''}`"
        )
    return result
