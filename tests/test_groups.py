"""Which cells of a sweep train in one process, and that a sweep needs nothing of it."""

from contextlib import nullcontext

import pytest
import test_sweep
from test_sweep import cells, grid

from infotok.errors import InfotokError
from infotok.files import write_text
from pipeline.config.study import Study
from pipeline.graph import FROM_SCRATCH
from pipeline.sweep import groups
from pipeline.sweep import jobs as module
from pipeline.sweep.engines.devices import Devices
from pipeline.sweep.engines.engine import Ended, Submitted
from pipeline.sweep.engines.local import Local
from pipeline.sweep.groups import arrangement, grouped
from pipeline.sweep.jobs import jobs, sweep

ARMS = ["none-0-0", "ceb-0.01-1", "dib-0.03-0"]
PLAIN = {"engine": "local", "gpus": None, "pull": False}


def planned(**axes):
    return jobs(FROM_SCRATCH, cells(**axes))


def of_groups(found):
    return {job.name: [cell.key for _, cell in job.stages] for job in found if job.ahead}


def test_cells_of_one_family_and_budget_train_in_one_process_before_their_own_jobs(tmp_path):
    axes = {"arm": ARMS, "tokens": [4, 8], "seed": [0, 1]}
    found = grouped(planned(**axes), study=grid(tmp_path, **axes), most=4)
    assert of_groups(found) == {
        "together-ar-8-1": ["ar-none-0-0-8-0", "ar-ceb-0.01-1-8-0", "ar-dib-0.03-0-8-0", "ar-none-0-0-8-1"],
        "together-ar-4-1": ["ar-none-0-0-4-0", "ar-ceb-0.01-1-4-0", "ar-dib-0.03-0-4-0", "ar-none-0-0-4-1"],
        "together-ar-8-2": ["ar-ceb-0.01-1-8-1", "ar-dib-0.03-0-8-1"],
        "together-ar-4-2": ["ar-ceb-0.01-1-4-1", "ar-dib-0.03-0-4-1"],
    }
    named = {job.name: job for job in found}
    assert named["together-ar-8-1"].after == ("prepare", "perceptual", "pretrain@ar-8-0", "pretrain@ar-8-1")
    assert named["together-ar-8-2"].after == ("prepare", "perceptual", "pretrain@ar-8-1")
    assert named["ar-none-0-0-8-1"].after[-1] == "together-ar-8-1"
    order = [job.name for job in found]
    assert len(order) == len(set(order)) == 4 + 4 + 4 + 12
    assert all(order.index(job.after[-1]) < order.index(job.name) for job in found if job.name.startswith("ar-"))


def test_gpus_share_the_cells_evenly(tmp_path):
    axes = {"arm": ARMS, "tokens": [8], "seed": [0, 1]}
    for count, sizes in ((1, [6]), (2, [3, 3]), (4, [2, 2, 2]), (6, [])):
        found = grouped(planned(**axes), study=grid(tmp_path, **axes), groups=count)
        assert [len(keys) for keys in of_groups(found).values()] == sizes
        assert [job.most for job in found if job.ahead] == [None] * len(sizes)
    assert list(of_groups(grouped(planned(**axes), study=grid(tmp_path, **axes)))) == ["together-ar-8"]


def test_cells_that_are_trained_and_those_that_are_alone_stay_as_they_are(tmp_path, monkeypatch):
    axes = {"arm": ARMS, "tokens": [8], "seed": [0]}
    done = {"ar-none-0-0-8-0"}
    monkeypatch.setattr(groups, "state", lambda study, stage, cell: "done" if cell.key in done else "missing")
    plain = planned(**axes)
    assert of_groups(grouped(plain, study=grid(tmp_path, **axes), most=9)) == {
        "together-ar-8": ["ar-ceb-0.01-1-8-0", "ar-dib-0.03-0-8-0"]
    }
    done.add("ar-ceb-0.01-1-8-0")
    assert grouped(plain, study=grid(tmp_path, **axes), most=9) == plain


class Engine:
    """Jobs end at once, those of a name in `codes` with that code."""

    def __init__(self, codes):
        self.codes, self.ran = codes, []

    def submit(self, job):
        self.ran.append(job.name)
        return Submitted(job, self.logs)

    def poll(self, one):
        return Ended(self.codes.get(one.name, 0))

    def opened(self, logs):
        self.logs = logs
        return lambda lock, ahead: nullcontext(self)


