"""Stages from a worker: as in a process of their own, byte for byte; signals, ends and edits on the way."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from smoke import CELLS, ROOT, contents, environment, run_stages

from pipeline.running.worker import LIBRARIES, VARIABLE, worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no worker")
SHOW = """
import os, sys
print(sys.argv, os.getcwd(), os.environ["A"], "INFOTOK_WORKER" in os.environ, sys.stdin.read(), os.getppid(), __name__)
print("an error", file=sys.stderr)
sys.exit(3)
"""
WAIT = """
import os, signal, sys, time
from pathlib import Path
def stop(number, frame):
    print("stopped by", signal.Signals(number).name, flush=True)
    sys.exit(128 + number)
for number in (signal.SIGTERM, signal.SIGINT):
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, stop)
Path("pid").write_text(str(os.getpid()))
while True:
    time.sleep(0.01)
"""


@pytest.fixture
def folder(tmp_path):
    """A checkout whose stages are tiny."""
    (tmp_path / "stages").mkdir()
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "stages/__init__.py", tmp_path / "stages/__init__.py")
    (tmp_path / "stages/show.py").write_text(SHOW)
    (tmp_path / "stages/wait.py").write_text(WAIT)
    return tmp_path


@pytest.fixture
def served(monkeypatch):
    """The environment of a worker that is ready."""
    monkeypatch.delenv(VARIABLE, raising=False)
    with worker(libraries=()) as variables:
        wait_for(Path(variables[VARIABLE]))
        yield environment() | variables | {"A": "ä"}
    assert not Path(variables[VARIABLE]).parent.exists()


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.01)


def start(folder: Path, stage: str, variables: dict, *arguments: str, **options) -> subprocess.Popen:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-m", f"stages.{stage}", *arguments]
    return subprocess.Popen(command, cwd=folder, env=variables, text=True, **pipes, **options)


def stage_at_work(folder: Path, variables: dict, **options) -> tuple[subprocess.Popen, int]:
    """A waiting stage: the process that was started, and the one that is at work."""
    process, path = start(folder, "wait", variables, **options), folder / "pid"
    wait_for(path)
    while not (text := path.read_text()):
        time.sleep(0.01)
    path.unlink()
    return process, int(text)


def server_of(stage: int) -> int:
    return int(Path(f"/proc/{stage}/stat").read_text().rsplit(")", 1)[1].split()[1])


def assert_ends(pid: int) -> None:
    end = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_stage_gets_what_it_was_started_with_and_ends_as_it_ends(folder, served):
    process = start(folder, "show", served, "--one", "two words")
    said, errors = process.communicate("from the pipe")
    assert (process.returncode, errors) == (3, "an error\n")
    *shown, parent, name = said.split()
    assert " ".join(shown) == f"['{folder}/stages/show.py', '--one', 'two words'] {folder} ä False from the pipe"
    assert name == "__main__"
    assert int(parent) != os.getpid()


END = """
import atexit, sys, threading, time
atexit.register(print, "at exit")
threading.Thread(target=lambda: (time.sleep(0.1), print("a thread"))).start()
print("begun", end=" ")
"""


@pytest.mark.parametrize(
    ("end", "code"), [("", 0), ("sys.exit()", 0), ("sys.exit(0)", 0), ("sys.exit('said')", 1), ("raise KeyError(1)", 1)]
)
def test_a_stage_ends_as_a_process_of_its_own_does(folder, served, end, code):
    (folder / "stages/show.py").write_text(END + end)
    alone = {name: value for name, value in served.items() if name != VARIABLE}
    said = []
    for variables in (served, alone):
        process = start(folder, "show", variables)
        output, errors = process.communicate()
        said.append((process.returncode, output, errors.splitlines()[-1:]))
    assert said[0] == said[1]
    assert said[0][:2] == (code, "begun a thread\nat exit\n")


def test_an_edit_between_two_stages_is_seen(folder, served):
    for text in ("first", "second"):
        (folder / "stages/show.py").write_text(f"import pipeline.added as added\nprint(added.TEXT, '{text}')")
        (folder / "pipeline/added.py").write_text(f"TEXT = '{text}'")
        assert start(folder, "show", served).communicate()[0] == f"{text} {text}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_stage(folder, served, number):
    process, stage = stage_at_work(folder, served)
    assert stage != process.pid
    process.send_signal(number)
    assert process.communicate()[0] == f"stopped by {number.name}\n"
    assert process.returncode == 128 + number


def test_an_ignored_signal_stays_ignored(folder, served):
    process, _ = stage_at_work(folder, served, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert process.communicate()[0] == "stopped by SIGTERM\n"


def test_a_killed_stage_and_one_whose_starter_is_killed(folder, served):
    process, stage = stage_at_work(folder, served)
    os.kill(stage, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    process, stage = stage_at_work(folder, served)
    process.kill()
    process.communicate()
    assert_ends(stage)


def test_without_its_worker_a_stage_says_so_and_runs_by_itself(folder, served):
    process, stage = stage_at_work(folder, served)
    server = server_of(stage)
    os.kill(server, signal.SIGKILL)
    assert_ends(stage)
    wait_for(folder / "pid")  # it has begun again
    process.terminate()
    said, errors = process.communicate()
    assert said == "stopped by SIGTERM\n"
    assert errors == "the worker of this sweep is gone; stages.wait runs by itself\n"
    later = start(folder, "show", served)
    assert later.communicate()[1] == "the worker of this sweep is gone; stages.show runs by itself\nan error\n"


def test_a_worker_ends_after_its_starter_and_the_last_stage(folder, tmp_path):
    program = "import time\nfrom pipeline.running.worker import worker\n"
    program += "with worker(()) as variables:\n    print(*variables.values(), flush=True)\n    time.sleep(600)"
    plain = environment() | {VARIABLE: "", "A": ""}
    command = [sys.executable, "-c", program]
    starter = subprocess.Popen(command, cwd=ROOT, env=plain, stdout=subprocess.PIPE, text=True)
    path = Path(starter.stdout.readline().strip())
    wait_for(path)
    process, stage = stage_at_work(folder, plain | {VARIABLE: str(path)})
    server = server_of(stage)
    starter.kill()
    starter.communicate()  # a worker keeps nothing of it open
    while path.exists():
        time.sleep(0.01)
    # What needs no worker any more starts plainly, and what runs goes on.
    assert start(folder, "show", plain | {VARIABLE: str(path)}).communicate()[1] == "an error\n"
    process.terminate()
    assert process.communicate()[0] == "stopped by SIGTERM\n"
    assert_ends(server)


def test_the_libraries_leave_one_thread_and_no_code_of_this_project(tmp_path):
    """Else a fork could hang, and DVC would record the hashes of code that has not run."""
    program = f"""
