"""Faults put into a finished smoke run: what was finished stays, the next `dvc repro` finishes, and all is as before.

Faults of one part alone are tested beside it: checkpoints in test_loop, MLflow's in test_tracking, data in test_scenes.
"""

import io
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

import pytest
import typer
import yaml
from dvc.dvcfile import Lockfile
from dvc.exceptions import DvcException
from dvc.repo import Repo
from smoke import CELLS, FILE, ROOT, STUDY, contents, ran, run

from pipeline.graph import FROM_SCRATCH
from pipeline.sweep.dvc_files import mend
from stages.common import COMMANDS, stage_command

pytestmark = pytest.mark.xdist_group("smoke")  # one worker makes the finished run
SEED = 0
DAY = 24 * 3600
# Every stage with the folder that it writes, in the pipeline's order.
OUTPUTS = {
    "prepare": "runs/smoke/prepare",
    "perceptual": "runs/smoke/perceptual",
    "judge": "runs/smoke/judge",
    "pretrain": "runs/smoke/pretrain/ar-4-0",
    "train": f"runs/smoke/train/{CELLS[1]}",
    "understand": f"runs/smoke/understand/{CELLS[1]}",
    "generate": f"runs/smoke/generate/{CELLS[1]}",
    "report": "reports/smoke",
}
CELL_STAGES = ("train", "understand", "generate")
AXES = {"family": "ar", "arm": "ceb-0.01-1", "tokens": 4, "seed": 0}


def same(folder: Path, before: dict[str, object]) -> None:
    after = contents(folder)
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == []


@pytest.fixture
def copied(workspace, tmp_path):
    """A copy of the finished workspace, with what it holds; without MLflow, whose own faults are in test_tracking."""
    folder = tmp_path / "copy"
    shutil.copytree(workspace, folder, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    return folder, contents(folder)


def repro(folder: Path) -> tuple[list[str], str]:
    """`dvc repro`, which must end well: the stages that ran, and all it said."""
    done = run(folder, "dvc", "repro", FILE, INFOTOK_TRACKING="off")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return ran(said), said


def forked(folder: Path, stage: str, largest: int = resource.RLIM_INFINITY) -> int:
    """The process of one stage at work, forked from this one, which has imported much of what the stage needs. It says
    what it says in stderr.txt and can write no file of more than `largest` bytes."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.chdir(folder)
        os.environ["INFOTOK_TRACKING"] = "off"
        with open("stderr.txt", "w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), write_through=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        spec = COMMANDS[stage]
        stage_command(spec)(study="smoke", **{axis: AXES[axis] for axis in spec.axes})
        code = 0
    except typer.Exit as end:
        code = end.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(folder: Path, pid: int) -> tuple[int, str]:
    """The exit code of a stage, negative for the signal that killed it, and what it said."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    path = folder / "stderr.txt"
    return code, path.read_text() if path.exists() else ""


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob(f".ckpt/smoke/checkpoints/train/{CELLS[1]}/*/step-*.safetensors"))


def flip(path: Path, place: int = -1000, silently: bool = False) -> None:
    """Flip a bit; silently: as a disk would, which changes no time."""
    content, times = bytearray(path.read_bytes()), path.stat()
    content[place] ^= 1
    path.unlink()  # it may be a link into DVC's cache
    path.write_bytes(content)
    if silently:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def forget(folder: Path, outputs: list[str]) -> None:
    """Take outputs out of DVC's cache, from which it would restore them without running a stage."""
    lock = yaml.safe_load((folder / FILE).with_suffix(".lock").read_text())
    for stage in lock["stages"].values():
        for out in stage["outs"]:
            if out["path"] in outputs:
                (folder / ".dvc/cache/files/md5" / out["md5"][:2] / out["md5"][2:]).unlink()


