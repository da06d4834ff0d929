"""MLflow's pages with the columns and charts that this grid needs, and the server that shows them.

A saved view is an experiment tag that MLflow's pages read when their address names it. The format is theirs
and undocumented (seen in 3.17); a test guards it.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
import zlib
from itertools import pairwise
from pathlib import Path

from infotok.errors import InfotokError
from pipeline.report.metrics import Task, allowed
from pipeline.running.results import Layout

VIEW = "infotok"  # the saved view's id in tag and address
HOST = "127.0.0.1"
START_SECONDS = 120.0
SERVER = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
AXES = ["family", "estimator", "beta", "tokens", "seed"]
RATE = "information/rate_bits"
USABLE = ["information/structure_bits", "information/nuisance_bits"]  # of data whose factors are known
# MLflow adds a chart for every metric, in a section per group: ours stands first, these start closed.
CLOSED = [
    *("train", "understanding", "understanding/family", "generation", "generation/tag", "reconstruction"),
    *("information", "information/factor", "pretrain", "Model metrics", "System metrics"),
]


def saved_view(manifest: dict | None = None) -> dict[str, str]:
    """The experiment tag that holds the saved view: {tag: JSON text}. All of it but the dates is constant.

    Args:
        manifest: of the prepared data, whose tasks and factors the view shows; without one those of scenes.
    """
    manifest = manifest or {}
    tasks = allowed(manifest)
    usable = USABLE if manifest.get("factors") or "tasks" not in manifest else []
    packed = zlib.compress(json.dumps(_state(tasks, [RATE, *usable])).encode(), 9)
    milliseconds = int(time.time() * 1000)
    content = {
        "name": f"Beta against {_named(tasks)}",
        "createdAt": milliseconds,
        "updatedAt": milliseconds,
        "state": "deflate;" + base64.b64encode(packed).decode(),
    }
    return {f"mlflow.sharedViewState.{VIEW}": json.dumps(content)}


def view_url(experiment: str, port: int) -> str:
    """Where the saved view opens, on its charts; the table is one click away."""
    return f"http://{HOST}:{port}/#/experiments/{experiment}/runs?viewStateShareKey={VIEW}&compareRunsMode=CHART"


def serve(layout: Layout, port: int = 5000) -> None:
    """Bring MLflow up to date with the results, show it on this machine, and wait for Ctrl-C.

    Raises:
        InfotokError: the port is in use, tracking is off or kept by another server, or MLflow does not start.
    """
    from rich.console import Console

    from pipeline.tracking.mirror import enabled, initialise, rebuild, store_uri

    uri = store_uri(layout)
    if not enabled():
        raise InfotokError("INFOTOK_TRACKING is off: nothing to show; unset it first")
    if uri.startswith(("http:", "https:")):
        raise InfotokError(f"MLFLOW_TRACKING_URI is {uri}, a server that runs already; open it in a browser")
    _check_port(port)
    rebuild(layout)
    address = view_url(initialise(layout) or "0", port)
    options = {
        "--host": HOST,
        "--port": str(port),
        "--workers": "1",
        "--backend-store-uri": uri,
        "--artifacts-destination": str(layout.root.resolve() / "mlartifacts"),
    }
    command = [sys.executable, "-m", "mlflow", "server", *(part for pair in options.items() for part in pair)]
    journal = layout.root / ".ckpt" / "mlflow-server.log"
    # SIGTERM must end the server too, so both signals raise KeyboardInterrupt.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with journal.open("w") as output:
        # A session of its own: Ctrl-C reaches this process alone, which ends server and worker together.
        server = subprocess.Popen(
            command, env=os.environ | SERVER, start_new_session=True, stdout=output, stderr=output
        )
        try:
            _await(server, port, journal)
            console = Console()
            console.print(f"MLflow is at [link={address}]{address}[/link]", soft_wrap=True, highlight=False)
            console.print("Ctrl-C stops it.")
            server.wait()
            raise InfotokError(f"MLflow's server ended by itself; {journal} says why")
        except KeyboardInterrupt:
            pass
        finally:
            _stop(server)
            signal.signal(signal.SIGTERM, before)


def _check_port(port: int) -> None:
    """Raise InfotokError unless a server can listen on this port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or "not a port"
            raise InfotokError(f"port {port} cannot be used ({reason}); name another with --port") from None


def _await(server: subprocess.Popen, port: int, journal: Path) -> None:
    """Wait until the server answers; raise InfotokError if it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise InfotokError(f"MLflow's server did not start on port {port}; {journal} says why")


def _stop(server: subprocess.Popen) -> None:
    """End the server's whole session, kindly at first."""
    for end in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, end)
            server.wait(timeout=10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _named(tasks: list[Task]) -> str:
    return "both tasks" if len(tasks) == 2 else tasks[0].label if tasks else "rate"


def _state(tasks: list[Task], information: list[str]) -> dict:
    """What MLflow's pages keep of a view: filter, order, columns and charts."""
    scores = [task.score for task in tasks]
    columns = [*scores, *(task.plain for task in tasks if task.plain), *information]
    charts = [
        _chart("PARALLEL", "Beta, tasks and rate", showAllRuns=True)
        | {"selectedParams": ["estimator", "beta", "tokens"], "selectedMetrics": [*scores, RATE]},
        *(
            _chart("SCATTER", f"{task.claim} over beta", runsCountToCompare=500)
            | {"xaxis": {"key": "beta", "type": "PARAM"}, "yaxis": {"key": task.score, "type": "METRIC"}}
            for task in tasks
        ),
        *(
            _chart("SCATTER", "Generation over understanding", runsCountToCompare=500)
            | {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
            for x, y in pairwise(scores)
        ),
        *(_chart("BAR", name, runsCountToCompare=500, metricKey=name) for name in scores),
    ]
    sections = [_section(f"Compression against {_named(tasks)}", True), *(_section(name, False) for name in CLOSED)]
    for chart in charts:
        chart["metricSectionId"] = sections[0]["uuid"]
    return {
        "searchFilter": "tags.kind = 'cell'",
        "orderByKey": f"metrics.`{[RATE, *scores][-1]}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [f"params.`{axis}`" for axis in AXES] + [f"metrics.`{name}`" for name in columns],
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "SHOW_ALL",
        "groupBy": None,
        "groupsExpanded": {},
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "isAccordionReordered": True,  # or the sections would be sorted by name
        "viewMaximized": False,
        "runListHidden": False,
        "compareRunCharts": charts,
        "compareRunSections": sections,
    }


def _chart(kind: str, name: str, **settings) -> dict:
    common = {"type": kind, "displayName": name, "deleted": False, "isGenerated": False}
    return {"uuid": _constant_uuid(kind + name)} | common | settings


def _section(name: str, display: bool) -> dict:
    settings = {"isReordered": False, "deleted": False, "isGenerated": False}
    return {"uuid": _constant_uuid(name), "name": name, "display": display} | settings


def _constant_uuid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))
