"""Bytes of fake tensors are those of real ones on a CPU, by torch's own record of its allocator."""

import gc
import json
import re
import sys
from pathlib import Path

import pytest
import tiny_mllm
import torch
from torch import nn
from torch.profiler import profile
from transformers import AutoConfig

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # benchmarks are no installed package

from benchmarks import memory  # noqa: E402
from infotok.mllm.loading import load  # noqa: E402

NAMES = tuple(tiny_mllm.MODELS)
SMALL = 2**12  # bytes: states of random generators, scalars and losses


def case(name, folder):
    adapted = {"emu3": memory.emu3, "chameleon": memory.chameleon, "janus": memory.janus}[name].Adapted
    return memory.Case(adapted, lambda: AutoConfig.from_pretrained(folder), side=32, tokens=4, columns=200)


def real(name, folder, setting, recompute, precision):
    """The tuner of a loaded checkpoint."""
    adapter = load(folder, control=True)
    return memory.tuner_of(adapter, case(name, folder), setting, recompute, precision)


def fake(name, folder, setting, recompute, precision):
    return memory.make_tuner(case(name, folder), setting, recompute, precision)


def allocated(work):
    """Bytes that the CPU's allocator has given out more than taken back: after `work`, and at the most."""
    gc.collect()  # else a collection meanwhile would take back what was there before
    gc.disable()
    try:
        with profile(profile_memory=True) as record:
            held = work()
    finally:
        gc.enable()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    del held
    return now, most


every = pytest.mark.parametrize("name", NAMES)
settings = pytest.mark.parametrize("setting", memory.SETTINGS)
precisions = pytest.mark.parametrize("precision", ["fp32", "bf16"])


@every
@settings
@precisions
def test_what_is_kept_for_backward_is_what_a_cpu_keeps(folders, name, setting, precision):
    about = name, folders[name], setting, False, precision
    tuner, model = fake(*about), real(*about)
    with memory.without_numbers(tuner):
        found = memory.kept_bytes(tuner, case(*about[:2]))
    with memory.gpu_types():
        on_cpu = memory.kept_bytes(model, case(*about[:2]))
    for part, wanted in on_cpu.items():
        assert found[part] == pytest.approx(wanted, abs=SMALL), part


@every
@settings
@pytest.mark.parametrize(("precision", "recompute"), [("fp32", False), ("bf16", True)])
def test_the_peak_of_a_step_is_that_of_a_cpu(folders, name, setting, precision, recompute):
    about = name, folders[name], setting, recompute, precision
    tuner, model = fake(*about), real(*about)
    with memory.without_numbers(tuner):
        found = max(memory.step_bytes(tuner, case(*about[:2]), 2))
    for parameter in model.step.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    with memory.gpu_types():
        most = allocated(lambda: sum(memory.step_losses(model, case(*about[:2]), 2)).backward())[1]
    assert found == pytest.approx(most, rel=0.06)  # a CPU's convolutions have workspaces, too


@every
def test_states_are_the_bytes_of_the_files_and_of_adam(folders, name):
    """Mixed precision keeps 16 bytes for what is trained: weight, gradient and two moments in float32."""
    adapter, tuner = load(folders[name], control=True), fake(name, folders[name], "full", False, "bf16")
    with memory.without_numbers(tuner):
        full = memory.state_bytes(tuner)
    on_disk = sum(file.stat().st_size for file in Path(folders[name]).glob("*.safetensors"))
    beside = 0 if adapter.extra is None else 4 * sum(parameter.numel() for parameter in adapter.extra.parameters())
    prior = 4 * sum(parameter.numel() for parameter in tuner.step.bottleneck.parameters())
    assert full["trained"] + full["frozen"] == pytest.approx(on_disk + beside + prior, rel=0.03)  # and a header
    assert full["trained"] == full["gradients"] == full["moments"] / 2


def test_layers_whose_bytes_are_known():
    """A linear layer keeps its input, a GELU its own; checkpointed, the input of both is kept once."""
    with memory.without_numbers():
        stack = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        given = torch.zeros(5, 8)
        assert memory.saved_bytes(lambda: stack(given), stack) == 4 * 5 * (8 + 32 + 32)
        whole = lambda: torch.utils.checkpoint.checkpoint(stack, given, use_reentrant=False)  # noqa: E731
        assert memory.saved_bytes(whole, stack) == 4 * 5 * 8
        with memory.Peak([*stack.parameters(), given]) as peak, torch.no_grad():
            stack(given)
        assert peak.most == 4 * 5 * (32 + 32)
        assert peak.now == 0


def test_real_sizes():
    """Parameters of the language models by the formula of the decoder: 7.0 and 8.5 billion."""
    d = 4096
    chameleon = 2 * 65536 * d + d + 32 * (4 * d * d + 3 * d * 11008 + 2 * d + 4 * d)  # norms of queries and keys
    emu3 = 2 * 184622 * d + d + 32 * (2 * d * d + 2 * d * 1024 + 3 * d * 14336 + 2 * d)
    for name, wanted in (("Chameleon 512 x 512", chameleon), ("Emu3 512 x 512", emu3)):
        with torch.device("meta"):
            model = memory.CASES[name].adapted.model_class(memory.CASES[name].config())
        found = sum(p.numel() for key, p in model.named_parameters() if "vqmodel" not in key)
        assert found == wanted


def test_how_many_images_a_card_takes():
    assert memory.images_that_fit(80, 12, [(0, 6), (20, 1)]) == 10  # (0.9 * 80 - 12) / 6
    assert memory.images_that_fit(80, 12, [(0, 6), (50, 5)]) == 2  # (0.9 * 80 - 12 - 50) / 5
    assert memory.images_that_fit(24, 30, [(0, 1)]) == 0


def shown(gib):
    """As the page writes it."""
    return f"{gib:.1f}" if gib >= 0.95 else f"{gib:.2f}"


def test_the_page_shows_what_was_measured():
    page = (ROOT / "docs" / "gpu.md").read_text()
    states, kept, fitting = json.loads((memory.RESULTS / "memory.json").read_text())["tables"].values()
    rows = []
    for one, eight in zip(fitting[::2], fitting[1::2], strict=True):
        images = [f"{one[f'{card} GB']} / {eight[f'{card} GB']}" for card in memory.CARDS]
        rows.append([one["sizes of"], one["train"], shown(one["any step"]), shown(one["an image"]), *images])
    for row in states:
        of = [r for r in fitting if r["sizes of"].startswith(f"{row['model']} ") and r["train"] == row["train"]][:2]
        sizes = [row["frozen"] + row["trained"], row["gradients"], row["moments"], *(each["states"] for each in of)]
        rows.append([row["model"], row["train"], *map(shown, sizes)])
    for row in (row for row in kept if row["train"] == "lora"):
        parts = [f"{shown(row[part])} → {shown(row[f'{part}, recomputed'])}" for part in memory.RECOMPUTED]
        logits = [shown(row["logits, whole"]), shown(row["logits, by pieces"])]
        rows.append([row["sizes of"], str(row["L"]), *parts, *logits])
    missing = [line for row in rows if (line := f"| {' | '.join(row)} |") not in page]
    assert missing == []


def test_the_page_s_check_runs(folders, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "gpu.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    tiny_mllm.toy()[0][0].save("photo.png")
    exec(code.replace("BAAI/Emu3-Chat-hf", folders["emu3"]), {})
    codes, tokens, psnr = capsys.readouterr().out.splitlines()[-3:]
    assert (codes, tokens) == ("None", "tokens 16")
    assert 0 < float(psnr.split()[1]) < 60
