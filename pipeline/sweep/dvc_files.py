"""DVC's own files. It rewrites two of them in place, so that a kill or a full disk in that moment cuts them off, and no
`dvc` starts any more. What stages made lies in DVC's cache all the same."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

GRACE = 1.0  # seconds, within which a `dvc` at work has written the whole file


def mend(root: Path, file: Path) -> list[str]:
    """Set aside what is cut off of DVC's locks, as `<name>.damaged`; the next `dvc` makes them anew.

    Args:
        root: the workspace. file: the dvc.yaml whose dvc.lock is meant.

    Returns:
        a line for every file set aside.
    """
    lock, rwlock = file.with_suffix(".lock"), root / ".dvc" / "tmp" / "rwlock"
    if not lock.exists() and not rwlock.exists():
        return []
    from dvc.exceptions import DvcException
    from dvc.rwlock import SCHEMA
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils import strictyaml
    from voluptuous import Invalid

    readers: dict[Path, Callable[[str], object]] = {
        lock: lambda path: strictyaml.load(path, COMPILED_LOCKFILE_SCHEMA),
        rwlock: lambda path: SCHEMA(json.loads(Path(path).read_text(encoding="utf-8"))),
    }

    def damaged(path: Path) -> bool:
        try:
            readers[path](str(path))
        except FileNotFoundError:
            return False
        except (DvcException, Invalid, ValueError):
            return True
        return False

    cut = [path for path in readers if damaged(path)]
    if cut:
        time.sleep(GRACE)
    said = []
    for path in filter(damaged, cut):
        path.replace(path.with_name(f"{path.name}.damaged"))
        said.append(f"{path.relative_to(root)} was cut off and is set aside as {path.name}.damaged; DVC makes it anew")
    return said
