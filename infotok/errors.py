"""The exceptions that users see: what was wrong, where, and what would be right."""

from __future__ import annotations

Key = tuple[str | int, ...]  # of a params file: ("grid", "tokens", 0)


def dotted(key: Key) -> str:
    """A key as messages write it: `grid.tokens[0]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")


class InfotokError(Exception):
    """Bad input. Its message is one line that names the file, line or key and the remedy."""


class SettingError(InfotokError):
    """A setting that cannot be used.

    key: where a params file has it, or in a section or among a function's arguments, the names of which are joined by
    dots; a tuple where names hold dots. problem: what is wrong with it, and the remedy. Who has read the file adds file
    and line.
    """

    def __init__(self, key: str | Key, problem: str):
        self.key: Key = tuple(key.split(".")) if isinstance(key, str) else key
        self.problem = problem
        super().__init__(f"{dotted(self.key)}: {problem}")

    def within(self, *section: str) -> SettingError:
        """The same of a key in a section."""
        return SettingError((*section, *self.key), self.problem)


class DamagedDataError(InfotokError):
    """Prepared data that are missing or damaged; they must be prepared again."""
