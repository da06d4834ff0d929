"""Every benchmark runs at tiny sizes and says what it promises; how fast is not tested."""

import json
import operator
import os
import pickle
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # benchmarks are no installed package

from benchmarks import __main__ as main  # noqa: E402
from benchmarks import (  # noqa: E402
    books,
    cells,
    chunked,
    common,
    data,
    device,
    frozen,
    generation,
    gpu,
    memory,
    overhead,
    pieces,
    quantizer,
    regularizer,
    step,
    sweep,
    together,
    training,
    whole,
)
from pipeline.config.params import Params, load_params  # noqa: E402
from pipeline.config.study import Study  # noqa: E402

TIMING = {"median_ms", "q1_ms", "q3_ms", "n"}
DEVICE = {"device_ms", "busy_%", "kernels"}
COST = {"extra_%", "low_%", "high_%"}


@pytest.fixture(scope="module")
def params() -> Params:
    """The smoke study with small batches."""
    given = Study("smoke", ROOT).params
    small = {name: {"batch": 8} for name in ("pretrain", "train")}
    return given.model_copy(update={n: getattr(given, n).model_copy(update=v) for n, v in small.items()})


def kept(result: common.Result, folder: Path) -> list[list[dict]]:
    """The rows of the tables of the JSON file, once they have been shown too."""
    with Console(file=open(folder / "shown.txt", "w"), width=200) as console:
        common.show(result, console)
    path = common.keep("name", result, "python -m benchmarks name", True, common.machine(), folder)
    content = json.loads(path.read_text())
    assert set(content) == {
        "benchmark", "command", "quick", "date", "commit", "machine", "settings", "tables",
    }  # fmt: skip
    assert {"cpu", "cores", "threads", "torch"} <= set(content["machine"])
    for title, rows in content["tables"].items():
        assert title in (folder / "shown.txt").read_text()
        assert all(row.keys() == rows[0].keys() for row in rows)
    return list(content["tables"].values())


def test_turns_are_taken_and_their_first_rounds_not_counted():
    done = []
    seconds = common.in_turns({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, rounds=3, warmup=1)
    assert done == ["a", "b"] * 4
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3}


def test_extra_cost_is_of_the_same_turn():
    baseline = [1.0 + turn for turn in range(100)]  # a machine that slows down
    cost = common.extra_percent([1.05 * second for second in baseline], baseline)
    assert list(cost.values()) == pytest.approx([5.0, 5.0, 5.0])


def test_what_a_device_does_counts_once():
    """On two streams: 2 to 5 and 4 to 7, then 9 to 10, in which another lies. 6 microseconds of 8."""
    assert device.covered([(4.0, 7.0), (2.0, 5.0), (9.0, 10.0), (9.2, 9.8)]) == 6.0
    kinds, span = device.DeviceType, SimpleNamespace(start=1.0, end=3.0)
    kernel = {"device_type": kinds.CUDA, "cpu_parent": None, "is_user_annotation": False, "time_range": span}
    others = ({"device_type": kinds.CPU}, {"is_user_annotation": True}, {"cpu_parent": object()})
    events = [SimpleNamespace(**kernel), *(SimpleNamespace(**kernel | other) for other in others)]
    assert device.spans_of(events, kinds.CUDA) == [(1.0, 3.0)]


def test_a_device_is_watched():
    with device.watched() as work:
        torch.randn(256, 256) @ torch.randn(256, 256)
    assert work.seconds > 0
    row = device.Work(seconds=0.5, kernels=30).row(calls=10, wall=0.2)
    assert row == {"device_ms": 50.0, "busy_%": 25.0, "kernels": 3.0}
    assert set(device.Work().row(10, 0.2).values()) == {device.UNSEEN}


