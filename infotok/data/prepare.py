"""From a source to a prepared data set: its splits, its text tokenizer, and a manifest that says what was kept."""

from __future__ import annotations

import importlib
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from infotok.data.arrow import Split, SplitWriter, read_split
from infotok.data.options import DataOptions
from infotok.data.rejects import Rejects
from infotok.data.text import train_text_tokenizer
from infotok.errors import InfotokError

NEEDED = ("train", "validation", "test")
MOST_REASONS = 20  # in the manifest, of which rejects.jsonl has all
TASKS = {"understanding": "questions", "generation": "captions"}  # what a task needs of every split


def prepare(options: DataOptions, folder: Path, root: Path = Path()) -> dict:
    """Prepare a data set into `folder`, which holds all of it or is not there.

    Args:
        root: the folder that `options.path` starts from.

    Returns:
        the manifest, which stands in `manifest.json` too.

    Raises:
        InfotokError: too much of the data is bad, or a split lacks images.
    """
    source = importlib.import_module(f"infotok.data.sources.{options.source}")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # Beside the folder, so that it can be read where there are too many.
    most, inside = getattr(options, "max_rejects", 0), getattr(options, "path", None) or ""
    rejects = Rejects(folder.with_name(folder.name + ".rejects.jsonl"), most, inside)
    found: dict = {}
    try:
        splits = _write(source.prepare(_from(root, options), rejects, found), partial)
        _check(splits, options, rejects, found)
        read = {name: read_split(partial, name) for name in splits}
        tasks, why_not = _tasks(read)
        for name, split in read.items():
            splits[name] |= _counts(split)
        text = train_text_tokenizer(_texts(read["train"]), options.vocabulary).to_str()
    except BaseException:
        rejects.close()
        if not rejects.count:
            rejects.path.unlink()
        shutil.rmtree(partial, ignore_errors=True)
        raise
    rejects.close()
    objects = source.METADATA["has_objects"]
    manifest = {
        "source": options.source,
        "config": options.model_dump(),
        "splits": splits,
        "tasks": tasks,
        "why_not": why_not,
        "judge": "objects" if objects else "matching" if "generation" in tasks else None,
        "rejects": {"count": rejects.count, "reasons": _most(rejects.reasons), "kept": _most(rejects.notes)},
        **found,
        **source.METADATA,
    }
    (partial / "text.json").write_text(text, encoding="utf-8")
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    rejects.path.replace(partial / "rejects.jsonl")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return manifest


def _most(reasons: Counter) -> dict[str, int]:
    return dict(reasons.most_common(MOST_REASONS))


def _write(parts: Iterable[tuple[str, Split]], folder: Path) -> dict[str, dict]:
    writers: dict[str, SplitWriter] = {}
    for name, part in parts:
        if name not in writers:
            writers[name] = SplitWriter(folder / f"{name}.arrow")
        writers[name].write(part)
    return {name: {"images": writer.images, "sha256": writer.close()} for name, writer in writers.items()}


def _from(root: Path, options: DataOptions) -> DataOptions:
    """The options for a process that works elsewhere; the manifest says what the params file says."""
    path = getattr(options, "path", None)
    update: dict[str, object] = {} if path is None else {"path": str(root / path)}
    update["outside"] = [str(root / folder) for folder in getattr(options, "outside", [])]
    return options.model_copy(update=update)


def _check(splits: dict[str, dict], options: DataOptions, rejects: Rejects, found: dict) -> None:
    """Raises InfotokError, with what was left out and why, where a split that is needed has no images."""
    lacking = next((name for name in NEEDED if name not in splits), None)
    if lacking is None:
        return
    if splits:
        kept = sum(about["images"] for about in splits.values())
        remedy = f"raise data.{lacking}, or " if lacking != "train" and hasattr(options, lacking) else ""
        problem = f"the data have no {lacking} images, of {kept} that can be used; {remedy}bring more images"
    else:
        problem = "no image can be used"
    if named := found.get("given_splits"):
        problem += f"; their splits became {', '.join(f'{name}: {split}' for name, split in named.items())}"
    for why, count in found.get("skipped", {}).items():
        problem += f"; {count} entries are left out, having {why}"
    raise InfotokError(f"{getattr(options, 'path', None) or options.source}: {problem}{rejects.summary()}")


def _counts(split: Split) -> dict[str, int]:
    captions = questions = without_captions = without_questions = 0
    for of_image, pairs in zip(split.captions, split.questions, strict=True):
        captions, questions = captions + len(of_image), questions + len(pairs)
        without_captions, without_questions = without_captions + (not of_image), without_questions + (not pairs)
    return {
        "captions": captions,
        "questions": questions,
        "images_without_captions": without_captions,
        "images_without_questions": without_questions,
    }


def _tasks(read: dict[str, Split]) -> tuple[list[str], dict[str, str]]:
    """The tasks that the data allow, and why not the others."""
    tasks, why_not = [], {}
    for task, column in TASKS.items():
        lacking = [name for name in NEEDED if not any(getattr(read[name], column))]
        if not lacking:
            tasks.append(task)
        elif len(lacking) == len(NEEDED):
            why_not[task] = f"the data have no {column}"
        else:
            why_not[task] = f"the {' and '.join(lacking)} images have no {column}"
    return tasks, why_not


def _texts(split: Split) -> Iterator[str]:
    """Captions, then questions and answers: what the text tokenizer learns from."""
    yield from itertools.chain.from_iterable(split.captions)
    for questions in split.questions:
        for pair in questions:
            yield from (pair["question"], pair["answer"])
