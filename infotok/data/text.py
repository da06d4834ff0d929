"""Text to token ids: a small byte-level BPE of our own, or the tokenizer that a pretrained backbone brings."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from infotok.errors import DamagedDataError, InfotokError

PAD, END = "<pad>", "<end>"


def train_text_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Train a byte-level BPE on the texts of the training split."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class TextCodec:
    """Encodes texts as ids; every distinct text is tokenized once. No text can write the marks `pad` and `end`: those
    letters are a text like any other."""

    def __init__(self, tokenizer: Tokenizer, pad: int, end: int):
        self.tokenizer, self.pad, self.end = tokenizer, pad, end
        tokenizer.encode_special_tokens = True  # as texts, that is; the file of a tokenizer does not keep this
        self._known: dict[str, list[int]] = {}

    @classmethod
    def from_file(cls, path: Path) -> TextCodec:
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception for a missing and for a damaged file
            raise DamagedDataError(f"{path}: cannot be read as a text tokenizer ({error})") from None
        pad, end = tokenizer.token_to_id(PAD), tokenizer.token_to_id(END)
        if pad is None or end is None:
            raise DamagedDataError(f"{path}: is a text tokenizer without the marks {PAD} and {END}")
        return cls(tokenizer, pad, end)

    @classmethod
    def from_saved(cls, path: Path, remedy: str) -> TextCodec:
        """Read the JSON {"marks": {"pad", "end"}, "tokenizer": text} that stands beside a trained model.

        Raises:
            InfotokError: it is missing or damaged; `remedy` says what would help.
        """
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            return cls(Tokenizer.from_str(saved["tokenizer"]), saved["marks"]["pad"], saved["marks"]["end"])
        except Exception as error:  # tokenizers raises bare Exception
            raise InfotokError(f"{path}: cannot be read ({error}); {remedy}") from None

    @property
    def vocabulary(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._encoded(text)
        return self._known[text]

    def _encoded(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        for mark in (self.pad, self.end):
            word = self.tokenizer.id_to_token(mark) or ""
            if len(word) > 1 and mark in ids and word in text:  # a vocabulary in which it is a word too, such as T5's
                before, _, after = text.partition(word)
                return [*self._encoded(before + word[:1]), *self._encoded(word[1:] + after)]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first end token."""
        kept = []
        for token in ids:
            if token == self.end:
                break
            if token != self.pad:
                kept.append(int(token))
        return self.tokenizer.decode(kept).strip()
