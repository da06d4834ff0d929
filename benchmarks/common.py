"""What all benchmarks share: timing in turns, the machine, a table, a JSON file. What the device does meanwhile is in
`benchmarks.device`.

A benchmark is a module with `measure(params, quick)`, which returns a `Result`, or yields it again and again as it
grows; `python -m benchmarks <name>` shows and keeps it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import platform
import re
import resource
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.device import Row, device, now, work_of
from infotok.files import write_text

STATUS = Path("/proc/self/status")
RESULTS = Path(__file__).parent / "results"


@dataclass
class Result:
    """settings: sizes and repeats of the measurement. tables: title -> rows with the same columns. markdown: the tables
    are kept as Markdown too."""

    settings: dict
    tables: dict[str, list[Row]]
    markdown: bool = False


def in_turns(actions: dict[str, Callable[[], object]], rounds: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of each action in each round. A round runs all of them, A B C A B C ..., so that a machine that slows
    down slows all of them; the first `warmup` rounds do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(warmup + rounds):
        for name, action in actions.items():
            start = now()
            action()
            seconds[name].append(now() - start)
    return {name: taken[warmup:] for name, taken in seconds.items()}


def spread(seconds: list[float]) -> Row:
    """Median and quartiles in milliseconds, and how many measurements they are of."""
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75]) * 1000
    return {"median_ms": float(median), "q1_ms": float(low), "q3_ms": float(high), "n": len(seconds)}


def timed(actions: dict[str, Callable[[], object]], seconds: dict[str, list[float]]) -> dict[str, Row]:
    """By action the `spread` of the seconds that `in_turns` found, and what the device does in one call."""
    return {name: spread(taken) | work_of(actions[name], float(np.median(taken))) for name, taken in seconds.items()}


def extra_percent(seconds: list[float], baseline: list[float]) -> Row:
    """By how many percent measurements are above those of the same turn: median over turns, with the 95 % interval that
    order statistics give a median."""
    ratios = np.sort(100 * (np.array(seconds) / np.array(baseline) - 1))
    half = 0.98 * len(ratios) ** 0.5
    ranks = np.clip([len(ratios) / 2 - half, len(ratios) / 2 + half], 0, len(ratios) - 1).astype(int)
    return {"extra_%": float(np.median(ratios)), "low_%": float(ratios[ranks[0]]), "high_%": float(ratios[ranks[1]])}


def where_alone(work: Callable, *arguments: object) -> Any:
    """What `work` returns in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def peak_mib() -> float:
    """Peak memory of this process: on a GPU what torch has allocated there, else what is resident."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # getrusage alone would count the parent's, up to the start of this process.
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text()) if STATUS.exists() else None
    return (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024


def give_back() -> None:
    """Let freed memory go back to the system at once: else glibc keeps blocks that no later one fits into, and a peak
    says more of it than of what is needed."""
    with contextlib.suppress(OSError, AttributeError):  # of another C library
        ctypes.CDLL(None).mallopt(-3, 2**20)  # M_MMAP_THRESHOLD


def forget_peak() -> None:
    """From here on `peak_mib` counts anew from what is held now; where the system cannot, from the peak so far."""
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif STATUS.exists():
        STATUS.with_name("clear_refs").write_text("5")


def machine() -> dict:
    """Where this runs. load: processes that compete for the cores, over the last minute; near 0 on a quiet machine."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": _gpu() if device().type == "cuda" else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 2),
    }


def _gpu() -> str:
    about = torch.cuda.get_device_properties()
    size = f"{about.multi_processor_count} SMs, {about.total_memory / 2**30:.0f} GiB"
    return f"{about.name}, {size}, CUDA {torch.version.cuda}"


def commit() -> str:
    """The commit of the code, with `+` where files have changed since; `unknown` outside git."""

    def git(*command: str) -> str:
        done = subprocess.run(
            ["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def keep(name: str, result: Result, command: str, quick: bool, about: dict, folder: Path = RESULTS) -> Path:
    """Write `<name>.json`, or `<name>-quick.json` of a quick run; about: `machine()` as it was before the run."""
    content = {
        "benchmark": name,
        "command": command,
        "quick": quick,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": about,
        "settings": result.settings,
        "tables": result.tables,
    }
    path = folder / f"{name}{'-quick' if quick else ''}.json"
    write_text(path, json.dumps(content, indent=1) + "\n")
    if result.markdown:
        where = ", ".join(str(value) for value in (about["gpu"], about["cpu"], f"torch {about['torch']}") if value)
        head = f"`{command}`, commit {content['commit']}, {content['date']}, {where}.\n"
        write_text(path.with_suffix(".md"), head + "".join(map(_markdown, result.tables.items())))
    return path


def show(result: Result, console: Console) -> None:
    """Print the tables, numbers with three significant digits."""
    for title, rows in result.tables.items():
        table = Table(title=title, title_justify="left")
        for column in rows[0]:
            table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(_text, row.values()))
        console.print(table)


def _markdown(table: tuple[str, list[Row]]) -> str:
    title, rows = table
    lines = [list(rows[0]), ["--:" if not isinstance(value, str) else ":--" for value in rows[0].values()]]
    lines += [[_text(value).replace("|", "\\|") for value in row.values()] for row in rows]
    return f"\n## {title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _text(value: str | int | float) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else value
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