import importlib, os, sys
sys.path = [path for path in sys.path if path not in ("", {str(ROOT)!r})]
from runpy import run_path
os.environ |= run_path({str(ROOT / "pipeline/running/worker.py")!r})["ONE_THREAD"]
for name in {LIBRARIES!r}:
    importlib.import_module(name)
import torch
print(len(os.listdir("/proc/self/task")), torch.cuda.is_initialized())
print([name for name in sys.modules if name.split(".")[0] in ("infotok", "pipeline", "stages")])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-3:] == ["1 False", "[]", ""]


def test_a_worker_that_cannot_load_its_libraries_is_told_and_done_without(folder, monkeypatch, capfd):
    monkeypatch.delenv(VARIABLE, raising=False)
    with worker(libraries=["json", "no_such_library"]) as variables:
        process = start(folder, "show", environment() | variables | {"A": ""})
        assert process.communicate()[1] == "an error\n"
        log = Path(variables[VARIABLE]).with_name("log")
        while not log.read_text().endswith("'\n"):
            time.sleep(0.01)
        time.sleep(2.0)  # in which it ends by itself: one that still loads is killed without a word
    assert capfd.readouterr().err == (
        "stages ran without a worker: ModuleNotFoundError: No module named 'no_such_library'\n"
    )


@pytest.mark.xdist_group("smoke")
def test_stages_of_a_worker_write_the_bytes_of_stages_in_a_process_that_none_has_forked(workspace, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(workspace, folder, symlinks=True)
    before, cell = contents(folder), {"family": "ar", "arm": "ceb-0.01-1", "tokens": 4, "seed": 0}
    stages = [(stage, cell) for stage in ("train", "understand", "generate")]
    for made in (*(f"runs/smoke/{stage}/{CELLS[1]}" for stage, _ in stages), "reports/smoke"):
        shutil.rmtree(folder / made)
    run_stages(folder, "smoke", [*stages, ("report", {})], INFOTOK_TRACKING="off", **{VARIABLE: ""})
    after = contents(folder)
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == []
