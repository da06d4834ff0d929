"""Memory of tuning models of real sizes, measured without a GPU: on PyTorch's fake tensors, which have shapes, types
and storages but no numbers. What it says does not depend on the machine.

States are what stays from step to step: weights, gradients and AdamW's moments, in the types that `Tuner` gives them.
Kept for backward, under bf16 autocast, is every storage that autograd saves, once, apart from parameters and buffers.
The peak of a step is the most that lives at once, forward and backward, beside the states. Attention is PyTorch's
operator for flash attention, so that queries, keys, values, outputs and a row statistic are kept, and no L * L matrix.
Workspaces of kernels and fragmentation come on top: `RESERVE` is left for them.
Shapes: n images of H x W pixels, L columns of a sequence.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import ChameleonConfig, Emu3Config, JanusConfig, LlamaConfig
from transformers.modeling_utils import AttentionInterface

from benchmarks.chunked import SIZES
from benchmarks.common import RESULTS, Result
from benchmarks.device import Row
from infotok.mllm.adapters import chameleon, emu3, janus
from infotok.mllm.loading import without_dropout
from infotok.mllm.losses import ROWS, cross_entropy
from infotok.mllm.memory import language_layers
from infotok.mllm.tuning import TuneConfig, Tuner, regularizer
from infotok.options import Precision
from infotok.training.runtime import autocast
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
FUSED = "fused_on_fake"
RECOMPUTED = ("encoder", "decoder", "LM")
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
    states: dict[tuple[str, str], Row] = {}
    kept: list[Row] = []
    fitting: list[Row] = []
    for name, case in (QUICK if quick else CASES).items():
        model = name.rsplit(" ", 3)[0]
        for setting in SETTINGS:
            plain, tuner = (make_tuner(case, setting, again) for again in (False, True))
            with without_numbers(plain, tuner):
                of_image = kept_bytes(plain, case), kept_bytes(tuner, case)
                of_model = state_bytes(tuner)
                of_steps = [step_bytes(tuner, case, images) for images in (1, 2)]
            states.setdefault((model, setting), {"model": model, "train": setting} | _in_gib(of_model))
            sizes: Row = {"sizes of": name, "train": setting, "L": case.columns + TEXT}
            again = {f"{part}, recomputed": of_image[1][part] for part in RECOMPUTED}
            kept.append(sizes | _in_gib(of_image[0] | again))
            fitting += [sizes | row for row in _fitting(of_model, *of_steps)]
    settings = {"reserve": RESERVE, "columns of text": TEXT, "shards": SHARDS, "rows of logits": ROWS}
    tables = {
        "States, GiB": list(states.values()),
        "Kept for backward, GiB for an image": kept,
        "GiB on a card with recompute, and images that it takes at once": fitting,
    }
    return Result(settings, tables)


@contextmanager
def without_numbers(*tuners: Tuner) -> Iterator[None]:
    """Fake tensors on a CPU, for the weights of tuners too, and types as on a GPU."""
    with FakeTensorMode(), gpu_types():
        for tuner in tuners:
            _take_off_meta(tuner)
        yield


@contextmanager
def gpu_types() -> Iterator[None]:
    """Norms and softmax compute in float32 under autocast, as on CUDA and not on CPUs."""

    def widened(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @wraps(function)
        def in_float32(*given: Any, **named: Any) -> Tensor:
            if not torch.is_autocast_enabled("cpu"):
                return function(*given, **named)
            with torch.autocast("cpu", enabled=False):
                return function(*(one.float() if isinstance(one, Tensor) else one for one in given), **named)

        return in_float32

    with ExitStack() as patched:
        for name in ("group_norm", "layer_norm", "softmax"):
            patched.enter_context(mock.patch.object(F, name, widened(getattr(F, name))))
        yield


def _fused(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    """What scaled_dot_product_attention calls on a GPU, in autocast's type. transformers makes no mask for an attention
    that it does not know."""
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (tensor.to(torch.bfloat16) for tensor in (query, key, value))
    causal = getattr(module, "is_causal", True)
    scale = given.get("scaling")
    made = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, scale=scale)[0]
    return made.transpose(1, 2).contiguous(), None


def make_tuner(case: Case, setting: Setting, recompute: bool, precision: Precision = "bf16") -> Tuner:
    """As `infotok.mllm` tunes this model, on the meta device."""
    AttentionInterface.register(FUSED, _fused)
    with torch.device("meta"):
        model = case.adapted.model_class(case.config())
        without_dropout(model)
        model.set_attn_implementation(FUSED)
        return tuner_of(case.adapted(model, None), case, setting, recompute, precision)


def _take_off_meta(tuner: Tuner) -> None:
    """Autocast changes the types of fake tensors on a CPU as of real ones, and those of tensors on meta it does not."""
    made: dict[int, nn.Parameter] = {}
    for module in tuner.step.modules():
        for name, old in module._parameters.items():
            if old is not None:
                new = nn.Parameter(torch.empty(old.shape, dtype=old.dtype), old.requires_grad)
                module._parameters[name] = made.setdefault(id(old), new)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype)
    for group in tuner.optimizer.param_groups:
        group["params"] = [made[id(old)] for old in group["params"]]


def tuner_of(adapter: Any, case: Case, setting: Setting, recompute: bool, precision: Precision) -> Tuner:
    learned: dict[str, Any] = {"train": setting, "tokenizer": SETTINGS[setting]}
    config = TuneConfig(**learned, recompute=recompute, precision=precision)
    bottleneck = regularizer(adapter, config, tokens=case.tokens**2, estimator="dib", beta=0.01)
    return Tuner(adapter, bottleneck, 1.0, config)


def state_bytes(tuner: Tuner) -> dict[str, int]:
    """Bytes of the states, once a step has been taken. `gathered` is what FSDP2 has whole on every card at once: all
    that is outside of the language model's layers, and two of these in bf16."""
    learning = [parameter for group in tuner.optimizer.param_groups for parameter in group["params"]]
    frozen = [parameter for parameter in tuner.step.parameters() if not parameter.requires_grad]
    for parameter in learning:
        parameter.grad = torch.zeros_like(parameter)
    tuner.optimizer.step()
    moments = [value for state in tuner.optimizer.state.values() for value in state.values() if value.ndim]
    layers = language_layers(tuner.adapter)
    of_layers = [parameter for layer in layers for parameter in layer.parameters()]
    outside = _bytes(list(tuner.step.parameters())) - _bytes(of_layers)
    return {
        "frozen": _bytes(frozen),
        "trained": _bytes(learning),
        "gradients": _bytes([parameter.grad for parameter in learning]),
        "moments": _bytes(moments),
        "gathered": outside + 2 * 2 * sum(parameter.numel() for parameter in of_layers) // len(layers),
    }


