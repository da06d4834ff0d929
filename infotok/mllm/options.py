"""Sections of a params file for pretrained models: which they are, and how their answers and drawings are scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import field_validator, model_validator

from infotok.errors import InfotokError
from infotok.options import Count, Natural, Place, Section, Seed
from infotok.tried import Guidance, Temperatures

FOLDERS = (".", "/")  # how the name of a folder begins; other names are the hub's


class ModelConfig(Section):
    """One pretrained model.

    name: on the Hugging Face hub, or a folder of `save_pretrained`, written with `./` or `/` in front. revision: of the
    hub's model, a commit or tag. decoder: file of a decoder that the model lacks. control: it draws with other tokens
    than it reads with, and is taken all the same. trust: run code that comes with the model.
    """

    name: Place
    revision: str | None = None
    decoder: Place | None = None
    control: bool = False
    trust: bool = False

    @field_validator("name")
    @classmethod
    def _folders_are_marked(cls, value: str) -> str:
        if not value.startswith(FOLDERS) and Path(value).is_dir():
            raise ValueError(f"is a folder here, and could be a name on the hub; write ./{value}")
        return value

    @model_validator(mode="after")
    def _folders_have_no_revisions(self) -> ModelConfig:
        if self.revision is not None and self.folder is not None:
            raise ValueError("has a revision, which a folder has not; leave `revision` out, or name a model on the hub")
        return self

    @property
    def folder(self) -> Path | None:
        """Where the model lies, None for one of the hub."""
        return Path(self.name) if self.name.startswith(FOLDERS) else None

    @property
    def kind(self) -> str:
        """What its configuration calls `model_type`, which names the adapter.

        Raises:
            InfotokError: there is no such model, or it does not say.
        """
        path = self._config_file()
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["model_type"])
        except (OSError, ValueError, KeyError, TypeError):
            raise InfotokError(
                f"{self.name}: config.json names no model_type; give a model that save_pretrained has written"
            ) from None

    def _config_file(self) -> Path:
        if self.folder is not None:
            if not self.folder.is_dir():
                raise InfotokError(
                    f"{self.name}: there is no such folder; give one that save_pretrained has written, or a name on "
                    "the Hugging Face hub"
                )
            if not (self.folder / "config.json").is_file():
                raise InfotokError(
                    f"{self.name}: holds no config.json; give a folder that save_pretrained has written, or a name "
                    "on the Hugging Face hub"
                )
            return self.folder / "config.json"
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import GatedRepoError, HFValidationError

        try:
            return Path(hf_hub_download(self.name, "config.json", revision=self.revision))
        except GatedRepoError:
            raise InfotokError(f"{self.name} is gated; ask for access on its page and run `hf auth login`") from None
        except (OSError, HFValidationError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InfotokError(
                f"{self.name} cannot be found on the Hugging Face hub ({said}); check the name and the network, or "
                "give a folder, written with ./ or / in front"
            ) from None


class AnswerConfig(Section):
    """How understanding is evaluated. answers: when an answer is right: `exact`, `lmms_eval` or `vqa` of
    `infotok.data.answers`. batch: questions that are answered at once. longest_answer: tokens of an answer, at most.
    images: of each split, at most, whose questions are asked."""

    answers: Literal["exact", "lmms_eval", "vqa"] = "exact"
    batch: Count = 16
    longest_answer: Count = 32
    images: Count = 1000


class RenderConfig(Section):
    """How generation is evaluated. prompts: captions of held-out images. images: per prompt. temperatures, guidance:
    what the validation captions choose among, per cell; temperature 1 and no guidance (1, the first) are always shown
    too. top_k: codes that may be sampled, 0 for all. batch: images that are drawn at once. seed: of prompts and
    sampling."""

    prompts: Count = 96
    images: Count = 4
    temperatures: Temperatures = [1.0, 0.6]
    guidance: Guidance = [1.0, 3.0]
    top_k: Natural = 0
    batch: Count = 16
    seed: Seed = 7
