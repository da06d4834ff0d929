"""Sweeps on machines of a cluster, all on this one: raylets by loopback, and submitit's executor `local` in Slurm's
place. They are stopped and lose a machine in the middle of a cell, and make the bytes that a sweep here makes."""

import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from origin import clone, environment, project
from smoke import start_worker

from infotok.errors import InfotokError
from pipeline.config.study import Study
from pipeline.sweep.engines import ray as ray_engine
from pipeline.sweep.engines.checkout import Checkout
from pipeline.sweep.jobs import Job

pytestmark = pytest.mark.clusters

NONE, VIB = "ar-none-0-0-4-0", "ar-vib-0.01-1-4-0"
TOKEN = "a-token-of-these-tests-and-of-nothing-else"
PATIENCE = 240.0  # seconds
# `--engine slurm` on this machine: the command of users, but for the executor.
SLURM_HERE = """
from pipeline.sweep.engines import slurm
from stages.cli import app
slurm.slurm.__wrapped__.__kwdefaults__["executor"] = "local"
app()
"""


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """The repository that all machines clone: two cells of 150 steps, with checkpoints on shared storage."""
    start_worker()  # which the machines' stages use too
    return project(tmp_path_factory.mktemp("machines"), steps=150)


@pytest.fixture(scope="module")
def made_here(origin):
    """A clone whose grid a sweep of this machine alone has made."""
    folder = clone(origin, origin.parent / "here")
    said, code = finish(start(folder, ["-m", "stages.cli"], "--jobs", "2"))
    assert code == 0, said
    return folder