def kept_bytes(tuner: Tuner, case: Case) -> dict[str, int]:
    """Bytes kept for backward of one image of a case, of one sequence with it, and of the logits of that sequence.

    Two images keep twice of it, and once what any number of them needs, such as bf16 copies of weights.
    """
    adapter, model = tuner.adapter, tuner.adapter.model

    def kept(work: Callable[[Tensor, Tensor, Tensor], Any]) -> int:
        found = []
        for images in (1, 2):
            given = _inputs(adapter, case, images)
            with autocast(adapter.device, tuner.config.precision):
                found.append(saved_bytes(lambda given=given: work(*given), tuner.step))  # type: ignore[misc]
        return found[1] - found[0]

    found = {
        "encoder": kept(lambda pixels, vectors, ids: adapter.features(pixels)),
        "decoder": kept(lambda pixels, vectors, ids: adapter.decode(vectors)),
        "LM": kept(lambda pixels, vectors, ids: _hidden(adapter, ids)),
    }
    if not adapter.shared:  # it reads by a vision tower
        found["LM"] += kept(lambda pixels, vectors, ids: model.model.vision_model(pixels))

    def logits(loss: Callable[[Tensor, Tensor], Tensor]) -> int:
        def work(pixels: Tensor, vectors: Tensor, ids: Tensor) -> Tensor:
            width = model.get_output_embeddings().weight.shape[1]
            kind = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
            return loss(torch.zeros(ids.numel(), width, dtype=kind).requires_grad_(), ids.flatten())

        return kept(work)

    found["logits, whole"] = logits(lambda states, ids: F.cross_entropy(adapter.head(states).float(), ids))
    found["logits, by pieces"] = logits(lambda states, ids: cross_entropy(adapter.head, states, ids))
    return found


