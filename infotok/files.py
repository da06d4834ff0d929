"""Files that are whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name to write to; the file gets the name `path` at the end and is gone after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:  # a full disk does not say of which file
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed left under temporary names; for whoever alone writes into the folder."""
    for left in folder.rglob("*.[0-9]*.tmp"):
        left.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: readers never see half of it."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