def test_every_stage_killed_at_a_random_moment_then_a_damaged_checkpoint_and_a_clock_set_back(copied):
    folder, before = copied
    rng = random.Random(SEED)
    for module in ("pipeline.running.stage", *(f"stages.{stage}" for stage in OUTPUTS)):  # once for all forks
        import_module(module)
    # The last first, so that every stage finds what it needs.
    for stage, output in reversed(OUTPUTS.items()):
        took = [*folder.glob(f".ckpt/smoke/seconds/{stage}/*")]
        duration = max((float(path.read_text()) for path in took), default=3.0)
        for number in (signal.SIGTERM, signal.SIGKILL) if stage in ("judge", "generate") else (signal.SIGKILL,):
            shutil.rmtree(folder / output, ignore_errors=True)  # as DVC does
            moment, pid = rng.uniform(0, duration), forked(folder, stage)
            time.sleep(moment)
            os.kill(pid, number)
            code, said = ended(folder, pid)
            print(f"{stage}: {number.name} after {moment:.2f} of {duration} s, exit code {code}")
            # 0: it was faster than the signal; -15: the signal came before it could listen.
            assert code in {signal.SIGTERM: (143, -15, 0), signal.SIGKILL: (-9, 0)}[number], said
            if code == 143:
                assert said.splitlines()[-1].startswith("stopped by SIGTERM"), said
        shutil.rmtree(folder / output, ignore_errors=True)
        if stage == "train":
            shutil.rmtree(folder / ".ckpt")
            pid = forked(folder, stage)
            while not checkpoints(folder):
                time.sleep(0.002)
            os.kill(pid, signal.SIGTERM)
            code, said = ended(folder, pid)
            assert code == 143, said
            *older, newest = checkpoints(folder)
            place = re.escape(str(newest.relative_to(folder)))
            kept = rf"stopped by SIGTERM \(step \d+ of 40 is kept in {place}\): the same command, or"
            assert re.search(kept, said), said
            assert not (folder / output).exists()
            flip(newest)
        elif stage not in (*CELL_STAGES, "report"):
            # Done here, where nothing has to be imported first.
            code, said = ended(folder, forked(folder, stage))
            assert code == 0, said
            after = contents(folder)
            assert [name for name in after if after[name] != before[name]] == []
            assert {name for name in before if name.startswith(f"{output}/")} <= after.keys()

    forget(folder, [OUTPUTS[stage] for stage in CELL_STAGES])
    for path in [*folder.glob("*"), *folder.glob("[!.]*/**/*")]:
        os.utime(path, (time.time() + DAY, time.time() + DAY))
    made, said = repro(folder)
    assert sorted(made) == sorted([*(f"{stage}@{CELLS[1]}" for stage in CELL_STAGES), "report"])
    again = f"training goes on from {'step-' if older else 'the start'}"  # the signal may meet the first one
    assert f"it is set aside as {newest.name}.damaged, and {again}" in " ".join(said.split())
    same(folder, before)
    assert list(folder.glob("[!.]*/**/*.tmp")) == []
    assert [path for path in folder.glob(".ckpt/smoke/checkpoints/**/*") if path.is_file()] == []
    kept = {path.relative_to(folder / ".ckpt/smoke").parts[0] for path in folder.glob(".ckpt/smoke/*/**/*")}
    assert kept <= {"checkpoints", "seconds", "locks"}


def test_a_stage_made_again_writes_the_same_bytes_and_nothing_after_it_runs(copied):
    folder, before = copied
    lost = [OUTPUTS["prepare"], OUTPUTS["train"]]
    forget(folder, lost)
    for output in lost:
        shutil.rmtree(folder / output)
    assert sorted(repro(folder)[0]) == ["prepare", f"train@{CELLS[1]}"]
    same(folder, before)


def refusal(folder: Path, stage: str, largest: int = resource.RLIM_INFINITY) -> str:
    """The one line of a stage that ends with an error."""
    code, said = ended(folder, forked(folder, stage, largest))
    assert code == 2, said
    (line,) = said.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_damaged_outputs_are_named_by_who_reads_them_and_made_whole_by_the_next_repro(copied):
    folder, before = copied
    runs = folder / "runs/smoke"
    # As disks decay, unseen by DVC, which goes by time and size: the reader tells, and what it says helps.
    for reader, damaged in {
        "report": runs / "generate" / CELLS[0] / "metrics.json",
        "generate": runs / "judge/judge.safetensors",
        "understand": runs / "train" / CELLS[1] / "model.safetensors",
        "train": runs / "prepare/train.arrow",
    }.items():
        flip(damaged, silently=True)
        line = refusal(folder, reader)
        assert f"{damaged.relative_to(folder)}: is damaged" in line
        assert "delete" in line
        assert "run `dvc repro studies/smoke/dvc.yaml:" in line
        damaged.unlink()
    after = contents(folder)
    assert {name for name in before if after.get(name) != before[name]} == before.keys() - after.keys()
    (runs / "prepare/train.arrow").write_bytes(before["runs/smoke/prepare/train.arrow"])  # which train reads first
    # And as programs damage files.
    for damaged in (runs / "pretrain/ar-4-0/tokenizer.safetensors", runs / "train" / CELLS[0] / "history.jsonl"):
        whole = damaged.read_bytes()
        damaged.unlink()
        damaged.write_bytes(whole[: len(whole) // 2])
    assert "runs/smoke/pretrain/ar-4-0/tokenizer.safetensors: is damaged" in refusal(folder, "train")
    flip(runs / "understand" / CELLS[0] / "metrics.json")
    flip(folder / "reports/smoke/ablation.csv", 40)
    assert repro(folder)[0] == ["report"]  # whose outputs are not in DVC's cache, which has all else
    same(folder, before)


def test_a_full_disk_is_one_line_and_leaves_all_that_was_finished(copied):
    """The disk is full by a limit on the size of files, at which the kernel refuses in the middle of a write."""
    folder, before = copied
    for stage, limit, what in (
        ("train", 20_000, f".ckpt/smoke/checkpoints/train/{CELLS[1]}"),
        ("prepare", 50_000, "runs/smoke/prepare.partial"),
        ("report", 10_000, "reports/smoke/"),
    ):
        line = refusal(folder, stage, limit)
        assert line.endswith("; make room and run the same again")
        assert "File too large" in line
        assert what in line
    assert list(folder.glob("[!.]*/**/*.tmp")) + list(folder.glob(".ckpt/**/*.safetensors*")) == []
    assert not (folder / "runs/smoke/prepare.partial").exists()
    after = contents(folder)
    assert [name for name in after if after[name] != before[name]] == []
    assert {name for name in before if name.startswith("runs/")} <= after.keys()  # figures are drawn anew


def test_a_sweep_sets_aside_what_a_kill_cut_off_of_dvcs_own_files_and_computes_nothing_again(copied):
    folder, before = copied
    finished = {path: path.stat().st_mtime_ns for path in folder.glob(".ckpt/smoke/seconds/*/*")}
    assert len(finished) == len(FROM_SCRATCH.stages) - len(CELL_STAGES) + len(CELLS) * len(CELL_STAGES)
    (folder / FILE).with_name("dvc.lock").write_text((folder / FILE).with_name("dvc.lock").read_text()[:-300] + " [")
    rwlock = folder / ".dvc/tmp/rwlock"
    rwlock.write_text('{"read": {"runs/smoke/pre')
    assert run(folder, "dvc", "status", FILE).returncode != 0
    swept = run(folder, "stages.cli", "sweep", *STUDY)
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert "studies/smoke/dvc.lock was cut off and is set aside as dvc.lock.damaged" in " ".join(swept.stdout.split())
    assert ".dvc/tmp/rwlock was cut off and is set aside as rwlock.damaged" in " ".join(swept.stdout.split())
    same(folder, before)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def test_a_lock_of_dvc_is_cut_off_where_dvc_itself_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.sweep.dvc_files.GRACE", 0)
    monkeypatch.chdir(tmp_path)
    whole = (ROOT / "dvc.lock").read_text()[:900]
    repo = Repo.init(no_scm=True)
    refused = []
    for length in range(0, 900, 60):
        lock = tmp_path / "dvc.lock"
        lock.write_text(whole[:length])
        try:
            Lockfile(repo, "dvc.lock").load()
            refuses = False
        except DvcException:
            refuses = True
        assert bool(mend(tmp_path, tmp_path / "dvc.yaml")) == refuses == (not lock.exists())
        refused.append(refuses)
    assert len(set(refused)) == 2
