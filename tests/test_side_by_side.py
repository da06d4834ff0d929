"""Several trainings that take turns in one process: each has the numbers, bit for bit, that it has alone."""

import signal
from functools import partial

import pytest
import together
import torch

from infotok import stopping
from infotok.errors import InfotokError
from infotok.stopping import stoppable
from infotok.training.batches import Batches, Remembered
from infotok.training.checkpoints import Checkpoints
from infotok.training.joint import joint_steps, train_jointly
from infotok.training.loop import step_by_step
from infotok.training.together import Measured, Places, room, side_by_side

CPU = torch.device("cpu")
CELLS = {"baseline": ("ar", "none"), "vib": ("ar", "vib"), "ceb with a moving average": ("mask", "ceb")}


class Killed(BaseException):
    """Ends this process, as far as a test can."""


@pytest.fixture(scope="module")
def material():
    return together.material()


@pytest.fixture(scope="module")
def alone(material):
    return {name: together.joint(*material, *cell) for name, cell in CELLS.items()}


class Group:
    """Cells that train side by side, each from its checkpoint if there is one. observe: of a cell, by name."""

    def __init__(self, monkeypatch, material, folder, observe=None, **settings):
        monkeypatch.setattr(together, "train_jointly", joint_steps)
        self.models, self.outcomes, self.settings = {}, {}, settings
        self.material, self.folder, self.observe = material, folder, observe or {}

    def kept(self, name):
        return Checkpoints(self.folder / name)

    def begin(self, name):
        observe = self.observe.get(name, lambda step, values: None)
        settings = {"checkpoints": self.kept(name), "observe": observe, **self.settings}
        self.models[name], training = together.joint(*self.material, *CELLS[name], **settings)
        return training

    def run(self, places=3, device=CPU):
        trainings = [(name, partial(self.begin, name)) for name in CELLS]
        side_by_side(trainings, Places(places), device, self.outcomes.__setitem__)

    def assert_as(self, alone, names=tuple(CELLS)):
        for name in names:
            model, history = alone[name]
            assert self.outcomes[name] == history
            assert all(map(torch.equal, self.models[name].state_dict().values(), model.state_dict().values()))


@pytest.fixture(autouse=True)
def logged_often(monkeypatch):
    monkeypatch.setattr("infotok.training.loop.LOG_EVERY", 1)


@pytest.fixture(scope="module", autouse=True)
def alone_is_logged_often():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("infotok.training.loop.LOG_EVERY", 1)
        yield


@pytest.mark.parametrize("places", [3, 2])
def test_cells_side_by_side_have_the_numbers_that_they_have_alone(alone, material, monkeypatch, tmp_path, places):
    order = []
    observe = {name: lambda step, values, name=name: order.append((name, step)) for name in CELLS}
    group = Group(monkeypatch, material, tmp_path, observe)
    group.run(places)
    group.assert_as(alone)
    steps = {name: [at for at, (who, _) in enumerate(order) if who == name] for name in CELLS}
    assert steps["baseline"][-1] > steps["vib"][0]  # side by side, not one after the other
    assert (steps["baseline"][-1] > steps["ceb with a moving average"][0]) == (places == 3)


def test_a_killed_group_goes_on_from_the_checkpoint_of_each(alone, material, monkeypatch, tmp_path):
    def kill(step, values):
        if step == 5:
            raise Killed

    group = Group(monkeypatch, material, tmp_path, {"vib": kill})
    with pytest.raises(Killed):
        group.run()
    at = [int(group.kept(name).latest().stem.removeprefix("step-")) for name in CELLS]
    assert at == [4, 4, 2]  # one has begun in each round
    again = Group(monkeypatch, material, tmp_path)
    again.run()
    again.assert_as(alone)


def test_one_that_fails_ends_alone(alone, material, monkeypatch, tmp_path):
    def not_finite(step, values):
        if step == 3:
            raise InfotokError("training stopped at step 3: loss is not finite")

    group = Group(monkeypatch, material, tmp_path, {"vib": not_finite})
    group.run()
    assert group.outcomes["vib"] == "training stopped at step 3: loss is not finite"
    group.assert_as(alone, ["baseline", "ceb with a moving average"])
    assert group.kept("vib").latest().name == "step-00000002.safetensors"