def step_bytes(tuner: Tuner, case: Case, images: int) -> tuple[int, int]:
    """Peaks of a step beside the states: until the sequences' gradients are there, and until the tokenizer's are.

    Each is a constant and a multiple of the images, and which is higher depends on how many there are.
    """
    learning = [parameter for parameter in tuner.step.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.grad = torch.zeros_like(parameter)
    states = [*tuner.step.parameters(), *tuner.step.buffers(), *(parameter.grad for parameter in learning)]
    with Peak(states) as peak:
        losses = step_losses(tuner, case, images)
        losses.pop().backward()
        of_sequences, peak.most = peak.most, peak.now
        losses.pop().backward()
    return of_sequences, peak.most


def step_losses(tuner: Tuner, case: Case, images: int) -> list[Tensor]:
    """What is large of a joint step: encoder and decoder; a sequence that reads the image, and one that draws it."""
    adapter = tuner.adapter
    pixels, _, ids = _inputs(adapter, case, images)
    with autocast(adapter.device, tuner.config.precision):
        features = adapter.features(pixels).float()
        error = (adapter.decode(features).float() - pixels.float()).square().mean()
        sequences = [cross_entropy(adapter.head, _hidden(adapter, ids).flatten(0, 1), ids.flatten()) for _ in range(2)]
        if not adapter.shared:
            sequences.append(adapter.model.model.vision_model(pixels).last_hidden_state.sum())
    return [error, torch.stack(sequences).sum()]


def _inputs(adapter: Any, case: Case, images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (n, 3, H, W), vectors of their codes, ids (n, L)."""
    pixels = torch.zeros(images, 3, case.side, case.side)
    vectors = torch.zeros(images, case.tokens, case.tokens, adapter.codebook().shape[1]).requires_grad_()
    return pixels, vectors, torch.zeros(images, case.columns + TEXT, dtype=torch.long)


def _hidden(adapter: Any, ids: Tensor) -> Tensor:
    return adapter.hidden({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


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


def images_that_fit(card: float, fixed: float, peaks: list[tuple[float, float]]) -> int:
    """How many images a card takes beside what is fixed, where every peak is a constant and so much an image; GiB."""
    return max(0, min(int(((1 - RESERVE) * card - fixed - constant) // image) for constant, image in peaks))


def _fitting(states: dict[str, int], one: tuple[int, int], two: tuple[int, int]) -> Iterator[Row]:
    """one, two: peaks of steps of so many images. What they have in common are copies of weights in bf16, and later, in
    their place, gradients in transit: autograd holds those of one sequence until the other has added its own."""
    peaks = [((2 * few - more) / GIB, (more - few) / GIB) for few, more in zip(one, two, strict=True)]
    own = sum(states[name] for name in ("frozen", "trained", "gradients", "moments"))
    for cards, held in ((1, own), (SHARDS, own / SHARDS + states["gathered"])):
        fixed = (held + _information_bytes()) / GIB
        row: Row = {"cards": cards, "states": held / GIB}
        row |= {"any step": max(constant for constant, _ in peaks), "an image": max(image for _, image in peaks)}
        yield row | {f"{card} GB": images_that_fit(card, fixed, peaks) for card in CARDS}


def _information_bytes() -> float:
    """The most that the chunked cost and the most that the look-up of `benchmarks chunked` took, together."""
    tables = json.loads((RESULTS / "chunked.json").read_text())["tables"].values()
    rows = [row for rows in tables for row in rows if row["sizes of"] in SIZES]
    return 2**20 * sum(max(row["peak_MiB"] for row in rows if row["form"] == form) for form in INFORMATION)


def _bytes(tensors: list[Any]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _in_gib(found: dict[str, int]) -> Row:
    return {name: value / GIB for name, value in found.items()}
