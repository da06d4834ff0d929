"""What training, drawing and answering need of a unified multimodal LLM, whatever its tokens and the order it draws in.

`Adapter` is what everything else knows. Kinds of models are its subclasses: `codes.CodeAdapter` has a codebook,
`causal.CausalAdapter` draws its codes left to right, `masked.MaskedAdapter` by unmasking them, and
`continuous.ContinuousAdapter` draws vectors. A model is a subclass of one of these.
Shapes: B images, H x W pixels, h x w tokens, K = h * w, D dimensions of a token, width of the language model, L columns
of a sequence, n of an answer.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from infotok.errors import InfotokError
from infotok.information.channel import Gaussian
from infotok.information.factored import Factored
from infotok.information.nearest import NearestCodes

if TYPE_CHECKING:
    from infotok.mllm.batches import Batch

Inputs = dict[str, Tensor]  # of a processor: `input_ids` and `attention_mask` (B, L), padded on the left
PADDING = -100  # of targets: a column that is not predicted


@dataclass(frozen=True)
class Encoded:
    """Images as tokens.

    channel: q(z|x) of K tokens. vectors: (B, h, w, D), the tokens that flow, with a gradient to the encoder. codes:
    (B, h, w), None where there is no codebook. codebook_error, commitment: mean squared distance of codes to their
    features, which moves codes, and of features to their codes, which moves features.
    """

    channel: NearestCodes | Gaussian
    vectors: Tensor
    codes: Tensor | None
    codebook_error: Tensor
    commitment: Tensor


@dataclass(frozen=True)
class Drawing:
    """What the language model makes of captions and the tokens of their images, which get no gradient from it.

    loss: of drawing, per token (scalar). text: (B, width), states where the caption has been read and no token.
    predicted: p(z | caption) of K tokens, each given the tokens that it is drawn after; None where the model has no
    density. weight: (B, K), how often each token's code length counts; None: once.
    """

    loss: Tensor
    text: Tensor
    predicted: Factored | Gaussian | None
    weight: Tensor | None = None


class Adapter(abc.ABC):
    """A model and its processor.

    model: holds all that is trained but `extra`. extra: what the model lacks and training adds, saved beside it; None
    for nothing. extra_is_new: whether it has never been trained. shared: whether the tokens that are drawn are the
    tokens that are read. has_density: whether there is a `Drawing.predicted`, which `ceb` needs. is_prior: whether
    that, without a caption, is a distribution of all tokens of an image. brings_code: whether its folder's own code is
    run. unused: settings that change nothing for it, and why. lm_layers: regular expression for the names of the
    language model's linear layers, and of no layer of the tokenizer.
    """

    shared = True
    brings_code = False
    unused: ClassVar[dict[str, str]] = {}
    has_density = True
    is_prior = False
    lm_layers: str

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model, processor
        self.extra: nn.Module | None = None
        self.extra_is_new = False
        self._grids: dict[tuple[int, int], tuple[int, int]] = {}

    # Files.

    @classmethod
    @abc.abstractmethod
    def open(cls, name: str, folder: Path, dtype: torch.dtype, decoder: str | None, trust: bool) -> Adapter:
        """The model of a name on the hub or of a folder.

        Args:
            folder: where its files lie.
            decoder: file of a decoder that the model lacks.
            trust: run code that comes with the model.

        Raises:
            SettingError: a permission is missing, or the decoder is none. Errors of transformers are told by `load`.
        """

    def save(self, folder: Path) -> None:
        """Write a folder that `open` reads; where transformers has the model, one that `from_pretrained` loads."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def to(self, device: torch.device) -> None:
        """Move all that is the model's, and what is saved beside it."""
        self.model.to(device)
        if self.extra is not None:
            self.extra.to(device)

    # The visual tokenizer.

    @property
    @abc.abstractmethod
    def tokenizer(self) -> Any:
        """Everything of it, but for `extra`; a part of the model."""

    @abc.abstractmethod
    def encoders(self) -> list[nn.Module]:
        """What makes features of pixels."""

    @abc.abstractmethod
    def features(self, pixels: Tensor) -> Tensor:
        """(B, h, w, D) before quantization or noise, of pixels (B, 3, H, W) as `ask` gives them."""

    @abc.abstractmethod
    def decode(self, vectors: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) of vectors (B, h, w, D), with gradient."""

    @abc.abstractmethod
    def tokens_of(self, pixels: Tensor) -> Tensor:
        """Tokens of pixels (B, 3, H, W) as the model uses them, in the form that `draw` returns."""

    @abc.abstractmethod
    def vectors_of(self, drawn: Tensor) -> Tensor:
        """(B, h, w, D), for `decode`, of what `draw` returns."""

    @torch.no_grad()
    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """h and w, the tokens of a column and of a row, of pixels (B, 3, H, W)."""
        size = (pixels.shape[-2], pixels.shape[-1])
        if size not in self._grids:
            h, w = self.features(pixels[:1]).shape[1:3]
            self._grids[size] = (h, w)
        return self._grids[size]

    @property
    def context(self) -> int | None:
        """Tokens of the longest sequence that the language model was made for; None where it does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @abc.abstractmethod
    def unit_pixels(self, pixels: Tensor) -> Tensor:
        """The scale that pixels (B, 3, H, W) are given in undone: between 0 and 1."""

    @abc.abstractmethod
    def limit(self, tokens: int) -> None:
        """Let `ask` make images of at most so many tokens.

        Raises:
            InfotokError: the model has no such images.
        """

    # The channel.

    @abc.abstractmethod
    def sizes(self) -> dict[str, int]:
        """`dimension`, and `codebook` where there is one, as `InformationBottleneck` takes them."""

    @abc.abstractmethod
    def calibrated(self, features: Iterable[Tensor], entropy_bits: float | None) -> float:
        """The variance of the channel to hold, from `features` of images, before anything is trained.

        entropy_bits: a token's mean H(q), in bits; None for a default of its own.
        """

    @abc.abstractmethod
    def encode(self, pixels: Tensor, variance: float, relaxation: float, generator: torch.Generator) -> Encoded:
        """Images as tokens.

        Args:
            variance: of the channel, as of `calibrated`.
            relaxation: temperature of the softmax over codes that gradients pass.
            generator: of what the channel draws.
        """

    # The language model.

    @abc.abstractmethod
    def drawing(self, prompt: Inputs, encoded: Encoded, generator: torch.Generator) -> Drawing:
        """How well the model draws images' tokens from prompts of `draw_prompt`.

        generator: of what a step of training draws, such as masks.
        """

    @abc.abstractmethod
    def understanding(self, batch: Batch, encoded: Encoded, lm_gradient: float, generator: torch.Generator) -> Tensor:
        """Mean cross-entropy of answers, per token (scalar), given their images' tokens, or their pixels where tokens
        are not shared.

        Args:
            lm_gradient: by how much its gradient reaches the encoder.
            generator: of what a step of training draws.
        """

    # Questions and captions.

    @abc.abstractmethod
    def ask(self, images: list[Any], questions: list[str]) -> Inputs:
        """PIL images and questions as inputs that end where the answer begins, with `pixel_values` (B, 3, H, W).

        Raises:
            InfotokError: an image is refused, or images do not become one size.
        """

    @abc.abstractmethod
    def answer_targets(self, answers: list[str]) -> Tensor:
        """Ids (B, n) of answers and the end, `PADDING` after it."""

    @abc.abstractmethod
    def answer(self, images: list[Any], questions: list[str], **sampling: Any) -> list[str]:
        """Texts, by the model's own way from the images themselves; greedy by default. `max_new_tokens` is the longest
        answer; sampling has what the kind of model takes."""

    @abc.abstractmethod
    def draw_prompt(self, captions: list[str], h: int, w: int) -> Inputs:
        """Inputs that end where the first token of an image begins; an empty caption is one that was dropped."""

    @abc.abstractmethod
    def sampling(self, temperature: float, guidance: float, top_k: int) -> dict[str, Any]:
        """What `draw` takes to sample so.

        temperature: 0 for the likeliest tokens. guidance: 1 for none. top_k: codes that may be sampled, 0 for all.

        Raises:
            SettingError: this kind of model does not sample so; of the keys `temperatures`, `guidance`, `top_k`.
        """

    @abc.abstractmethod
    def draw(self, captions: list[str], h: int, w: int, **sampling: Any) -> Tensor:
        """Tokens by the model's own way: codes (B, h, w), or vectors (B, h, w, D) where there is no codebook.

        Args:
            sampling: what the kind of model takes. Codes are the most likely ones by default, and have `guidance`, by
                default 1, which is none: classifier-free, away from what an empty caption gives, with logits
                g * with + (1 - g) * without the caption.
        """


def end_padded(rows: list[list[int]], device: torch.device) -> Tensor:
    """(B, n), `PADDING` after each row."""
    longest = max(map(len, rows))
    return torch.tensor([row + [PADDING] * (longest - len(row)) for row in rows], device=device)


def start_padded(rows: list[list[int]], device: torch.device) -> Inputs:
    """Ids of some length each as inputs, padded on the left."""
    longest = max(map(len, rows))
    ids = [[0] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def require_one_size(sizes: Iterable[tuple[int, ...]]) -> None:
    """Raises InfotokError where images of a batch have several sizes."""
    if len(set(sizes)) > 1:
        raise InfotokError(
            "images of a batch must have one size once the model's processor has resized them; batch those of one "
            "aspect ratio together, or crop them"
        )


def one_line(error: Exception) -> str:
    """The first line of what an error says, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
