"""A data set of Hugging Face's `datasets`: by name from the hub, or from the disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from infotok.data.arrow import Split
from infotok.data.images import Unreadable
from infotok.data.intake import Example, inside, intake, split_name
from infotok.data.options import OpenOptions
from infotok.data.rejects import Rejects
from infotok.data.sources.jsonl import texts
from infotok.errors import InfotokError
from infotok.options import Section

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

METADATA = {"has_objects": False}


class Columns(Section):
    """Which column holds what; all but the image may be left out. As in `infotok.data.sources.jsonl`; label: a class,
    that becomes caption and question."""

    image: str = "image"
    caption: str | None = None
    captions: str | None = None
    question: str | None = None
    answer: str | None = None
    questions: str | None = None
    conversations: str | None = None
    label: str | None = None


class Options(OpenOptions):
    """name: on the hub; in its place, `path` is what `save_to_disk` wrote, or a folder that `load_dataset` reads
    (Parquet, CSV, images). configuration: of the hub's data sets that have several. label_caption, label_question: as
    of `imagefolder`."""

    source: Literal["huggingface"] = "huggingface"
    path: str | None = None
    name: str | None = None
    configuration: str | None = None
    columns: Columns = Columns()
    label_caption: str = "a picture of {class}"
    label_question: str = "what is this?"


def prepare(options: Options, rejects: Rejects, found: dict) -> Iterator[tuple[str, Split]]:
    """Parts of splits of all rows that can be used.

    Raises:
        InfotokError: the data cannot be loaded, or lack a column that the options name.
    """
    if bool(options.name) == bool(options.path):
        raise InfotokError("data.path: name either data.path, what `save_to_disk` wrote, or data.name, on the hub")
    place = None if options.name else Path(options.path)
    loaded = _load(options, place)
    given = {split_name(name) for name in loaded} - {None}
    # A lone training split, which `load_dataset` names so whatever it is, leaves all splits to the content.
    yield from intake(_examples(options, place, loaded, rejects), options, given, rejects, found)


def _load(options: Options, place: Path | None) -> DatasetDict:
    import datasets

    what = options.name or str(place)
    try:
        saved = ("dataset_dict.json", "state.json")
        if place is not None and any((place / name).exists() for name in saved):
            loaded = datasets.load_from_disk(str(place))
        else:
            loaded = datasets.load_dataset(what, options.configuration)
    except Exception as error:  # of many kinds: the hub's, the network's, a file format's
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InfotokError(f"{what}: cannot be loaded by `datasets` ({reason}); see data.name and data.path") from None
    return datasets.DatasetDict({"train": loaded}) if isinstance(loaded, datasets.Dataset) else loaded


def _examples(options: Options, place: Path | None, loaded: DatasetDict, rejects: Rejects) -> Iterator[Example]:
    import datasets

    columns = {ours: theirs for ours, theirs in options.columns.model_dump().items() if theirs}
    for name, rows in loaded.items():
        for ours, theirs in columns.items():
            if theirs not in rows.column_names:
                raise InfotokError(
                    f"{options.name or place}: '{name}' has no column '{theirs}'; set data.columns.{ours} to one of "
                    f"{', '.join(rows.column_names)}"
                )
        if len(columns) == 1:
            raise InfotokError(
                f"{options.name or place}: no column of captions or questions is named; set data.columns.caption, "
                f"captions, question and answer, questions, conversations or label to one of "
                f"{', '.join(rows.column_names)}"
            )
        if isinstance(rows.features[columns["image"]], datasets.Image):
            rows = rows.cast_column(columns["image"], datasets.Image(decode=False))  # a broken image stops nothing
        _note_lone_classes(rows, columns.get("label"), name, rejects)
        classes = rows.features.get(columns.get("label"))
        for number, row in enumerate(rows):
            where = f"{name}:{number}"
            entry = {ours: row[theirs] for ours, theirs in columns.items()}
            try:
                image = _image(entry.pop("image"), place)
            except Unreadable as error:
                rejects.add(where, "image", str(error))
                continue
            captions, questions = texts(entry)
            if "label" in entry:
                label = _label(entry["label"], classes)
                captions.append(label and options.label_caption.replace("{class}", label))
                questions.append({"question": options.label_question, "answer": label, "family": "class"})
            yield Example(image, where, captions, questions, split_name(name))


def _note_lone_classes(rows: Dataset, label: str | None, name: str, rejects: Rejects) -> None:
    if label:
        counts = Counter(rows.with_format("arrow")[label].to_pylist()) if len(rows) else Counter()
        for value in sorted(str(value) for value, count in counts.items() if count == 1):
            rejects.note(name, "class", f"{value} has one image")


def _image(value: Any, root: Path | None) -> Path | bytes | Any:
    """What `open_image` takes of a column's value: a file's bytes or its path, which may not leave the folder `root`;
    None: the files are where `datasets` put them."""
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            return value["bytes"]
        value = value.get("path")
    if root is None and isinstance(value, str) and value:
        return Path(value)
    return inside(root or Path(), value) if isinstance(value, (str, type(None))) else value


def _label(value: Any, feature: Any) -> str | None:
    """The name of a class, None where a row has none."""
    if value is None or value == -1:
        return None
    return str(feature.int2str(value) if hasattr(feature, "int2str") else value).replace("_", " ")
