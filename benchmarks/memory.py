"""Memory of tuning models of real sizes, measured without a GPU: on torch's meta device, where tensors have shapes,
types and storages but no numbers. What it says does not depend on the machine.

States are what stays from step to step: weights, gradients and AdamW's moments. Frozen weights are bf16; what is
trained has float32 weights and gradients, and a bf16 copy that computes. Kept for backward, all in bf16, is every
storage that autograd saves, once, apart from parameters and buffers. The peak of a step is the most that lives at once,
forward and backward, beside the states. Attention is torch's operator for flash attention, so that queries, keys,
values, outputs and a row statistic are kept, and no L * L matrix. Workspaces of kernels and fragmentation come on top:
`RESERVE` is left for them.
Shapes: n images of H x W pixels, L columns of a sequence.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import ChameleonConfig, Emu3Config, JanusConfig, LlamaConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import AttentionInterface

from benchmarks.chunked import SIZES
from benchmarks.common import RESULTS, Result, Row
from infotok import InformationBottleneck
from infotok.mllm.adapter import Adapter
from infotok.mllm.adapters import chameleon, emu3, janus
from infotok.mllm.joint import ROWS, cross_entropy
from infotok.mllm.loading import without_dropout
from infotok.mllm.tuning import TuneConfig, Tuner
from pipeline.config.params import Params

GIB = 2**30
CARDS = (24, 48, 80, 141)  # GB on the label, taken as GiB
RESERVE = 0.1  # share of a card that is not planned with
SHARDS = 8
TEXT = 64  # columns of a question and its answer, or of a caption, and of what encloses an image
Setting = Literal["full", "lora"]
SETTINGS: dict[Setting, Literal["full", "encoder"]] = {
    "full": "full",
    "lora": "encoder",
}  # what of the tokenizer learns
FUSED = "fused_on_meta"
INFORMATION = ("chunked", "chunked look-up")  # forms of `benchmarks chunked`


def _emu3() -> Emu3Config:
    """Emu3-Chat and Emu3-Gen: transformers' own defaults, 8B."""
    return Emu3Config(vocabulary_map={"<image>": 0, "<|extra_200|>": 1})


def _chameleon() -> ChameleonConfig:
    """Chameleon 7B and Anole: transformers' own defaults."""
    return ChameleonConfig(vocabulary_map={"<image>": 0})


def _janus(layers: int = 24) -> JanusConfig:
    """Janus-Pro-1B: the language model of its config.json, and transformers' own defaults."""
    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": layers, "vocab_size": 102400}
    text = LlamaConfig(num_attention_heads=16, num_key_value_heads=16, **sizes)
    return JanusConfig(text_config=text, tie_word_embeddings=False)


@dataclass(frozen=True)
class Case:
    """side: H = W pixels. columns: of an image in a sequence. tokens: h and w."""

    adapted: type[Any]
    config: Callable[[], Any]
    side: int
    tokens: int
    columns: int


CASES = {
    "Emu3 256 x 256": Case(emu3.Adapted, _emu3, 256, 32, 32 * 33),  # an end of line after every row
    "Emu3 512 x 512": Case(emu3.Adapted, _emu3, 512, 64, 64 * 65),
    "Emu3 720 x 720": Case(emu3.Adapted, _emu3, 720, 90, 90 * 91),
    "Chameleon 512 x 512": Case(chameleon.Adapted, _chameleon, 512, 32, 32 * 32),
    "Janus-Pro-1B 384 x 384": Case(janus.Adapted, _janus, 384, 24, 24 * 24),
}
QUICK = {"Janus of 2 layers 384 x 384": Case(janus.Adapted, lambda: _janus(layers=2), 384, 24, 24 * 24)}


def measure(params: Params, quick: bool) -> Result:
    states: list[Row] = []
    kept: list[Row] = []
    fitting: list[Row] = []
    seen: set[tuple] = set()
    for name, case in (QUICK if quick else CASES).items():
        model = name.rsplit(" ", 3)[0]
        for setting in SETTINGS:
            with on_meta():
                tuner = _tuner(case, setting)
                of_image, of_step = kept_bytes(tuner, case), [step_bytes(tuner, case, images) for images in (1, 2)]
                of_model = state_bytes(tuner)
            about: Row = {"model": model, "train": setting}
            if (model, setting) not in seen:
                states.append(about | _in_gib(of_model))
            seen.add((model, setting))
            sizes: Row = {"sizes of": name, "train": setting, "L": case.columns + TEXT}
            kept.append(sizes | _in_gib(of_image))
            fitting += [sizes | row for row in _fitting(of_model, *of_step)]
    settings = {"reserve": RESERVE, "columns of text": TEXT, "shards": SHARDS, "rows of logits": ROWS}
    tables = {
        "States, GiB": states,
        "Kept for backward, GiB for an image": kept,
        "GiB on a card, with activation checkpointing, and images that it takes at once": fitting,
    }
    return Result(settings, tables)


