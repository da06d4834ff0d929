"""A study's dvc.lock while a sweep runs: its jobs keep their own entries, which are added to it together."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from infotok.files import write_text
from pipeline.config.study import Study

EVERY = 300.0  # seconds between two writings, each of which takes 4 s where the grid has 200 cells


class DvcLock:
    """The entries of a dvc.lock, by stage, and files in which jobs have entries of their own.

    A kill loses nothing: the next sweep adds what jobs had made by then, unless dvc.lock has changed since, and DVC has
    it in its run cache too, from which a `dvc repro` takes it.
    """

    def __init__(self, study: Study):
        self._root, self._path = study.root, study.dvc_file.with_suffix(".lock")
        self._folder = study.scratch / "entries"
        written = self._path.stat().st_mtime if self._path.exists() else 0.0
        self._lent = [path for path in sorted(self._folder.glob("*.json")) if path.stat().st_mtime > written]
        self.add()

    @cached_property
    def _entries(self) -> dict[str, Any]:
        return self._read().get("stages", {})

    def lend(self, job: str, stages: Iterable[str]) -> Path:
        """The file of a job, with the entries of its stages. The job puts what it has made in their place."""
        path = self._folder / f"{job}.json"
        write_text(path, json.dumps({stage: self._entries[stage] for stage in stages if stage in self._entries}))
        self._lent = [*(one for one in self._lent if one != path), path]
        return path

    def add(self) -> None:
        """Put into dvc.lock what jobs have made."""
        self._added = time.monotonic()
        found = {stage: entry for path in self._lent for stage, entry in json.loads(path.read_text()).items()}
        made = {stage: entry for stage, entry in found.items() if entry != self._entries.get(stage)}
        if not made:
            return
        from dvc.repo import Repo
        from dvc.utils.serialize import dumps_yaml

        with Repo(str(self._root), _wait_for_lock=True) as repo, repo.lock:
            content = self._read() or {"schema": "2.0"}
            content["stages"] = content.get("stages", {}) | made
            write_text(self._path, dumps_yaml(content))
        self._entries |= made

    def add_from_time_to_time(self) -> None:
        if time.monotonic() - self._added > EVERY:
            self.add()

    def close(self) -> None:
        """Add all, and let the files go."""
        self.add()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self) -> dict[str, Any]:
        if not self._path.exists():
            return {}
        from dvc.utils.serialize import load_yaml

        return load_yaml(self._path)


@contextmanager
def dvc_lock(study: Study) -> Iterator[DvcLock]:
    """The dvc.lock of a study, which has at the end what jobs have made, whatever ended them."""
    lock = DvcLock(study)
    try:
        yield lock
    finally:
        lock.close()