@pytest.mark.parametrize("code", [0, 1, -9])
def test_cells_of_a_process_that_has_failed_go_on_by_themselves(tmp_path, monkeypatch, code):
    monkeypatch.setattr(module, "fill_in", lambda *_: None)
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    study, said = grid(tmp_path, arm=ARMS, tokens=[8], seed=[0]), []
    engine = Engine({"together-ar-8": code})
    logs = study.scratch / "logs"
    write_text(logs / "together-ar-8.log", "error: 1 of 3 trainings have failed: ar-ceb-0.01-1-8-0\n")
    arrange = arrangement(study, together=3, **PLAIN)
    assert sweep(study, study.params.cells(), engine.opened(logs), said.append, arrange=arrange) == []
    assert engine.ran == [
        "configure", "prepare", "perceptual", "judge", "pretrain@ar-8-0", "together-ar-8",
        "ar-none-0-0-8-0", "ar-ceb-0.01-1-8-0", "ar-dib-0.03-0-8-0",
    ]  # fmt: skip
    early = [line for line in said if "go on one by one" in line]
    assert len(early) == (code != 0)
    assert all("error: 1 of 3 trainings have failed" in line for line in early)


def test_a_local_engine_starts_the_process_with_the_cells(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("pipeline.sweep.engines.local.start", lambda command, *_: started.append(command[1:]))
    study = grid(tmp_path, arm=ARMS, tokens=[8], seed=[0])
    (tmp_path / ".ckpt/default/logs").mkdir(parents=True)
    for most, options in ((2, ["--most", "2"]), (None, [])):
        (job, *_) = [
            job for job in grouped(planned(arm=ARMS, tokens=[8], seed=[0]), study=study, most=most) if job.ahead
        ]
        Local(study, 1, Devices([]), entries=None).submit(job)
        assert started.pop() == ["-m", "stages.together", *options, *(cell.key for _, cell in job.stages)]


def test_who_has_gpus_gets_groups_unless_something_else_places_cells(tmp_path, monkeypatch):
    axes = {"arm": ARMS, "tokens": [8], "seed": [0, 1]}
    study, plain = grid(tmp_path, **axes), planned(**axes)
    monkeypatch.setattr(groups, "visible", lambda: ["0", "1"])
    for name in ("INFOTOK_DEVICE", "INFOTOK_PROCESSES"):
        monkeypatch.delenv(name, raising=False)

    def count(together=None, **changes):
        return len(of_groups(arrangement(study, together=together, **PLAIN | changes)(plain)))

    assert count() == 2
    assert count(together=1) == 0
    assert count(together=6) == 1
    assert count(gpus=0.5) == count(engine="ray") == count(pull=True) == 0
    monkeypatch.setenv("INFOTOK_DEVICE", "cuda:1")
    assert count() == 1
    monkeypatch.setenv("INFOTOK_DEVICE", "cpu")
    assert count() == 0
    monkeypatch.delenv("INFOTOK_DEVICE")
    monkeypatch.setattr(groups, "visible", list)
    assert count() == 0
    assert count(together=3) == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"engine": "slurm"}, "--together: is of `--engine local`"),
        ({"pull": True}, "--together: trains before DVC looks into its remote"),
    ],
)
def test_what_excludes_groups_is_named(tmp_path, monkeypatch, changes, says):
    study = grid(tmp_path)
    with pytest.raises(InfotokError, match=says):
        arrangement(study, together=4, **PLAIN | changes)
    assert arrangement(study, together=1, **PLAIN | changes) is list
    monkeypatch.setenv("INFOTOK_PROCESSES", "2")
    with pytest.raises(InfotokError, match="INFOTOK_PROCESSES lets every training take several processes"):
        arrangement(study, together=4, **PLAIN)


def test_a_study_of_pretrained_models_has_no_such_trainings():
    study = Study("tiny-mllm", test_sweep.ROOT)
    with pytest.raises(InfotokError, match=r"tiny-mllm/params\.yaml are tuned, not trained"):
        arrangement(study, together=4, **PLAIN)
    assert arrangement(study, together=None, **PLAIN) is list
