"""Names that the data choose, such as a family of questions, as names that MLflow takes.

MLflow's names are letters of any script, digits, `_`, `-`, `.`, space, `:` and `/`, at most 250 characters, and parts
of a path: no part may be empty or `.`, or begin with `..`. Whatever else a name holds stands as `:` and two hexadecimal
digits for each of its UTF-8 bytes, as with `%` in addresses of the web: `count (number)` becomes `count :28number:29`.
"""

from __future__ import annotations

import hashlib
import re

LONGEST = 250
AS_THEY_ARE = re.compile(r"[\w.\- /]")
EMPTY = ":"  # a part without a character


def encoded(name: str) -> str:
    """A metric's name as MLflow takes it. What is too long ends in `:` and a digest of the whole name."""
    out = "/".join(_part(part) for part in name.split("/"))
    if len(out) <= LONGEST:
        return out
    mark = "::" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return out[: LONGEST - len(mark)] + mark


def decoded(name: str) -> str:
    """The name that `encoded` was given, unless it was too long."""
    parts = ["" if part == EMPTY else part for part in name.split("/")]
    return "/".join(re.sub(r"(?::[0-9a-f]{2})+", _characters, part) for part in parts)


def _part(part: str) -> str:
    if not part:
        return EMPTY
    dots = part[:2] if part == "." or part.startswith("..") else ""
    rest = (char if AS_THEY_ARE.match(char) else _bytes(char) for char in part.removeprefix(dots))
    return _bytes(dots) + "".join(rest)


def _bytes(text: str) -> str:
    return "".join(f":{byte:02x}" for byte in text.encode("utf-8", "surrogatepass"))


def _characters(found: re.Match) -> str:
    return bytes.fromhex(found[0].replace(":", "")).decode("utf-8", "surrogatepass")