def start(folder, program, *options, **variables):
    """`infotok sweep` in a clone."""
    return subprocess.Popen(
        [sys.executable, *program, "sweep", *options],
        cwd=folder,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    """What a sweep has said, and its exit code."""
    said, _ = process.communicate(timeout=PATIENCE)
    return said, process.returncode


def newest(origin, cell):
    """The last step that a cell's checkpoints hold; 0 without any."""
    found = origin.parent.glob(f"checkpoints/default/checkpoints/train/{cell}/*/step-*.safetensors")
    return max((int(path.stem.removeprefix("step-")) for path in found), default=0)


def reach(origin, cell, step, process):
    """Wait until a cell has a checkpoint after this step; returns its step."""
    while (at := newest(origin, cell)) <= step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return at


def contents(folder, cell):
    made = sorted(folder.glob(f"runs/default/*/{cell}/*"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in made}


def nothing_runs(origin):
    """Whether all locks of clones, which their jobs hold, are free."""
    return (
        subprocess.run(
            ["sh", "-c", f'for lock in {origin.parent}/clones/*/*/*.lock; do flock -n "$lock" true || exit 1; done'],
            check=False,
        ).returncode
        == 0
    )


def stopped_then_disturbed(origin, folder, cell, sweep, disturb):
    """Ctrl-C a sweep of one cell while it trains, start it again, disturb it in the middle, and let it end; returns
    what the second sweep said."""
    first = sweep()
    reach(origin, cell, 0, first)
    first.send_signal(signal.SIGINT)
    said, code = finish(first)
    assert code == 130, said
    assert f"waiting for the checkpoints of {cell}" in said
    assert nothing_runs(origin)
    kept = newest(origin, cell)
    second = sweep()
    at = reach(origin, cell, kept, second)
    disturb()
    said, code = finish(second)
    assert code == 0, said
    log = (folder / f".ckpt/default/logs/{cell}.log").read_text()
    (resumed,) = re.findall(rf"train {cell}: goes on from \S+step-(\d+)", log)
    assert int(resumed) >= at
    return said


@pytest.fixture(scope="module")
def raylets():
    """A Ray cluster that asks for a token: a head without CPUs, where sweeps start, and two machines of one CPU."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}.items():
            patch.setenv(name, value)
        pytest.importorskip("ray", reason="Ray is not installed")  # which reads these variables once
        from ray.cluster_utils import Cluster

        settings = {"object_store_memory": 80_000_000, "include_dashboard": False}
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **settings})
        patch.setenv("RAY_ADDRESS", started.address)
        for _ in range(2):
            started.add_node(num_cpus=1, object_store_memory=80_000_000)
        yield started
        started.shutdown()


def raylet_of(node):
    (process,) = node.all_processes["raylet"]
    return psutil.Process(process.process.pid)


def runs(process, words):
    """Whether a process runs, and its command holds these words; others come and go meanwhile."""
    try:
        return words in " ".join(process.cmdline())
    except psutil.Error:
        return False


def lose_the_machine_that_trains(cluster):
    """Kill one raylet and all that runs under it, as when its machine loses power."""
    for node in cluster.worker_nodes:
        processes = raylet_of(node).children(recursive=True)
        if any(runs(process, "stages.train") for process in processes):
            cluster.remove_node(node, allow_graceful=False)
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            return
    raise AssertionError("no machine trains")


@pytest.mark.xdist_group("clusters")
def test_a_cell_on_ray_survives_ctrl_c_and_the_loss_of_its_machine(origin, made_here, raylets):
    folder = clone(origin, origin.parent / "driver-of-ray")
    options = ["--engine", "ray", "--only", VIB, "--clones", str(origin.parent / "clones")]
    said = stopped_then_disturbed(
        origin,
        folder,
        VIB,
        lambda: start(folder, ["-m", "stages.cli"], *options),
        lambda: lose_the_machine_that_trains(raylets),
    )
    lost = [line for line in said.splitlines() if line.startswith(f"{VIB}: lost (")]
    assert len(lost) == 1
    assert contents(folder, VIB) == contents(made_here, VIB)


def end_of_time(origin):
    """Tell all processes of the job that trains what Slurm tells them before their time is up."""
    for process in psutil.process_iter():
        if not runs(process, f"submitit.core._submit {origin.parent}"):
            continue
        all_of_it = [process, *process.children(recursive=True)]
        if any(runs(one, "stages.train") for one in all_of_it):
            for one in all_of_it:
                with suppress(psutil.NoSuchProcess):
                    one.send_signal(signal.SIGUSR2)
            return
    raise AssertionError("no job trains")


@pytest.mark.xdist_group("clusters")
def test_a_cell_under_submitit_survives_ctrl_c_and_the_end_of_its_time(origin, made_here):
    pytest.importorskip("submitit", reason="submitit is not installed")
    folder = clone(origin, origin.parent / "driver-of-slurm")
    options = ["--engine", "slurm", "--only", NONE, "--clones", str(origin.parent / "clones")]
    said = stopped_then_disturbed(
        origin, folder, NONE, lambda: start(folder, ["-c", SLURM_HERE], *options), lambda: end_of_time(origin)
    )
    assert "lost (" not in said  # Slurm itself queues it again
    assert "Requeued job" in "".join(path.read_text() for path in folder.glob(".ckpt/default/slurm/*_log.out"))
    assert contents(folder, NONE) == contents(made_here, NONE)


# Instead of the program that runs a job: says which GPU it sees, and waits until it may end.
SEES = """
import json, os, pathlib, sys, time
order = json.loads(sys.argv[1])
folder = pathlib.Path(order["environment"]["FOLDER"])
(folder / order["targets"][0].split(":")[-1]).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
while not (folder / "end").exists():
    time.sleep(0.05)
pathlib.Path(order["log"]).write_text("seen")
"""


@pytest.mark.xdist_group("clusters")
def test_four_jobs_share_two_gpus_by_halves_and_a_fifth_waits(raylets, tmp_path):
    pretended = raylets.add_node(num_cpus=8, num_gpus=2, object_store_memory=80_000_000)
    study = Study(root=tmp_path)
    (study.scratch / "logs").mkdir(parents=True)
    others = Checkout(study, url="", commit="", environment={"FOLDER": str(tmp_path)})
    with ray_engine.cluster(-1, [], checkout=others, gpus=0.5) as engine:
        engine._program = SEES
        running = [engine.submit(Job(f"job{n}", [(f"job{n}", None)])) for n in range(5)]
        deadline = time.monotonic() + PATIENCE
        while len(seen := {path.name: path.read_text() for path in tmp_path.glob("job*")}) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert sorted(seen.values()) == ["0", "0", "1", "1"]
        assert [engine.poll(one) for one in running] == [None] * 5
        (tmp_path / "end").touch()
        ended = []
        while len(ended) < 5:
            ended += [one for one in running if one not in ended and engine.poll(one)]
            time.sleep(0.1)
        assert len(list(tmp_path.glob("job*"))) == 5
    raylets.remove_node(pretended)
    with (
        pytest.raises(InfotokError, match="a job takes 1 CPUs and 1 GPUs, which no machine of the Ray cluster has"),
        ray_engine.cluster(-1, [], checkout=others, gpus=1.0),
    ):
        pass


@pytest.mark.xdist_group("clusters")
@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"RAY_AUTH_TOKEN": "another"}, r"asks for its token; set RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_MODE": "disabled"}, r"asks for its token; set RAY_AUTH_MODE=token"),
        ({"RAY_ADDRESS": "127.0.0.1:1"}, r"no Ray cluster answers at RAY_ADDRESS=127\.0\.0\.1:1; "),
        ({"RAY_ADDRESS": "ray://127.0.0.1:1"}, r"is of Ray's client"),
    ],
)
def test_clusters_that_cannot_be_used_are_refused(raylets, monkeypatch, tmp_path, variables, says):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InfotokError, match=says) as raised, ray_engine.cluster(-1, [], checkout=None):
        pass
    assert len(str(raised.value).splitlines()) == 1


# A Ray cluster that anybody may use, until the standard input ends.
OPEN = """
import sys
from ray.cluster_utils import Cluster
settings = {"num_cpus": 0, "object_store_memory": 80_000_000, "include_dashboard": False}
started = Cluster(initialize_head=True, head_node_args=settings)
print(started.address, flush=True)
sys.stdin.read()
started.shutdown()
"""


@pytest.mark.xdist_group("clusters")
def test_a_cluster_that_asks_for_no_token_is_refused(raylets, monkeypatch):
    variables = environment(RAY_AUTH_MODE="disabled")
    with subprocess.Popen(
        [sys.executable, "-c", OPEN], env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        monkeypatch.setenv("RAY_ADDRESS", process.stdout.readline().strip())
        with pytest.raises(InfotokError, match="asks for no token"), ray_engine.cluster(-1, [], checkout=None):
            pass
        process.stdin.close()
