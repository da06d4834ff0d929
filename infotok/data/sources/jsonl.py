"""Images and texts listed in a file of JSON lines, or in one JSON array, as LLaVA's are.

Each line is an object with `image`, a path inside the folder, and any of

    caption, captions          a text; several
    question, answer           one question
    questions                  [{"question", "answer", "family"}, ...]; family is optional, for scores apart
    conversations              LLaVA's [{"from": "human", "value"}, {"from": "gpt", "value"}, ...]
    split                      train, validation or test
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from infotok.data.arrow import Split
from infotok.data.images import Unreadable
from infotok.data.intake import SPLITS, Example, inside, intake, split_name
from infotok.data.options import OpenOptions
from infotok.data.rejects import Rejects
from infotok.errors import InfotokError

METADATA = {"has_objects": False}


class Options(OpenOptions):
    """file: of the JSON lines, inside the folder that `path` names."""

    source: Literal["jsonl"] = "jsonl"
    file: str = "data.jsonl"


def prepare(options: Options, rejects: Rejects, found: dict) -> Iterator[tuple[str, Split]]:
    """Parts of splits of all lines that can be used."""
    root = Path(options.path)
    path = root / options.file
    if not path.is_file():
        raise InfotokError(f"{path}: is missing; data.path names the folder, data.file the JSON lines in it")
    given = {split_name(entry.get("split")) for _, entry in _entries(path) if isinstance(entry, dict)} & set(SPLITS)
    yield from intake(_examples(path, root, rejects), options, given, rejects, found)


def _entries(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, what it holds), an exception where it cannot be read; of an array the entry's number."""
    with open(path, "rb") as file:
        if file.read(64).lstrip().startswith(b"["):
            yield from _array(path)
            return
        file.seek(0)
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except UnicodeDecodeError:
                    yield number, ValueError("is not UTF-8")
                except (ValueError, RecursionError) as error:
                    yield number, ValueError(f"is not JSON ({getattr(error, 'msg', 'nested too deep')})")


def _array(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        yield from enumerate(json.loads(path.read_text(encoding="utf-8-sig")), 1)
    except UnicodeDecodeError:
        raise InfotokError(f"{path}: is not UTF-8; write it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise InfotokError(f"{path}:{line}: is not JSON ({error}); write one object a line") from None


def _examples(path: Path, root: Path, rejects: Rejects) -> Iterator[Example]:
    for number, entry in _entries(path):
        where = f"{path.relative_to(root).as_posix()}:{number}"
        if isinstance(entry, ValueError):
            rejects.add(where, "line", str(entry))
        elif not isinstance(entry, dict):
            rejects.add(where, "line", "is no JSON object")
        elif entry.get("split") is not None and split_name(entry["split"]) is None:
            rejects.add(where, "line", f"names an unknown split (known: {', '.join(SPLITS)})")
        else:
            try:
                image = inside(root, entry.get("image"))
            except Unreadable as error:
                rejects.add(where, "image", str(error))
                continue
            yield Example(image, where, *texts(entry), entry.get("split"), entry["image"])


def texts(entry: dict) -> tuple[list, list[dict]]:
    """Captions and questions of an entry, as they stand."""
    captions = entry.get("captions", [])
    captions = list(captions) if isinstance(captions, list) else [captions]
    if "caption" in entry:
        captions.append(entry["caption"])
    questions = entry.get("questions", [])
    questions = list(questions) if isinstance(questions, list) else [questions]
    if "question" in entry or "answer" in entry:
        questions.append(entry)
    turns = entry.get("conversations", [])
    turns = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    for asked, said in zip(turns[::2], turns[1::2], strict=False):
        question = asked.get("value")
        question = question.replace("<image>", "") if isinstance(question, str) else question
        questions.append({"question": question, "answer": said.get("value")})
    return captions, [pair if isinstance(pair, dict) else {} for pair in questions]
