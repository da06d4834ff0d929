"""The program that runs a job of a sweep on another machine, with the real git and DVC; stages are a command each."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from origin import commit, environment, run, stages

from pipeline.sweep.engines import task

WAITS = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, lambda *_: (Path(sys.argv[1]).touch(), sys.exit(130)))
Path(sys.argv[2]).touch()
time.sleep(60)
"""


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A repository with stages that end well, refuse their input, are killed, and wait."""
    folder = tmp_path_factory.mktemp("machines")
    (folder / "waits.py").write_text(WAITS)
    waits = f"python {folder}/waits.py {folder}/checkpoint {folder}/begun"
    commands = {"well": "echo well > well.txt", "refuses": "sh -c 'exit 2'", "killed": "sh -c 'kill -9 $$'"}
    return stages(folder, commands | {"waits": waits})


def order(origin, target, **changes):
    """What the program gets, for a stage of the repository above."""
    folder = origin.parent
    head = run(origin, "git", "rev-parse", "HEAD").strip()
    return {
        "url": str(origin),
        "commit": head,
        "targets": [target],
        "environment": {"SAID": "so"},
        "clones": "$PLACE/clones",
        "log": str(folder / f"{target}.log"),
        "progress": str(folder / "progress"),
    } | changes


def start(origin, target, **changes):
    """The program as engines start it: its text alone, away from this project, SIGINT blocked as Ray has it."""
    command = [sys.executable, "-c", Path(task.__file__).read_text(), json.dumps(order(origin, target, **changes))]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(
            command,
            cwd="/",
            env=environment(PLACE=str(origin.parent)),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def finished(origin, target, **changes):
    """Exit code and output of the program."""
    process = start(origin, target, **changes)
    code = process.wait()
    process.stdin.close()
    return code, (origin.parent / f"{target}.log").read_text() + process.stderr.read().decode()


def appears(path, process):
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.02)


@pytest.mark.xdist_group("machines")
def test_what_one_machine_has_made_another_takes_from_the_remote(origin):
    code, said = finished(origin, "well")
    assert (code, "Running stage 'well'" in said) == (0, True), said
    assert any((origin.parent / "remote").rglob("*"))
    code, said = finished(origin, "well", clones="$PLACE/another/clones")
    assert (code, "Running stage 'well'" in said) == (0, False), said


@pytest.mark.xdist_group("machines")
@pytest.mark.parametrize(("target", "expected"), [("refuses", 2), ("killed", 128 + signal.SIGKILL)])
def test_the_exit_code_is_the_stages(origin, target, expected):
    code, said = finished(origin, target)
    assert code == expected, said


@pytest.mark.xdist_group("machines")
@pytest.mark.parametrize("way", ["the end of its input", "SIGTERM", "SIGKILL"])
def test_it_ends_its_stage_gently_and_leaves_the_clone_to_others(origin, way):
    """Its input ends when Ray cancels its task, and when the process that started it is killed; Ray kills the children
    and the process group of that one too."""
    begun, checkpoint = (origin.parent / name for name in ("begun", "checkpoint"))
    for path in (begun, checkpoint):
        path.unlink(missing_ok=True)
    process = start(origin, "waits")
    appears(begun, process)
    (used,) = (path for path in origin.parent.glob("clones/*/*/*.lock") if not is_free(path))
    if way == "SIGTERM":
        process.terminate()
    elif way == "SIGKILL":
        os.killpg(process.pid, signal.SIGKILL)
        process.stdin.close()
        with open(used) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
    else:
        process.stdin.close()
    assert process.wait() == (-signal.SIGKILL if way == "SIGKILL" else task.INTERRUPTED)
    assert checkpoint.exists()
    assert is_free(used)


def is_free(path):
    with open(path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@pytest.mark.xdist_group("machines")
def test_two_jobs_of_a_machine_have_a_clone_each(origin):
    (origin.parent / "begun").unlink(missing_ok=True)
    first = start(origin, "waits", clones="$PLACE/two")
    appears(origin.parent / "begun", first)
    code, said = finished(origin, "well", clones="$PLACE/two")
    assert code == 0, said
    first.stdin.close()
    first.wait()
    assert sorted(path.name for path in origin.parent.glob("two/*/*/*") if (path / ".git").exists()) == ["0", "1"]


@pytest.mark.xdist_group("machines")
def test_a_clone_goes_to_another_commit_also_where_a_kill_has_cut_off_what_dvc_wrote(origin):
    assert finished(origin, "well", clones="$PLACE/cut")[0] == 0
    (used,) = (path for path in origin.parent.glob("cut/*/*/0"))
    (used / "dvc.lock").write_text("schema: '2.0'\nstag")
    (used / ".dvc/tmp/rwlock").write_text('{"read"')
    (used.parent / "0.busy").touch()
    code, said = finished(origin, "well", clones="$PLACE/cut")
    assert code == 0, said
    text = (origin / "dvc.yaml").read_text()
    (origin / "dvc.yaml").write_text(text.replace("echo well", "echo better"))
    commit(origin)
    code, said = finished(origin, "well", clones="$PLACE/cut")
    assert (code, (used / "well.txt").read_text()) == (0, "better\n"), said


@pytest.mark.xdist_group("machines")
def test_an_unreachable_repository_is_bad_input(origin):
    code, said = finished(origin, "well", url="/nowhere/at/all", clones="$PLACE/none")
    assert code == 2
    assert [line for line in said.splitlines() if line.startswith("error: ")][-1].endswith(
        "git failed, as said above; this machine must reach the sweep's repository"
    )
