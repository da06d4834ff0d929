"""MLflow's pages with the columns and charts that this grid needs.

A saved view is an experiment tag that MLflow's pages read when their address names it. The format is theirs
and undocumented (seen in 3.17); a test guards it.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
import zlib
from itertools import pairwise

from pipeline.report.metrics import Task, allowed

VIEW = "infotok"  # the saved view's id in tag and address
HOST = "127.0.0.1"
AXES = ["family", "estimator", "beta", "gamma", "tokens", "seed"]
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


def _named(tasks: list[Task]) -> str:
    return "both tasks" if len(tasks) == 2 else tasks[0].label if tasks else "rate"


def _state(tasks: list[Task], information: list[str]) -> dict:
    """What MLflow's pages keep of a view: filter, order, columns and charts."""
    scores = [task.score for task in tasks]
    columns = [*scores, *(task.plain for task in tasks if task.plain), *information]
    charts = [
        _chart("PARALLEL", "Beta, tasks and rate", showAllRuns=True)
        | {"selectedParams": ["estimator", "beta", "gamma", "tokens"], "selectedMetrics": [*scores, RATE]},
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
