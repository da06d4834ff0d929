"""Models here in lmms-eval, github.com/EvolvingLMMs-Lab/lmms-eval, which finds them by its entry point.

The arguments of a request are its text, its settings of generation or its continuation, what gives the images of a
document, and last the document's number, task and split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm
from transformers import GenerationConfig

from infotok.errors import InfotokError
from infotok.mllm.adapter import PADDING
from infotok.mllm.causal import CausalAdapter
from infotok.mllm.harness.questions import only_image, question_of
from infotok.mllm.loading import load

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LONGEST = 1024  # tokens of an answer, where a task does not say; as the models of lmms-eval have it
SAMPLED = ("do_sample", "temperature", "top_p", "top_k")  # settings of answers that are not greedy


def manifest() -> ModelManifest:
    """What the entry point gives."""
    from lmms_eval.models.registry_v2 import ModelManifest  # whose package loads entry points, this module's too

    return ModelManifest("infotok", simple_class_path=f"{__name__}.Infotok")


class Infotok(lmms):
    """A pretrained or tuned model, by its adapter.

    Args:
        pretrained: a name on the Hugging Face hub or a folder, as `load` takes it.
        dtype: of the weights: float32, bfloat16 or float16.
        batch_size: questions that are answered at once.
        device: such as cpu or cuda:1; otherwise the one that accelerate gives this process.
        trust: run code that comes with the model.
        max_batch_size: lmms-eval gives it to every model; for a search for the batch size, which is not made here.

    Raises:
        InfotokError: as of `load`, an unknown type, or no number for a batch.
    """

    def __init__(
        self,
        pretrained: str,
        dtype: str = "bfloat16",
        batch_size: int | str = 1,
        device: str | None = None,
        trust: bool = False,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        if dtype not in DTYPES:
            raise InfotokError(f"--model_args: dtype={dtype} is unknown; use one of {', '.join(DTYPES)}")
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise InfotokError(f"--batch_size: {batch_size} is no number of questions; give 1 or more")
        self.batch_size, self.accelerator = int(batch_size), Accelerator()
        self.device = torch.device(device) if device else self.accelerator.device
        self.adapter = load(pretrained, dtype=DTYPES[dtype], control=True, trust=trust)
        self.adapter.to(self.device)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """An answer to each request."""
        answers = [""] * len(requests)
        for batch in self._batches(requests):
            asked = [requests[index] for index in batch]
            said = self._answer(
                [self._image(request) for request in asked], [request.args[0] for request in asked], asked[0].args[1]
            )
            for index, answer in zip(batch, said, strict=True):
                answers[index] = answer
        return answers

    @torch.no_grad()
    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Of each request's continuation, the mean cross-entropy of a token in nats, and whether every token of it is
        the most likely one, by the model's own forward. lmms-eval 0.7 chooses the least value, as its models return
        losses where its interface says log-probabilities; it makes a text of a bare pair, not of a wrapped one.

        Raises:
            InfotokError: the model is none whose `generate` writes token by token.
        """
        if not isinstance(self.adapter, CausalAdapter):
            raise InfotokError("this model gives texts no likelihood in one forward; choose tasks that it answers")
        adapter, found = self.adapter, [GenerationResult("")] * len(requests)
        for batch in self._batches(requests):
            asked = [requests[index] for index in batch]
            questions = [question_of(adapter, request.args[0]) for request in asked]
            inputs = adapter.ask([self._image(request) for request in asked], questions)
            targets = adapter.answer_targets([self._continuation(request) for request in asked])
            targets[torch.arange(len(asked)), (targets != PADDING).sum(1) - 1] = PADDING  # the end is not asked for
            present = targets != PADDING
            ids = targets.where(present, 0)
            inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], 1)
            inputs["attention_mask"] = torch.cat([inputs["attention_mask"], present.long()], 1)
            inputs["pixel_values"] = inputs["pixel_values"].to(adapter.model.dtype)
            logits = adapter.model(**inputs, logits_to_keep=ids.shape[1] + 1).logits[:, :-1].float()
            losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=PADDING, reduction="none").sum(1)
            means = losses / present.sum(1).clamp(min=1)
            likeliest = ((logits.argmax(-1) == ids) | ~present).all(1)
            for index, *pair in zip(batch, means.tolist(), likeliest.tolist(), strict=True):
                found[index] = GenerationResult(tuple(pair))
        return found

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """The answers of all rounds of each request. A task makes the next round of the answers so far."""
        found = []
        for request in tqdm(requests, desc="Rounds", disable=self.rank != 0):
            text, settings, images_of, next_round = request.args[:4]
            document, info, ended = self._document(request), None, False
            images, said = images_of(document), list[str]()
            while not ended:
                said = [*said, *self._answer([only_image(images or [], _name(request))], [text], settings)]
                images, text, ended, said, info = next_round(
                    document, previous_output=said, round_idx=len(said), previous_round_info=info
                )
            found.append(list(said))
        return found

    def _answer(self, images: list[Image.Image], texts: list[str], settings: dict) -> list[str]:
        stops = settings.get("until") or []
        questions = [question_of(self.adapter, text) for text in texts]
        said = self.adapter.answer(images, questions, **sampling_of(settings))
        return [before(text, [stops] if isinstance(stops, str) else stops) for text in said]

    def _batches(self, requests: Sequence[Instance]) -> Iterator[list[int]]:
        """Indices of requests whose images have one size and whose settings are the same. All images are looked at
        first, so that a task which does not suit fails before the hours that it takes."""
        groups: dict[tuple, list[int]] = {}
        for index, request in enumerate(requests):
            settings = repr(request.args[1]) if isinstance(request.args[1], dict) else ""
            groups.setdefault((self._image(request).size, settings), []).append(index)
        with tqdm(total=len(requests), desc="Questions", disable=self.rank != 0) as bar:
            for group in groups.values():
                for start in range(0, len(group), self.batch_size):
                    yield (batch := group[start : start + self.batch_size])
                    bar.update(len(batch))

    def _document(self, request: Instance) -> Any:
        *_, document, task, split = request.args
        return self.task_dict[task][split][document]

    def _image(self, request: Instance) -> Image.Image:
        images = request.args[2](self._document(request)) if len(request.args) > 2 else []
        return only_image(images, _name(request))

    def _continuation(self, request: Instance) -> str:
        given = request.args[1]
        return given if isinstance(given, str) else given(self._document(request))


def sampling_of(settings: dict) -> dict[str, Any]:
    """What `Adapter.answer` takes, of a task's settings: greedy, unless they have a temperature above 0 or ask to
    sample. What transformers' `generate` does not know, such as sizes of images, is left out, as is what says nothing.
    """
    temperature = settings.get("temperature", 1.0 if settings.get("do_sample") else 0.0)
    chosen = {"max_new_tokens": LONGEST} | settings
    if sampled := temperature > 0 and settings.get("do_sample", True):
        chosen |= {"do_sample": True, "temperature": temperature}
    silent = {"num_beams": 1} if sampled else {"num_beams": 1} | {name: chosen.get(name) for name in SAMPLED}
    known = GenerationConfig().to_dict()
    return {name: value for name, value in chosen.items() if name in known and (name, value) not in silent.items()}


def before(text: str, stops: Sequence[str]) -> str:
    """A text up to where the first of the stops begins."""
    for stop in filter(None, stops):
        text = text.partition(stop)[0]
    return text.strip()


def _name(request: Instance) -> str:
    return f"document {request.doc_id} of {request.task_name}"
