"""How far a running stage is: a line of JSON, left where a sweep looks. A stage that no sweep started leaves none."""

from __future__ import annotations

import json
import os
from pathlib import Path

from infotok.files import write_text

VARIABLE = "INFOTOK_PROGRESS"  # in a stage's environment: the file it writes


def leave(stage: str, step: int = 0, steps: int = 0) -> None:
    """Say that a stage has done so many of its steps; 0 of 0 for a stage without steps."""
    if path := os.environ.get(VARIABLE):
        write_text(Path(path), json.dumps({"stage": stage, "step": step, "steps": steps}))