def test_a_loss_that_is_not_finite_ends_its_training_alone():
    """By the loop's own test of its numbers."""
    modules = {name: torch.nn.Linear(2, 1) for name in ("good", "bad")}
    outcomes = {}

    def begin(name):
        def losses(step):
            loss = modules[name](torch.ones(3, 2)).square().mean()
            return {"loss": loss * (torch.nan if (name, step) == ("bad", 2) else 1.0)}

        optimizer = torch.optim.AdamW([{"params": modules[name].parameters(), "peak": 0.1}])
        return step_by_step(modules[name], optimizer, losses, steps=6, warmup=1)

    side_by_side([(name, partial(begin, name)) for name in modules], Places(2), CPU, outcomes.__setitem__)
    assert outcomes["bad"].startswith("training stopped at step 3: loss is not finite")
    assert len(outcomes["good"]) == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_of_every_cell_that_has_begun(alone, material, monkeypatch, tmp_path, number):
    def interrupt(step, values):
        if step == 3:
            signal.raise_signal(number)

    group = Group(monkeypatch, material, tmp_path, {"baseline": interrupt})
    with stoppable(), pytest.raises(stopping.Stopped, match="kept in checkpoints: baseline, vib") as stopped:
        group.run(places=2)
    assert stopped.value.number == number
    names = [latest.name if (latest := group.kept(name).latest()) else None for name in CELLS]
    assert names == ["step-00000003.safetensors", "step-00000001.safetensors", None]  # one begins in a round
    again = Group(monkeypatch, material, tmp_path)
    again.run()
    again.assert_as(alone)


@pytest.mark.parametrize("name", ["vib", "ceb with a moving average"])
def test_from_a_checkpoint_of_the_end_nothing_is_left_to_do(alone, material, monkeypatch, tmp_path, name):
    Group(monkeypatch, material, tmp_path, keep_end=True).run()
    monkeypatch.setattr(together, "train_jointly", train_jointly)
    family, arm = CELLS[name]

    def refuse(step, values):
        raise AssertionError("a step was made")

    model, history = together.joint(*material, family, arm, checkpoints=Checkpoints(tmp_path / name), observe=refuse)
    assert history == alone[name][1]
    assert all(map(torch.equal, model.state_dict().values(), alone[name][0].state_dict().values()))


def test_a_training_without_memory_waits_until_another_has_ended():
    began, outcomes = [], {}

    def begin(name):
        began.append(name)
        if name == "large" and "small has ended" not in began:
            raise torch.OutOfMemoryError("CUDA out of memory")
        for _ in range(3):
            yield
        began.append(f"{name} has ended")
        return []

    side_by_side([(name, partial(begin, name)) for name in ("small", "large")], Places(2), CPU, outcomes.__setitem__)
    assert began == ["small", "large", "small has ended", "large", "large has ended"]
    assert outcomes == {"small": [], "large": []}


def test_what_has_no_memory_even_alone_fails():
    outcomes = {}

    def begin():
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    side_by_side([("only", begin)], Places(2), CPU, outcomes.__setitem__)
    assert outcomes == {"only": "OutOfMemoryError: CUDA out of memory"}


class Card:
    """A GPU that makes `alone` steps a second of one training, and at most `most` of several; bytes: of a training,
    free of the whole."""

    def __init__(self, alone, most, each, total):
        self.now, self.at_work, self.alone, self.most, self.each, self.total = 0.0, 0, alone, most, each, total
        self.room = Measured(lambda: self.each * self.at_work, self.free, total, lambda: self.now)

    def free(self):
        return self.total - self.each * self.at_work

    def settle(self, trainings):
        for _ in range(2000):
            while self.at_work < trainings and self.room.another(self.at_work):
                self.at_work += 1
            self.now += self.at_work / min(self.at_work * self.alone, self.most)
            self.room.went_round(self.at_work)
        return self.at_work


@pytest.mark.parametrize(
    ("card", "trainings", "expected"),
    [
        ((10, 1000, 1, 1000), 20, 20),  # as many as there are
        ((10, 1000, 10, 100), 20, 9),  # a tenth of the memory stays free
        ((10, 55, 1, 1000), 20, 16),  # eight are 5.5 times as fast as one, sixteen no faster
        ((10, 10, 1, 1000), 20, 2),  # one keeps it busy
        ((10, 1000, 90, 100), 20, 1),  # no second fits
    ],
)
def test_a_gpu_gets_as_many_as_fit_and_pay(card, trainings, expected):
    assert Card(*card).settle(trainings) == expected


def test_a_cpu_gets_one_unless_it_is_told_otherwise():
    assert room(None, CPU) == Places(1)
    assert room(4, CPU) == Places(4)


def test_batches_are_made_once_for_those_that_see_the_same(material):
    made = []

    class Counted(Batches):
        def texts(self, step):
            made.append(step)
            return super().texts(step)

    config, plain = together.JOINT, Batches(*material, together.JOINT, seed=0)
    remembered = Remembered(Counted(*material, config, seed=0))
    for step in (0, 0, 1, 0, 1):
        assert torch.equal(remembered.texts(step).captions, plain.texts(step).captions)
        assert torch.equal(remembered.images(step), plain.images(step))
    assert made == [0, 1]
    assert remembered.images(0) is remembered.images(0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records CUDA graphs")
def test_recorded_steps_side_by_side_have_the_numbers_that_they_have_alone(material, monkeypatch, tmp_path):
    monkeypatch.setattr(together, "CPU", torch.device("cuda"))
    alone = {name: together.joint(*material, *cell) for name, cell in CELLS.items()}
    group = Group(monkeypatch, material, tmp_path)
    group.run(device=torch.device("cuda"))
    group.assert_as(alone)
