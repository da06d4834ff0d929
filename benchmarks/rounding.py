"""How far metrics move where only rounding differs: one cell trained and scored as other processors would do it.

Data, judge and perceptual features are made once; pretraining, training and both evaluations run once per variant, in a
process of its own, and every metric is compared with the first variant's. No time is measured.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import yaml

from benchmarks.common import Result
from benchmarks.device import Row
from benchmarks.overhead import copied
from infotok.errors import InfotokError
from pipeline.config.params import Params
from pipeline.config.study import Study
from pipeline.graph import FROM_SCRATCH, STAGES

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
PLAIN = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
# Name -> precision, environment. The first is what the others are compared with.
VARIANTS = {
    "fp32": ("fp32", {}),
    "fp32 again": ("fp32", {}),
    "fp32, AVX2": ("fp32", AVX2),
    "fp32, no AVX": ("fp32", PLAIN),
    "bf16": ("bf16", {}),
}
SCORES = ("understanding/accuracy", "generation/geneval", "information/rate_bits", "reconstruction/psnr", "train/loss")
CELL = {"family": "ar", "arm": "ceb-0.01-1", "tokens": "4", "seed": "0"}


def measure(params: Params, quick: bool) -> Result:
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), {}
        study = Study(root=folder)
        for variant, (precision, environment) in VARIANTS.items():
            content = params.model_dump(mode="json")
            for section in ("pretrain", "train"):
                content[section]["precision"] = precision
            if not found:
                copied(folder, content)
                _run(folder, {}, FROM_SCRATCH.once)
            (folder / "params.yaml").write_text(yaml.safe_dump(content))
            for stage in FROM_SCRATCH.with_axes:
                shutil.rmtree(study.results / stage, ignore_errors=True)
            _run(folder, environment, FROM_SCRATCH.with_axes)
            found[variant] = _metrics(study.results)
            if quick and len(found) == 2:
                break
    (first, base), *others = found.items()
    rows = [_compared(variant, metrics, base) for variant, metrics in others]
    scores = [{"variant": variant} | {s: metrics[s] for s in SCORES} for variant, metrics in found.items()]
    return Result({"variants": VARIANTS}, {f"Against {first}": rows, "Scores": scores})


def _run(folder: Path, environment: dict[str, str], stages: Iterable[str]) -> None:
    one = {"OMP_NUM_THREADS": "1", "INFOTOK_TRACKING": "off", "INFOTOK_DEVICE": "cpu", "PYTHONPATH": str(folder)}
    for stage in stages:
        options = [part for axis in STAGES[stage].axes for part in (f"--{axis}", CELL[axis])]
        command = [sys.executable, "-m", f"stages.{stage}", *options]
        done = subprocess.run(
            command, cwd=folder, env=os.environ | one | environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise InfotokError(f"{stage} failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")


def _metrics(results: Path) -> dict[str, float]:
    found = {}
    for path in sorted(results.glob("*/*/metrics.json")):
        found |= json.loads(path.read_text())["metrics"]
    return found


def _compared(variant: str, metrics: dict[str, float], base: dict[str, float]) -> Row:
    row = {"variant": variant, "metrics": len(base), "equal": sum(metrics[name] == base[name] for name in base)}
    return row | {f"off {name}": abs(metrics[name] - base[name]) for name in SCORES}
