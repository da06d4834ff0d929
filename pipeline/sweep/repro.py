"""What a job of a sweep runs: `dvc --wait-for-lock repro --single-item`, but for where the entries of dvc.lock stand.

    python -m pipeline.sweep.repro ENTRIES DVC_YAML [--pull] STAGE...

DVC reads and writes all of dvc.lock after every stage, which takes it longer the more cells a grid has: 4 s where it
has 200, and no other `dvc` works meanwhile. Here DVC finds the entries of the job's own stages in the file ENTRIES and
leaves them there (`pipeline.sweep.dvc_lock`). All else is DVC's: what runs again, the cache, the run cache.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dvc.dvcfile
from dvc.cli import main as dvc_main
from dvc.dvcfile import Lockfile
from dvc.stage.serialize import to_lockfile

from infotok.files import write_text

COMMAND = ("--wait-for-lock", "repro", "--single-item")


def redirect(entries: Path, lock: Path) -> None:
    """From now on, DVC reads and writes these entries where it would read and write this dvc.lock."""

    class Entries(Lockfile):
        def load(self, **_: Any) -> dict[str, Any]:
            return {"stages": json.loads(entries.read_text())}

        def dump_stages(self, stages: Iterable[Any], **options: Any) -> None:
            found = json.loads(entries.read_text())
            for stage in stages:
                found |= to_lockfile(stage, **options)
            write_text(entries, json.dumps(found))

    def choose(repo: Any, path: str, **options: Any) -> Lockfile:
        return (Entries if Path(path).resolve() == lock.resolve() else Lockfile)(repo, path, **options)

    dvc.dvcfile.Lockfile = choose  # where DVC's `ProjectFile` finds it


def main(entries: str, file: str, *words: str) -> int:
    redirect(Path(entries), Path(file).with_suffix(".lock"))
    return dvc_main([*COMMAND, *(word if word.startswith("-") else f"{file}:{word}" for word in words)])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