def test_a_gpu_is_watched_by_the_profiler_s_events_and_pytorch_s_warnings():
    """As on a GPU, of a CPU's operators."""
    a = torch.randn(64, 64)
    with device._events(device.ProfilerActivity.CPU) as events, device._waits() as caught:
        for _ in range(3):
            torch.nn.functional.linear(a, a)  # an operator that calls others
        warnings.warn("called a synchronizing CUDA operation (Triggered internally at a.cpp:1.)", stacklevel=1)
        warnings.warn("does not yet detect all synchronizing operations", stacklevel=1)
    spans = device.spans_of(events, device.DeviceType.CPU)
    assert len(spans) == 3 < len(events)
    assert 0 < device.covered(spans) <= sum(end - begin for begin, end in spans) + 1e-6
    assert device._counted(caught) == 1


def test_matrix_rates_are_those_of_products():
    rates = device.matrix_rates(batch=2, width=16, quick=True)
    assert [row["matrices"] for row in rates[::2]] == ["large: 256 x 256 x 256", "as the backbone's MLP: 128 x 16 x 42"]
    assert 0 < device.peak_rate(rates, "fp32") < 1e5


def test_the_interval_of_the_median_covers_it():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        seconds = (1 + torch.rand(60, generator=generator)).tolist()  # median 1.5
        cost = common.extra_percent(seconds, [1.0] * 60)
        covered += cost["low_%"] <= 50 <= cost["high_%"]
    assert 0.92 < covered / 400 <= 0.99


def test_a_part_of_a_step_counts_without_what_it_calls(monkeypatch):
    clock, time = step.PartClock(), iter([0.0, 1.0, 3.0, 10.0])
    monkeypatch.setattr(step, "now", lambda: next(time))

    class Work:
        def outer(self):
            self.inner()

        def inner(self):
            pass

    clock.next_step(0)
    with clock.around(Work, "outer", "outside"), clock.around(Work, "inner", "inside"):
        Work().outer()
    assert clock.steps == [{"inside": 2.0, "outside": 8.0}]


def test_step(params, tmp_path):
    summary, parts, matrices, whole = kept(step.measure(params, quick=True), tmp_path)
    assert [row["family"] for row in summary] == ["ar", "mask", "flow"]
    assert TIMING | {"images_per_s", "MFLOP_per_image", "GFLOP/s", "of_peak_%"} <= set(summary[0])
    assert [row["part"] for row in parts] == list(step.PARTS)
    for family in ("ar", "mask", "flow"):
        # Every clock was called, and together they are nearly the whole step.
        assert all(row[family] > 0 for row in parts)
        assert next(row[f"{family}_%"] for row in parts if row["part"] == "rest") < 30
    assert {row["precision"] for row in matrices} == {"fp32", "bf16"}
    assert TIMING | DEVICE | {"family", "batch", "compile", "images_per_s", "waits"} == set(whole[0])
    assert all(row["busy_%"] > 0 and row["waits"] == 0 for row in whole)
    assert [row["family"] for row in whole if row["compile"] == "never"] == ["ar", "mask", "flow"]


def test_together(params, tmp_path):
    (rows,) = kept(together.measure(params, quick=True), tmp_path)
    assert TIMING | {"cells", "steps_per_s", "images_per_s", "device_work_ms", "work_of_round_%", "peak_MiB"} == set(
        rows[0]
    )
    assert [row["cells"] for row in rows] == list(together.QUICK)
    one, three = rows
    assert three["device_work_ms"] > 2 * one["device_work_ms"]


def test_regularizer(params, tmp_path):
    steps, alone = kept(regularizer.measure(params, quick=True), tmp_path)
    assert TIMING | DEVICE | COST | {"estimator", "consistency"} == set(steps[0])
    arms = {(row["estimator"], row["consistency"]) for row in steps}
    assert {(name, said) for name in ("vib", "dib", "ceb", "hsic", "hsic, rff") for said in ("yes", "no")} < arms
    assert {row["estimator"] for row in alone} == {"unbiased", "rff"}


def test_the_regularizer_in_windows_as_on_a_gpu(params, tmp_path, monkeypatch):
    monkeypatch.setattr(whole, "LOG_EVERY", 2)  # of three windows
    arms = {name: arm for name, arm in regularizer._arms().items() if name in (regularizer.BASELINE, "vib 1.0")}
    given = training.prepared(params, tmp_path / "data", 16)
    found = regularizer.in_windows(training.Trainer.create(params, "ar", given, 8), arms, windows=2)
    assert list(found) == list(arms)
    for seconds, row in found.values():
        assert len(seconds) == 2
        assert all(second > 0 for second in seconds)
        assert set(row) == DEVICE


def test_quantizer(params, tmp_path):
    rows, alike = kept(quantizer.measure(params, quick=True), tmp_path)
    assert TIMING | DEVICE | COST | {"quantizer", "does"} == set(rows[0])
    assert [(row["quantizer"], row["against"]) for row in alike] == list(quantizer.ALIKE.items())
    assert {row["quantizer"] for row in rows} == {
        "ours, sampled", "ours, sampled, usage", "ours, deterministic", *quantizer.THEIRS,
    }  # fmt: skip


def test_chunked(params, tmp_path):
    costs, looked_up, bits = kept(chunked.measure(params, quick=True), tmp_path)
    sizes = {"form", "sizes of", "B", "K", "C", "D", "peak_MiB", "of B*K*C floats", "cpu_s"}
    assert TIMING | DEVICE | sizes == set(costs[0])
    assert [row["form"] for row in costs] == 2 * list(chunked.COSTS)
    assert [row["form"] for row in looked_up] == 2 * list(chunked.LOOK_UPS)
    assert [row["form"] for row in bits] == 2 * ["chunked", "bits"]


def test_frozen(params, tmp_path):
    steps, (making,) = kept(frozen.measure(params, quick=True), tmp_path)
    assert TIMING | DEVICE | {"tokens", "cpu_s"} == set(steps[0])
    assert [row["tokens"] for row in steps] == ["encoded in the step", "made once"]
    assert making["KiB an image"] > 16 * (16 + 1) * 2 / 1024  # features and codes of 16 tokens, in 16 bits at least


def test_memory(params, tmp_path):
    states, activations, fitting = kept(memory.measure(params, quick=True), tmp_path)
    assert [row["train"] for row in states] == [row["train"] for row in activations] == list(memory.SETTINGS)
    for row in activations:
        assert row["LM, recomputed"] < row["LM"]
        assert row["logits, by pieces"] < 0.2 * row["logits, whole"]
    for one, eight in zip(fitting[::2], fitting[1::2], strict=True):
        assert (one["cards"], eight["cards"]) == (1, memory.SHARDS)
        assert eight["states"] < one["states"]
        assert one["24 GB"] <= one["48 GB"] <= one["80 GB"] <= one["141 GB"]


def test_cells(params, tmp_path):
    """At least weights, gradients and moments, and of twice the images not twice as much."""
    (rows,) = kept(cells.measure(params, quick=True), tmp_path)
    assert [row["family"] for row in rows] == ["ar", "mask", "flow"]
    for row in rows:
        assert row["gradients and moments"] < 3 * row["weights"]
        assert row["most at once"] > row["weights"] + row["gradients and moments"]
        assert row["141 GB"] == int(0.9 * 141 * 1024 / row["most at once"]) > row["24 GB"]
    train = params.train.model_copy(update={"batch": 16})
    ((double, *_),) = kept(cells.measure(params.model_copy(update={"train": train}), quick=True), tmp_path)
    fixed = rows[0]["weights"] + 2 / 3 * rows[0]["gradients and moments"]  # when forward ends, no gradient is there
    assert 1.5 < (double["most at once"] - fixed) / (rows[0]["most at once"] - fixed) < 2.1


