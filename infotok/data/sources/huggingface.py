"""A data set of Hugging Face's `datasets`: by name from the hub, or from the disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from infotok.data.arrow import Split
from infotok.data.entries import KEYS, texts
from infotok.data.files import WORDS, image_of, picture
from infotok.data.images import Unreadable
from infotok.data.intake import SKIP, Example, SplitNames, intake
from infotok.data.options import OpenOptions
from infotok.data.rejects import Rejects
from infotok.errors import InfotokError
from infotok.options import Section

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

METADATA = {"has_objects": False}


class Columns(Section):
    """Which column holds what, as `infotok.data.entries` reads it; label: a class, that becomes caption and question.
    Where no column of texts is named, those count that bear the names of these; `image` may be `images` too, of one
    image each."""

    image: str | None = None
    caption: str | None = None
    captions: str | None = None
    question: str | None = None
    answer: str | None = None
    answers: str | None = None
    questions: str | None = None
    conversations: str | None = None
    messages: str | None = None
    texts: str | None = None
    label: str | None = None


class Options(OpenOptions):
    """name: on the hub; in its place, `path` is what `save_to_disk` wrote, or a folder that `load_dataset` reads
    (Parquet, CSV, images). configuration: of the hub's data sets that have several. label_caption, label_question: as
    of `imagefolder`."""

    source: Literal["huggingface"] = "huggingface"
    path: str | None = None  # type: ignore[assignment]  # a data set of the hub has none
    name: str | None = None
    configuration: str | None = None
    columns: Columns = Columns()
    label_caption: str = "a picture of {class}"
    label_question: str = "what is this?"


def prepare(options: Options, rejects: Rejects, found: dict) -> Iterator[tuple[str, Split]]:
    """Parts of splits of all rows that can be used.

    Raises:
        InfotokError: the data cannot be loaded, lack a column that the options name, or have a split of unknown name.
    """
    if bool(options.name) == bool(options.path):
        raise InfotokError("data.path: give either data.path, a folder, or data.name, a name on the hub, and not both")
    loaded, names = _load(options), SplitNames(options)
    for name in loaded:
        if names(name) is None:
            raise InfotokError(f"{_what(options)}: {names.unknown(name)}")
    found |= {"given_splits": names.became, "skipped": {}}
    for name in [name for name, split in names.became.items() if split == SKIP]:
        found["skipped"][f"a split that is skipped: {name}"] = len(loaded.pop(name))
    # A lone training split, which `load_dataset` names so whatever it is, leaves all splits to the content.
    given = set(names.became.values()) - {SKIP}
    yield from intake(_examples(options, loaded, names, rejects, found["skipped"]), options, given, rejects, found)


def _what(options: Options) -> str:
    return options.name or options.path or ""


def _load(options: Options) -> DatasetDict:
    import datasets

    saved = [Path(options.path) / name for name in ("dataset_dict.json", "state.json")] if options.path else []
    try:
        if any(file.exists() for file in saved):
            loaded = datasets.load_from_disk(options.path)
        else:
            loaded = datasets.load_dataset(_what(options), options.configuration)
    except Exception as error:  # of many kinds: the hub's, the network's, a file format's
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        key = "data.name" if options.name else "data.path"
        raise InfotokError(f"{_what(options)}: cannot be loaded by `datasets` ({reason}); see {key}") from None
    return datasets.DatasetDict({"train": loaded}) if isinstance(loaded, datasets.Dataset) else loaded


def _columns(options: Options, name: str, there: list[str]) -> dict[str, str]:
    """Our name of every column that is read -> theirs."""
    columns = {ours: theirs for ours, theirs in options.columns.model_dump().items() if theirs}
    for ours, theirs in columns.items():
        if theirs not in there:
            raise InfotokError(
                f"{_what(options)}: '{name}' has no column '{theirs}'; set data.columns.{ours} to one of "
                f"{', '.join(there)}"
            )
    image = columns.get("image") or next((word for word in WORDS if word in there), None)
    if image is None:
        raise InfotokError(
            f"{_what(options)}: '{name}' has no column 'image'; set data.columns.image to one of {', '.join(there)}"
        )
    if set(columns) <= {"image"}:
        columns |= {key: key for key in KEYS if key in there}
    if set(columns) <= {"image"}:
        raise InfotokError(
            f"{_what(options)}: no column of captions or questions is named; set data.columns.caption, "
            f"captions, question and answer, questions, conversations or label to one of {', '.join(there)}"
        )
    return columns | {"image": image}


def _examples(
    options: Options, loaded: DatasetDict, names: SplitNames, rejects: Rejects, skipped: dict
) -> Iterator[Example]:
    root, outside = Path(options.path) if options.path else None, options.folders()
    for name, rows in loaded.items():
        columns = _columns(options, name, rows.column_names)
        rows = _undecoded(rows, columns["image"])
        _note_lone_classes(rows, columns.get("label"), name, rejects)
        classes = rows.features.get(columns.get("label"))
        for number, row in enumerate(rows):
            where = f"{name}:{number}"
            entry = {ours: row[theirs] for ours, theirs in columns.items()}
            try:
                value = image_of(entry)
                if value is None:
                    skipped["no image"] = skipped.get("no image", 0) + 1
                    continue
                image = picture(value, root, outside)
            except Unreadable as error:
                rejects.add(where, "image", str(error))
                continue
            captions, questions, wrong = texts(entry)
            if "label" in entry:
                label = _label(entry["label"], classes)
                captions.append(label and options.label_caption.replace("{class}", label))
                questions.append({"question": options.label_question, "answer": label, "family": "class"})
            yield Example(image, where, captions, questions, wrong, names(name))


def _undecoded(rows: Dataset, column: str) -> Dataset:
    """The rows with the files of their images as they are, so that a broken one stops nothing."""
    import datasets

    kind = rows.features[column]
    if isinstance(kind, datasets.Image):
        return rows.cast_column(column, datasets.Image(decode=False))
    inner = getattr(kind, "feature", kind[0] if isinstance(kind, list) and kind else None)
    if isinstance(inner, datasets.Image):
        return rows.cast_column(column, datasets.List(datasets.Image(decode=False)))
    return rows


def _note_lone_classes(rows: Dataset, label: str | None, name: str, rejects: Rejects) -> None:
    if label:
        counts = Counter(rows.with_format("arrow")[label].to_pylist()) if len(rows) else Counter()
        for value in sorted(str(value) for value, count in counts.items() if count == 1):
            rejects.note(name, "class", f"{value} has one image")


def _label(value: Any, feature: Any) -> str | None:
    """The name of a class, None where a row has none."""
    if value is None or value == -1:
        return None
    return str(feature.int2str(value) if hasattr(feature, "int2str") else value).replace("_", " ")
