"""What a data set holds that cannot be used, told by file and line."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

from infotok.data.files import shown
from infotok.errors import InfotokError

SHOWN = 3  # rejects that the error names


class Rejects:
    """Counts bad input and lists it in `rejects.jsonl`, one object a line:

    {"file": "captions.jsonl", "line": 17, "what": "image", "reason": "is truncated", "kept": false}

    `line` is null for what is a whole file. What is kept is worth a look and does not count. root: the folder that
    these files lie in, as the params file names it.
    """

    def __init__(self, path: Path, most: int, root: str = ""):
        self.path, self.most, self.root = path, most, root
        self.count = 0
        self.reasons: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self._first: list[str] = []
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115

    def add(self, where: str, what: str, reason: str) -> None:
        """One thing that is left out.

        Args:
            where: `file` or `file:line`. what: image, line, caption, question, answer. reason: `is truncated`, and
            after a colon what is particular to this one.

        Raises:
            InfotokError: it is one more than are put up with.
        """
        where, reason = shown(where), shown(reason)
        self.count += 1
        self.reasons[f"{what} {reason.partition(':')[0]}"] += 1
        self._write(where, what, reason, kept=False)
        if len(self._first) < SHOWN:
            self._first.append(f"{os.path.join(self.root, where)}: {what} {reason}")
        if self.count > self.most:
            self._file.flush()
            raise InfotokError(f"{self._named()}: repair or remove them, or raise data.max_rejects ({self.most})")

    def summary(self) -> str:
        """What was left out, to end another message with; nothing where nothing was."""
        return f"; left out: {self._named()}" if self.count else ""

    def _named(self) -> str:
        more = "" if self.count <= SHOWN else f" and {self.count - SHOWN} more"
        return f"{'; '.join(self._first)}{more} ({self.path} lists them)"

    def note(self, where: str, what: str, reason: str) -> None:
        """One thing that is kept but worth a look."""
        where, reason = shown(where), shown(reason)
        self.notes[f"{what} {reason}"] += 1
        self._write(where, what, reason, kept=True)

    def _write(self, where: str, what: str, reason: str, kept: bool) -> None:
        file, _, line = where.rpartition(":")
        source = {"file": file, "line": int(line)} if file and line.isdigit() else {"file": where, "line": None}
        self._file.write(json.dumps(source | {"what": what, "reason": reason, "kept": kept}) + "\n")

    def close(self) -> None:
        self._file.close()