def test_the_page_shows_the_memory_that_was_measured():
    page = (ROOT / "docs" / "gpu.md").read_text()
    ((*rows,),) = json.loads((common.RESULTS / "cells.json").read_text())["tables"].values()
    for row in rows:
        sizes = [row["weights"], row["gradients and moments"], row["most at once"]]
        shown = [f"{size:,.0f}" if size >= 10 else f"{size:.1f}" for size in sizes]
        cards = [f"{row[card]:,}" for card in ("24 GB", "80 GB", "141 GB")]
        assert f"| {' | '.join(['`' + row['family'] + '`', str(row['batch']), *shown, *cards])} |" in page


def test_data(params, tmp_path):
    preparing, loading, (brought,), memory = kept(data.measure(params, quick=True), tmp_path)
    assert preparing[0]["images"] == 2 * 4 * params.train.batch + 3 * 10
    assert {"images", "texts, first epoch"} <= {row["part"] for row in loading}
    assert TIMING | DEVICE | {"batch", "images_per_s"} == set(brought)
    assert all(0 < row["imports_MiB"] <= row["peak_MiB"] for row in memory)


def test_generation(params, tmp_path):
    drawn, cached = kept(generation.measure(params, quick=True), tmp_path)
    assert {row["family"] for row in drawn} == {"ar", "mask", "flow"}
    assert TIMING | DEVICE | {"images_per_s", "tokens_per_s"} <= set(drawn[0])
    assert [(row["cache"], row["same_tokens_%"]) for row in cached] == [("yes", 100.0), ("no", 100.0)]


@pytest.mark.parametrize("cells", [1, *overhead.CELLS, *books.CELLS])
def test_overhead_plans_grids_that_the_pipeline_takes(params, tmp_path, cells):
    """DVC itself is not run."""
    overhead.copied(tmp_path, overhead.smallest_params(params, cells))
    made = load_params(tmp_path / "params.yaml")
    assert len(made.cells()) == cells
    assert made.train.steps == made.pretrain.steps == 1
    assert not (tmp_path / "dvc.lock").exists()


def test_overhead_goes_on_with_the_grids_that_are_missing(params, tmp_path, monkeypatch):
    made, code = [], "code"

    def grid(params, cells, fewer):
        made.append((cells, fewer and fewer["cells"]))
        if cells == 200 and len(made) == 3:
            raise KeyboardInterrupt
        return {"cells": cells, "sweep_cpu": 3.0 * cells}

    def run() -> list[dict]:
        for result in overhead.measure(params, quick=False, folder=tmp_path):
            common.keep("overhead", result, "python -m benchmarks overhead", False, common.machine(), tmp_path)
        return json.loads((tmp_path / "overhead.json").read_text())["tables"]

    old = [{"cells": 50, "total_s": 1593.0}]
    (tmp_path / "overhead.json").write_text(json.dumps({"settings": {}, "tables": {overhead.FORMER: old}}))
    monkeypatch.setattr(overhead, "_grid", grid)
    monkeypatch.setattr(overhead, "_code", lambda: code)
    with pytest.raises(KeyboardInterrupt):
        run()
    tables = run()
    assert made == [(5, None), (50, 5), (200, 50), (200, 50)]
    assert [row["cells"] for row in tables[overhead.GRIDS]] == [5, 50, 200]
    assert tables[overhead.BEFORE] == old
    code = "other code"
    run()
    assert made[4:] == [(5, None), (50, 5), (200, 50)]


def test_books(params, tmp_path):
    ((row,),) = kept(books.measure(params, quick=True), tmp_path)
    assert row.pop("cells") == 5
    assert all(seconds > 0 for seconds in row.values())


