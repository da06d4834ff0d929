"""The `data` section of a params file: what every source shares, and what sources that read files do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from infotok.options import BelowOne, Count, Natural, Place, Section, Seed


class DataOptions(Section):
    """A source's `Options` derive from this and narrow `source` to their own name."""

    source: str
    seed: Seed = 0
    image_size: Annotated[int, Field(ge=16, multiple_of=8)] = 32
    vocabulary: Annotated[int, Field(ge=300)] = 512  # of the text tokenizer


class MadeOptions(DataOptions):
    """Of sources that make their images, as many of each split as these say."""

    train: Count = 16000
    validation: Count = 1000
    test: Count = 1000
    novel: Count = 1000


class FileOptions(DataOptions):
    """What sources that read files share.

    path: what the source reads, a file or folder, relative to the repository's root. fit: `pad` keeps all of an image
    that is not square, beside `background`, `crop` its middle; `stretch` makes it square. background: behind what is
    transparent too. validation: share of the images, by content, where the data name no such split; the same of `test`
    where a source leaves that open; another seed, other shares. max_rejects: how many bad images and texts are put up
    with. splits: where a split of the data goes whose name is none of ours, such as {test_hard: test}. outside: folders
    outside of `path` that links and names in it may lead to.
    """

    path: Place
    fit: Literal["pad", "crop", "stretch"] = "pad"
    background: str = "white"
    validation: BelowOne = 0.1
    max_rejects: Natural = 0
    splits: dict[str, Literal["train", "validation", "test", "skip"]] = Field(default_factory=dict)
    outside: list[str] = Field(default_factory=list)

    def folders(self) -> tuple[Path, ...]:
        """Of `outside`."""
        return tuple(Path(folder) for folder in self.outside)

    def shares(self, given: set[str]) -> dict[str, float]:
        """Shares of the splits that the data do not name."""
        open_splits = [name for name in ("validation", "test") if name not in given and hasattr(self, name)]
        return {name: getattr(self, name) for name in open_splits}

    @field_validator("background")
    @classmethod
    def _is_a_color(cls, value: str) -> str:
        from infotok.data.images import parse_color

        parse_color(value)
        return value


class OpenOptions(FileOptions):
    """Of sources whose data may name no test split."""

    test: BelowOne = 0.1
