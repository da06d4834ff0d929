"""Bytes measured on the meta device are those of real tensors on a CPU, by torch's own record of its allocator."""

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
from infotok import InformationBottleneck  # noqa: E402
from infotok.mllm.loading import load  # noqa: E402
from infotok.mllm.tuning import TuneConfig, Tuner  # noqa: E402

NAMES = tuple(tiny_mllm.MAKERS)
SMALL = 2**12  # bytes: states of random generators, scalars and losses


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: tiny_mllm.make(name, root / name) for name in NAMES}


def case(name, folder):
    adapted = {"emu3": memory.emu3, "chameleon": memory.chameleon, "janus": memory.janus}[name].Adapted
    return memory.Case(adapted, lambda: AutoConfig.from_pretrained(folder), side=32, tokens=4, columns=200)


def real(folder, setting, dtype):
    """The tuner of a loaded checkpoint."""
    adapter = load(folder, dtype=dtype, control=True)
    bottleneck = InformationBottleneck("dib", beta=0.01, tokens=16, codebook=tiny_mllm.CODES, prior="shared")
    return Tuner(adapter, bottleneck, 1.0, TuneConfig(train=setting, tokenizer=memory.SETTINGS[setting]))


def allocated(work):
    """Bytes that the CPU's allocator has given out more than taken back: after `work`, and at the most."""
    with profile(profile_memory=True) as record:
        held = work()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    del held
    return now, most


every = pytest.mark.parametrize("name", NAMES)


@every
@pytest.mark.parametrize("setting", memory.SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_for_backward_is_what_a_cpu_keeps(folders, name, setting, dtype):
    """In bf16 a CPU's layer norm keeps its statistics in bf16, a GPU's and meta's in float32."""
    tuner, about = real(folders[name], setting, dtype), case(name, folders[name])
    with memory.on_meta():
        found = memory.kept_bytes(memory._tuner(about, setting, dtype), about)
    on_cpu = memory.kept_bytes(tuner, about)
    narrow = 0.0 if dtype == torch.float32 else 0.015
    for part, wanted in on_cpu.items():
        assert found[part] == pytest.approx(wanted, rel=narrow, abs=SMALL), part
    pixels, vectors, ids = memory._inputs(tuner.adapter, about, 1)
    pixels, vectors, ids = memory._inputs(tuner.adapter, about, 1)
    works = {
        "encoder": lambda: tuner.adapter.features(pixels),
        "decoder": lambda: tuner.adapter.decode(vectors),
        "LM": lambda: memory._hidden(tuner.adapter, ids),
    }
    for part, work in works.items():  # the allocator counts what is returned, too
        assert found[part] == pytest.approx(allocated(work)[0], rel=0.06), part


@every
@pytest.mark.parametrize("setting", memory.SETTINGS)
def test_the_peak_of_a_step_is_that_of_a_cpu(folders, name, setting):
    tuner, about = real(folders[name], setting, torch.float32), case(name, folders[name])
    with memory.on_meta():
        found = memory.step_bytes(memory._tuner(about, setting, torch.float32), about, 2)
    for parameter in tuner.step.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    with memory.checkpointed(tuner.adapter.model):
        most = allocated(lambda: memory.take_step(tuner.adapter, about, 2))[1]
    assert found == pytest.approx(most, rel=0.02)


@every
def test_states_are_the_bytes_of_the_files_and_of_adam(folders, name):
    """Mixed precision keeps 16 bytes for what is trained: weight, gradient and two moments in float32."""
    adapter = load(folders[name], dtype=torch.float32, control=True)
    with memory.on_meta():
        full = memory.state_bytes(memory._tuner(case(name, folders[name]), "full"))
    on_disk = sum(file.stat().st_size for file in Path(folders[name]).glob("*.safetensors"))
    beside = 0 if adapter.extra is None else 4 * sum(parameter.numel() for parameter in adapter.extra.parameters())
    prior = 4 * tiny_mllm.CODES
    assert full["trained"] + full["frozen"] == pytest.approx(on_disk + beside + prior, rel=0.03)  # and a header
    assert full["trained"] == full["gradients"] == full["moments"] / 2 == 2 * full["copies"]


def test_layers_whose_bytes_are_known():
    """A linear layer keeps its input, a GELU its own; checkpointed, the input of both is kept once."""
    with memory.on_meta():
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
        with memory.on_meta():
            model = memory.CASES[name].adapted.model_class(memory.CASES[name].config())
        found = sum(p.numel() for key, p in model.named_parameters() if "vqmodel" not in key)
        assert found == wanted


def test_how_many_images_a_card_takes():
    assert memory.images_that_fit(80, 12, 6) == 10  # (0.9 * 80 - 12) / 6
    assert memory.images_that_fit(24, 30, 1) == 0


def shown(gib):
    """As the page writes it."""
    return f"{gib:.1f}" if gib >= 0.95 else f"{gib:.2f}"


def test_the_page_shows_what_was_measured():
    page = (ROOT / "docs" / "gpu.md").read_text()
    states, kept, fitting = json.loads((memory.RESULTS / "memory.json").read_text())["tables"].values()
    parts = ("encoder", "decoder", "LM", "LM, checkpointed", "logits, whole", "logits, by pieces")
    rows = []
    for full, lora in zip(kept[::2], kept[1::2], strict=True):
        both = {part: shown(full[part]) for part in parts} | {"LM": f"{shown(full['LM'])} / {shown(lora['LM'])}"}
        rows.append([full["sizes of"], str(full["L"]), *both.values()])
    for one, eight in zip(fitting[::2], fitting[1::2], strict=True):
        images = [f"{one[f'{card} GB']} / {eight[f'{card} GB']}" for card in memory.CARDS]
        rows.append([one["sizes of"], one["train"], shown(one["an image"]), *images])
    for row in states:
        of = [r for r in fitting if r["sizes of"].startswith(f"{row['model']} ") and r["train"] == row["train"]][:2]
        sizes = [row["frozen"] + row["trained"], row["gradients"], row["moments"], row["copies"]]
        sizes += [of[0]["states"], of[1]["states"], of[0]["in transit"]]
        rows.append([row["model"], row["train"], *map(shown, sizes)])
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