@contextmanager
def on_meta() -> Iterator[None]:
    """Tensors without numbers, and attention that keeps what flash attention keeps."""
    AttentionInterface.register(FUSED, _fused)
    with torch.device("meta"):
        yield


def _fused(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    """What scaled_dot_product_attention calls on a GPU. On meta it would choose the plain form, which keeps L * L
    weights. transformers makes no mask for an attention that it does not know."""
    causal = getattr(module, "is_causal", True)
    scale = given.get("scaling")
    made = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, scale=scale)[0]
    return made.transpose(1, 2).contiguous(), None


def _tuner(case: Case, setting: Setting, dtype: torch.dtype = torch.bfloat16) -> Tuner:
    """As `infotok.mllm` tunes this model, but that nothing has been loaded."""
    model = case.adapted.model_class(case.config()).to(dtype)
    without_dropout(model)
    model.set_attn_implementation(FUSED)
    adapter = case.adapted(model, None, Path("nowhere"))
    bottleneck = InformationBottleneck(
        "dib", beta=0.01, tokens=case.tokens**2, codebook=len(adapter.codebook()), prior="shared"
    )
    return Tuner(adapter, bottleneck, 1.0, TuneConfig(train=setting, tokenizer=SETTINGS[setting]))


def state_bytes(tuner: Tuner) -> dict[str, int]:
    """Bytes of the states, once a step has been taken; `gathered` are the bf16 weights that FSDP2 has on every card at
    once, where each layer of the language model is sharded by itself: what is outside them, and two of them.
    """
    learning = [parameter for group in tuner.optimizer.param_groups for parameter in group["params"]]
    frozen = [parameter for parameter in tuner.step.parameters() if not parameter.requires_grad]
    for parameter in learning:
        parameter.data = parameter.data.float()
        parameter.grad = torch.zeros_like(parameter)
    tuner.optimizer.step()
    moments = [value for state in tuner.optimizer.state.values() for value in state.values() if value.ndim]
    layers = _layers(tuner.adapter)
    of_layers = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    outside = sum(parameter.numel() for parameter in tuner.step.parameters()) - of_layers
    return {
        "frozen": _bytes(frozen),
        "trained": _bytes(learning),
        "copies": 2 * sum(parameter.numel() for parameter in learning),
        "gradients": _bytes([parameter.grad for parameter in learning if parameter.grad is not None]),
        "moments": _bytes(moments),
        "gathered": 2 * (outside + 2 * of_layers // len(layers)),
    }


def kept_bytes(tuner: Tuner, case: Case) -> dict[str, int]:
    """Bytes kept for backward of one image of a case, of one sequence with it, and of the logits of that sequence."""
    adapter, model = tuner.adapter, tuner.adapter.model
    pixels, vectors, ids = _inputs(adapter, case, 1)

    def kept(work: Callable[[], Any]) -> int:
        return saved_bytes(work, tuner.step)

    found = {"encoder": kept(lambda: adapter.features(pixels)), "decoder": kept(lambda: adapter.decode(vectors))}
    found["vision tower"] = 0 if adapter.shared else kept(lambda: model.model.vision_model(pixels))
    found["LM"] = kept(lambda: _hidden(adapter, ids))
    with checkpointed(model):
        found["LM, checkpointed"] = kept(lambda: _hidden(adapter, ids))
    with torch.no_grad():
        states = _hidden(adapter, ids)[0]
    states.requires_grad_()
    found["logits, whole"] = kept(lambda: F.cross_entropy(adapter.head(states).float(), ids[0]))
    some = states[:ROWS]  # of which logits are made again at a time
    found["logits, by pieces"] = kept(lambda: cross_entropy(adapter.head, states, ids[0]))
    found["logits, by pieces"] += kept(lambda: F.cross_entropy(adapter.head(some).float(), ids[0, :ROWS]))
    return found


def step_bytes(tuner: Tuner, case: Case, images: int) -> int:
    """Peak of a step with checkpointing, beside the states."""
    learning = [parameter for parameter in tuner.step.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.grad = torch.zeros_like(parameter)
    states = [*tuner.step.parameters(), *tuner.step.buffers(), *(parameter.grad for parameter in learning)]
    with checkpointed(tuner.adapter.model), Peak(states) as peak:
        take_step(tuner.adapter, case, images)
    return peak.most


def take_step(adapter: Adapter, case: Case, images: int) -> None:
    """What is large of a joint step: encoder, decoder, a sequence that reads the image, one that draws it, backward."""
    pixels, _, ids = _inputs(adapter, case, images)
    features = adapter.features(pixels).float()
    loss = (adapter.decode(features).float() - pixels.float()).square().mean()
    if not adapter.shared:
        loss = loss + adapter.model.model.vision_model(pixels).last_hidden_state.sum()
    for _ in range(2):
        loss = loss + cross_entropy(adapter.head, _hidden(adapter, ids).flatten(0, 1), ids.flatten())
    loss.backward()


def _inputs(adapter: Adapter, case: Case, images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (n, 3, H, W), vectors of their codes, ids (n, L)."""
    kind = {"dtype": adapter.model.dtype, "device": adapter.device}
    pixels = torch.zeros(images, 3, case.side, case.side, **kind)
    vectors = torch.zeros(images, case.tokens, case.tokens, adapter.codebook().shape[1], **kind).requires_grad_()
    return pixels, vectors, torch.zeros(images, case.columns + TEXT, dtype=torch.long, device=adapter.device)


def _hidden(adapter: Adapter, ids: Tensor) -> Tensor:
    return adapter.hidden({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


@contextmanager
def checkpointed(model: Any) -> Iterator[None]:
    """Layers of the language model keep their inputs, and are made again in backward."""
    model.activation_checkpointing_enable({"use_reentrant": False})
    yield
    model.activation_checkpointing_disable()


def saved_bytes(work: Callable[[], Any], module: nn.Module) -> int:
    """Bytes of the storages that autograd saves while `work` runs, each once, apart from the module's own."""
    own = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no later one has its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(storage.nbytes() for storage in kept.values())


class Peak(TorchDispatchMode):
    """The bytes of storages that operators make while it is entered: `now` alive, `most` at once. held: not counted."""

    def __init__(self, held: list[Tensor]):
        super().__init__()
        self.now = self.most = 0
        self._alive: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in held}

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        made = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self._alive:
            return

        def gone(_: Any) -> None:
            del self._alive[address]
            self.now -= size

        self._alive[address] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


def images_that_fit(card: float, fixed: float, image: float) -> int:
    """How many images' activations a card of some GiB takes beside what is there for any number of them."""
    return max(0, int(((1 - RESERVE) * card - fixed) // image))


def _fitting(states: dict[str, int], one: int, two: int) -> Iterator[Row]:
    """one, two: peaks of steps of so many images; what they have in common are gradients in transit: autograd
    holds those of the first sequence until the second has added its own."""
    image, common = two - one, 2 * one - two
    sharded = sum(states[name] for name in ("frozen", "trained", "gradients", "moments"))
    for cards, held in ((1, sharded + states["copies"]), (SHARDS, sharded / SHARDS + states["gathered"])):
        fixed = held + common + _information_bytes()
        row: Row = {"cards": cards, "states": held / GIB, "in transit": common / GIB, "an image": image / GIB}
        yield row | {f"{card} GB": images_that_fit(card, fixed / GIB, image / GIB) for card in CARDS}


def _information_bytes() -> float:
    """The most that the chunked cost and the most that the look-up of `benchmarks chunked` took, together."""
    tables = json.loads((RESULTS / "chunked.json").read_text())["tables"].values()
    rows = [row for rows in tables for row in rows if row["sizes of"] in SIZES]
    return 2**20 * sum(max(row["peak_MiB"] for row in rows if row["form"] == form) for form in INFORMATION)


def _layers(adapter: Adapter) -> list[nn.Module]:
    """The language model's layers, which checkpointing makes again and FSDP2 shards one by one."""
    named = adapter.model.named_modules()
    found = [(name, module) for name, module in named if isinstance(module, GradientCheckpointingLayer)]
    return [module for name, module in found if re.fullmatch(adapter.lm_layers, f"{name}.self_attn.q_proj")]


def _bytes(tensors: list[Any]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _in_gib(found: dict[str, int]) -> Row:
    return {name: value / GIB for name, value in found.items()}
