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
from pathlib import Path

import yaml

from benchmarks.common import Result, Row
from benchmarks.overhead import copied
from infotok.errors import InfotokError
from pipeline.config.params import Params

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
STAGES = """
import sys
from importlib import import_module
for name in sys.argv[1:]:
    options = {} if name in ("prepare", "perceptual", "judge") else {"tokens": 4}
    if name in ("train", "understand", "generate"):
        options["arm"] = "ceb-0.01-1"
    getattr(import_module(f"stages.{name}"), name)(**options)
"""


def measure(params: Params, quick: bool) -> Result:
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), {}
        for variant, (precision, environment) in VARIANTS.items():
            content = params.model_dump()
            content["paths"] |= {"root": ".", "params": "params.yaml", "results": "runs", "reports": "reports"}
            for section in ("pretrain", "train"):
                content[section]["precision"] = precision
            if not found:
                copied(folder, content)
                _run(folder, {}, "prepare", "perceptual", "judge")
            (folder / "params.yaml").write_text(yaml.safe_dump(content))
            for stage in ("tokenizer", "train", "understand", "generate"):
                shutil.rmtree(folder / "runs" / stage, ignore_errors=True)
            _run(folder, environment, "pretrain", "train", "understand", "generate")
            found[variant] = _metrics(folder / "runs")
            if quick and len(found) == 2:
                break
    (first, base), *others = found.items()
    rows = [_compared(variant, metrics, base) for variant, metrics in others]
    scores = [{"variant": variant} | {s: metrics[s] for s in SCORES} for variant, metrics in found.items()]
    return Result({"variants": VARIANTS}, {f"Against {first}": rows, "Scores": scores})


def _run(folder: Path, environment: dict[str, str], *stages: str) -> None:
    command = [sys.executable, "-c", STAGES, *stages]
    one = {"OMP_NUM_THREADS": "1", "INFOTOK_TRACKING": "off", "INFOTOK_DEVICE": "cpu", "PYTHONPATH": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=os.environ | one | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InfotokError(f"{' '.join(stages)} failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")


def _metrics(results: Path) -> dict[str, float]:
    found = {}
    for path in sorted(results.glob("*/*/metrics.json")):
        found |= json.loads(path.read_text())["metrics"]
    return found


def _compared(variant: str, metrics: dict[str, float], base: dict[str, float]) -> Row:
    row = {"variant": variant, "metrics": len(base), "equal": sum(metrics[name] == base[name] for name in base)}
    return row | {f"off {name}": abs(metrics[name] - base[name]) for name in SCORES}
