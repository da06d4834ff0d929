"""YAML as DVC reads it, with the lines where its keys stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from infotok.errors import InfotokError


class YamlFile:
    """A file's content as plain dicts, lists and scalars, and the line of every key and entry.

    Read as YAML 1.2, as DVC does: `1e-3` is a number, `010` is ten, `yes` is a text, and a key may stand once.
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
            loaded = YAML(typ="rt", pure=True).load(text)
        except YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            problem = (error.problem if isinstance(error, MarkedYAMLError) else None) or str(error).splitlines()[0]
            line = mark.line + 1 if mark else 1
            raise InfotokError(f"{path}:{line}: not valid YAML ({problem.splitlines()[0]})") from None
        except ValueError as error:
            raise InfotokError(f"{path}:1: not valid YAML ({str(error).splitlines()[0]})") from None
        self.content = self._plain(loaded, ())

    def _plain(self, node: Any, path: tuple) -> Any:
        """A node of ruamel's without its comments and classes, noting lines on the way."""
        if tag := _tag(node):
            key = ".".join(map(str, path))
            raise InfotokError(f"{self.path}:{self.line(path)}: '{key}' has the tag {tag}; write a plain value")
        if isinstance(node, CommentedMap):
            for key in node:
                self.lines[(*path, key)] = node.lc.key(key)[0] + 1
            return {key: self._plain(value, (*path, key)) for key, value in node.items()}
        if isinstance(node, CommentedSeq):
            for index in range(len(node)):
                self.lines[(*path, index)] = node.lc.item(index)[0] + 1
            return [self._plain(value, (*path, index)) for index, value in enumerate(node)]
        for kind in (bool, int, float, str):  # ruamel's own classes of them keep how they were written
            if isinstance(node, kind):
                return kind(node)
        return node

    def line(self, path: tuple) -> int:
        """The line of a key, or of the innermost section around it that the file has."""
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]


def _tag(node: Any) -> str:
    """What a node is tagged with, such as `!!python/object`; nothing where it is plain."""
    return str(getattr(getattr(node, "tag", None), "value", None) or "")
