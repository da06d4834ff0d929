"""Results that other machines have pushed, brought here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from infotok.errors import InfotokError
from pipeline.config.cells import Cell
from pipeline.config.study import Study
from pipeline.sweep.jobs import addresses, environment, jobs
from pipeline.tracking.mirror import fill_in


def collect(study: Study, cells: Sequence[Cell], failed: Sequence[str]) -> None:
    """Pull what the jobs of these cells have made, but for those that failed, and fill it in in MLflow.

    Raises:
        InfotokError: DVC cannot pull it.
    """
    made = [job for job in jobs(study.graph, cells) if job.name not in failed]
    if not made:
        return
    targets = [address for job in made for address in addresses(study, job)]
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--pull", "--quiet", *targets]
    if subprocess.run(command, env=environment(), check=False).returncode:
        raise InfotokError(
            f"the results are in DVC's remote, and could not be brought here; `{study.repro} --pull` tries it again"
        )
    fill_in(study, [cell for cell in cells if cell.key not in failed])
