"""Every function that runs in a stage stands in a file of its recipe, seen by the interpreter's own profiler."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from smoke import PARAMS, ROOT, environment

from infotok.mllm.tiny import write_models
from pipeline.config import params as sections
from pipeline.config.recipes import PROJECT
from pipeline.graph import FROM_SCRATCH, PRETRAINED

# Every stage in one process, each with the files whose functions ran while it worked, the frame's calls left out.
PROFILED = """
import json, sys, threading
from importlib import import_module
from pathlib import Path
from pipeline.config.recipes import FRAME, PROJECT, code_of
from pipeline.config.study import Study
from pipeline.graph import STAGES
from pipeline.running.stage import running

root = Path.cwd()
frame = tuple(str(root / part.replace(".", "/")) for part in FRAME)
ours = tuple(f"{root / part}/" for part in PROJECT)
ran, within = set(), threading.local()


def profile(event_frame, event, _):
    code = event_frame.f_code
    name = code.co_filename
    if event not in ("call", "return") or not name.startswith(ours):
        return
    depth = getattr(within, "depth", 0)
    if name.startswith(frame):
        within.depth = depth + (1 if event == "call" else -1)
    elif depth == 0 and event == "call" and code.co_name != "<module>":
        ran.add(name[len(str(root)) + 1 :])


out = {}
for study, stage, cells in json.loads(sys.argv[1]):
    chosen = Study(study)
    cells = [cell for cell in chosen.params.cells() if cell.key in cells] or [None]
    for cell in cells:
        work = getattr(import_module(f"stages.{stage}"), stage)
        with running(stage, chosen, cell) as run:
            ran.clear()
            threading.setprofile(profile)
            sys.setprofile(profile)
            try:
                work(run)
            finally:
                sys.setprofile(None)
                threading.setprofile(None)
        key = f"{study} {stage} {cell.key if cell else ''}"
        out[key] = sorted(ran), sorted(code_of(chosen, stage, cell))
print(json.dumps(out))
"""


PRETRAINED_CELLS_RUN = ["chameleon-hsic-0.1-1-16-0", "emu3-ceb-0.01-1-16-0"]
REAL = {
    "models": {name: {"name": f"./tiny/{name}"} for name in ("chameleon", "emu3")},
    "grid": {"family": ["chameleon", "emu3"], "arm": ["hsic-0.1-1", "ceb-0.01-1"], "tokens": [16]},
    "judge": {"steps": 1, "batch": 8},
    "tune": {"steps": 2, "batch": 4},
    "generation": {"prompts": 2, "images": 1, "temperatures": [1.0], "guidance": [1.0]},
}


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """Stage and cell -> (files whose functions ran, files of its recipe)."""
    folder = tmp_path_factory.mktemp("profiled")
    for name in PROJECT:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    content = sections.YamlFile(ROOT / PARAMS).content
    content["data"] |= dict.fromkeys(("train", "validation", "test", "novel"), 24)
    content["judge"] = content["perceptual"] = {"steps": 1, "batch": 8}
    content["tokenizer"] = {"codebook": 8, "width": 8, "hidden": 8, "blocks": 1, "nested_dropout": 0.5}
    content["pretrain"] = {"steps": 2, "batch": 8, "revive_every": 1, "checkpoint_every": 1}
    content["train"] |= {"steps": 2, "batch": 8, "warmup": 1, "checkpoint_every": 1, "target_bits": 5.0}
    content["train"]["prior"] = "autoregressive"
    content["understanding"] = {"probe_images": 16, "probe_steps": 1}
    content["generation"] = {"prompts": 1, "images": 1, "temperatures": [1.0], "guidance": [1.0, 2.0]}
    arms = ["none-0-0", "ceb-0.01-1", "hsic-0.1-1", "vib-0.01-1", "dib-0.01-1"]
    content["grid"] |= {"family": ["ar", "mask", "flow"], "arm": arms}
    (folder / "studies/few").mkdir(parents=True)
    (folder / "studies/few/params.yaml").write_text(json.dumps(content))
    texts = content | {"data": {"source": "jsonl", "path": "mine", "image_size": 32, "vocabulary": 300}}
    (folder / "studies/texts").mkdir()
    (folder / "studies/texts/params.yaml").write_text(json.dumps(texts))
    _some_data(folder / "mine")
    write_models(folder / "tiny", ("chameleon", "emu3"))
    (folder / "studies/real").mkdir()
    (folder / "studies/real/params.yaml").write_text(json.dumps(REAL | {"data": texts["data"]}))
    cells = ["ar-ceb-0.01-1-4-0", "mask-dib-0.01-1-4-0", "flow-hsic-0.1-1-4-0", "flow-vib-0.01-1-4-0"]
    plan = [["few", spec.name, cells if spec.axes else []] for spec in FROM_SCRATCH.specs]
    plan += [["texts", spec.name, ["ar-none-0-0-4-0"] if spec.axes else []] for spec in FROM_SCRATCH.specs]
    plan += [["real", spec.name, PRETRAINED_CELLS_RUN if spec.axes else []] for spec in PRETRAINED.specs]
    done = subprocess.run(
        [sys.executable, "-c", PROFILED, json.dumps(plan)],
        cwd=folder,
        env=environment() | {"INFOTOK_TRACKING": "off", "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _some_data(folder: Path) -> None:
    from PIL import Image

    (folder / "images").mkdir(parents=True)
    with open(folder / "data.jsonl", "w") as file:
        for index in range(80):
            Image.new("RGB", (32, 32), (3 * index, 90, 250 - 3 * index)).save(folder / f"images/{index}.png")
            line = {"image": f"images/{index}.png", "caption": f"shade {index}"}
            line["questions"] = [{"question": "which shade?", "answer": str(index % 3)}]
            file.write(json.dumps(line) + "\n")


def test_every_function_that_runs_in_a_stage_stands_in_a_file_of_its_recipe(profiled):
    assert len(profiled) == 2 * 3 + 4 * 4 + 4 + 2 + 2 * 5
    for stage, (ran, recipe) in profiled.items():
        assert set(ran) <= set(recipe), stage


def test_the_profiler_sees_what_stages_do(profiled):
    """So that the test above can fail."""
    ran = {stage: set(files) for stage, (files, _) in profiled.items()}
    assert {"stages/prepare.py", "infotok/data/sources/scenes.py", "infotok/data/arrow.py"} <= ran["few prepare "]
    assert {"infotok/data/sources/jsonl.py", "infotok/data/images.py"} <= ran["texts prepare "]
    trained = ran["few train flow-hsic-0.1-1-4-0"]
    assert {
        "infotok/training/joint.py",
        "infotok/information/estimators/hsic.py",
        "infotok/models/families/flow.py",
    } <= trained
    assert {"infotok/examiners/matcher.py", "infotok/evaluation/prompted.py"} <= ran["texts generate ar-none-0-0-4-0"]
    assert "infotok/examiners/judge.py" in ran["few judge "]
    tuned = ran["real tune emu3-ceb-0.01-1-16-0"]
    assert {"infotok/mllm/adapters/emu3.py", "infotok/mllm/joint.py", "infotok/mllm/data.py"} <= tuned
    assert "infotok/mllm/scoring.py" in ran["real render chameleon-hsic-0.1-1-16-0"]
