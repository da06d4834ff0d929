"""The environment's variables of this project, checked like parameters."""

from __future__ import annotations

import difflib
import os

from infotok.errors import InfotokError

PREFIX = "INFOTOK_"
# Those without a list of values are checked by what reads them.
KNOWN: dict[str, tuple[str, ...]] = {
    "INFOTOK_DEVICE": (),
    "INFOTOK_THREADS": (),
    "INFOTOK_PROCESSES": (),
    "INFOTOK_TRACKING": ("on", "off", "training"),
    "INFOTOK_PROGRESS": (),
    "INFOTOK_WORKER": (),
    "INFOTOK_SHARED_DATA": (),  # of the tests
}


def check_variables() -> None:
    """
    Raises:
        InfotokError: a variable INFOTOK_* is unknown or has a value that means nothing.
    """
    for name, value in os.environ.items():
        if not name.startswith(PREFIX):
            continue
        if name not in KNOWN:
            own = [known.removeprefix(PREFIX) for known in KNOWN]
            near = difflib.get_close_matches(name.removeprefix(PREFIX), own, n=1)
            hint = f"did you mean {PREFIX}{near[0]}?" if near else "docs/running.md lists them"
            raise InfotokError(f"{name}: is no variable of this program; {hint}")
        if value and KNOWN[name] and value.lower() not in KNOWN[name]:
            raise InfotokError(f"{name}: '{value}' means nothing; set it to {' or '.join(KNOWN[name])}, or unset it")