def test_all_figures_of_a_gpu(params, tmp_path):
    """The pieces of steps, products and data at tiny sizes, by the code that a GPU runs; those of the other benchmarks
    are tested above."""
    (row,) = gpu.step(params, "ar", 8, "never", quick=True)[gpu.STEPS]
    assert TIMING | DEVICE | {
        "family", "batch", "compile", "images_per_s", "waits", "peak_MiB", "GFLOP/s", "of_peak_%"
    } == set(row)  # fmt: skip
    assert row["GFLOP/s"] > 0
    assert len(gpu.rates(params, quick=True)[gpu.RATES]) == 4
    (brought,) = gpu.bringing(params, quick=True)["Bringing a step to the device"]
    assert brought["batch"] == 8
    planned = gpu.planned(params, "cuda", quick=False)
    steps = {(family, batch, how) for family in ("ar", "mask", "flow") for batch in (8, 512)
             for how in ("never", "record", "fuse")}  # fmt: skip
    assert {piece.given[1:4] for piece in planned if piece.work == gpu.step} == steps
    assert [piece.name for piece in planned if piece.limit == gpu.COMPILING] == [piece.name for piece in planned[-6:]]
    assert {piece.given[0] for piece in planned if piece.work == gpu.other} == set(gpu.OTHERS) < set(main.Name)
    assert pickle.loads(pickle.dumps(planned)) == planned


def test_a_piece_that_fails_is_a_row_and_loses_nothing(params, tmp_path):
    """One raises, one dies, one hangs: each in its own process."""
    work = [
        pieces.Piece("product", dict, ([("Products", [{"GFLOP/s": 1.0}])],)),
        pieces.Piece("raises", operator.truediv, (1, 0), otherwise=pieces.Piece("instead", dict)),
        pieces.Piece("dies", os._exit, (3,)),
        pieces.Piece("killed", os.abort),
        pieces.Piece("hangs", time.sleep, (600,), limit=0.5, otherwise=pieces.Piece("again", dict)),
        pieces.Piece("another", dict, ([("Products", [{"GFLOP/s": 2.0}])],)),
    ]
    *_, result = gpu.grown(work, {}, seconds=500, imports="json")
    products, outcomes = kept(result, tmp_path)
    assert products == [{"GFLOP/s": 1.0}, {"GFLOP/s": 2.0}]
    assert [row["outcome"] for row in outcomes] == [
        "done", "ZeroDivisionError: division by zero", "done", "its process died: exit code 3",
        "its process died: SIGABRT", "not done within its time", "done",
    ]  # fmt: skip
    page = (tmp_path / "name-quick.md").read_text()
    assert "\n| GFLOP/s |\n| --: |\n| 1 |\n| 2 |\n" in page
    assert "| raises |" in page


def test_what_has_no_time_left_or_is_interrupted_says_so(monkeypatch):
    nothing = [pieces.Piece("a", dict), pieces.Piece("b", dict)]
    found = [row["outcome"] for _, row in pieces.done_one_by_one(nothing, 0.0, "json")]
    assert found == 2 * ["not begun: the 0 minutes of all pieces were over; give more by --minutes"]
    monkeypatch.setattr(pieces._Process, "do", interrupted)
    for_all = pieces.done_one_by_one(nothing, 100.0, "json")
    assert [next(for_all)[1]["outcome"] for _ in nothing] == 2 * ["interrupted"]
    with pytest.raises(KeyboardInterrupt):
        next(for_all)


def interrupted(*_):
    raise KeyboardInterrupt


def test_outputs_are_compared_byte_for_byte(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        (folder / "runs/train").mkdir(parents=True)
        (folder / "reports").mkdir()
        (folder / "reports/paired.csv").write_text("x")
        (folder / "runs/train/metrics.json").write_text(json.dumps({"metrics": {"score": 0.5}}))
    assert sweep.outputs(first) == sweep.outputs(second)
    assert len(sweep.outputs(first)) == 2
    (second / "runs/train/metrics.json").write_text(json.dumps({"metrics": {"score": 0.6}}))
    assert sweep.outputs(first) != sweep.outputs(second)
