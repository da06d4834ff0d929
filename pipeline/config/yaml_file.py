"""YAML as DVC reads it, with the lines where its keys stand."""

from __future__ import annotations

from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from infotok.errors import InfotokError

MERGE = "tag:yaml.org,2002:merge"


HINTS = {
    "'\\t'": "a line begins with a tab; indent with spaces",
    "another document": "a second document begins here; remove the line `---`",
    "for the tag": "tags such as `!name` mean nothing here; remove them",
    "found duplicate key": "a key stands twice; keep one of the two",
    "unhashable type": "a list or section stands where a key belongs",
}


def _told(problem: str) -> str:
    """The parser's words, or plainer ones."""
    first = problem.splitlines()[0]
    return next((hint for part, hint in HINTS.items() if part in first), first)


class YamlFile:
    """A file's content as plain dicts, lists and scalars, and the line of every key and entry.

    Read as YAML 1.2, as DVC does: `1e-3` is a number, `010` is ten, `yes` is a text, a key may stand once, `<<` merges,
    and a tag that names a class is an error.
    """

    def __init__(self, path: Path):
        """Raises InfotokError, with file and line, where it cannot be read."""
        self.path, self.lines = path, {(): 1}
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise InfotokError(f"{path}: cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise InfotokError(f"{path}: is not UTF-8 text; write it as UTF-8 YAML") from None
        try:
            self.content = YAML(typ="safe", pure=True).load(text)
            self._note(YAML(typ="safe", pure=True).compose(text), (), ())
        except YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            problem = (error.problem if isinstance(error, MarkedYAMLError) else None) or str(error)
            line = mark.line + 1 if mark else 1
            raise InfotokError(f"{path}:{line}: not valid YAML ({_told(problem)})") from None
        except (ValueError, TypeError) as error:  # a date that is none; a key that is a list
            raise InfotokError(f"{path}:1: not valid YAML ({_told(str(error))})") from None

    def _note(self, node: Node | None, path: tuple, around: tuple[Node, ...]) -> None:
        """The lines of what a node holds. around: the nodes that hold it, as an alias may lead back to them."""
        if node in around:
            raise ValueError("an alias stands within what it means")
        inside = (*around, node)
        if isinstance(node, MappingNode):
            for key, value in node.value:
                if key.tag == MERGE:
                    for merged in value.value if isinstance(value, SequenceNode) else [value]:
                        self._note(merged, path, inside)
            for key, value in node.value:
                if key.tag != MERGE:
                    self.lines[(*path, key.value)] = key.start_mark.line + 1
                    self._note(value, (*path, key.value), inside)
        elif isinstance(node, SequenceNode):
            for index, value in enumerate(node.value):
                self.lines[(*path, index)] = value.start_mark.line + 1
                self._note(value, (*path, index), inside)

    def line(self, path: tuple) -> int:
        """The line of a key, or of the innermost section around it that the file has."""
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]
