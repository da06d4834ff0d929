"""Which stages a `dvc repro` would run: neither up to date nor restored from what DVC keeps of former runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.config.cells import Cell
from pipeline.config.study import Study, stage_name


def due(study: Study, stage: str, cells: Sequence[Cell]) -> list[Cell]:
    """Those of the cells whose stage DVC would run now. It asks DVC itself, and changes nothing."""
    from dvc.repo import Repo

    with Repo(str(study.root), _wait_for_lock=True) as repo, repo.lock:
        return [cell for cell in cells if _would_run(repo, f"{study.dvc_file}:{stage_name(stage, cell)}")]


def _would_run(repo: Any, address: str) -> bool:
    from dvc.stage.cache import RunCacheNotFoundError

    (stage,) = repo.stage.collect(address)
    if not stage.changed():
        return False
    stage.save_deps()  # in memory, for the key of the run cache
    try:
        repo.stage_cache.restore(stage, dry=True)
    except RunCacheNotFoundError:
        return True
    return False
