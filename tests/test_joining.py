"""What the environment announces: processes that should meet and do not, no devices, unknown variables."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from smoke import ROOT, environment, one_line_error

from infotok.errors import InfotokError
from infotok.training import runtime
from pipeline.config.variables import check_variables
from pipeline.running.processes import announced

PRETRAIN = ["--study", "smoke", "--family", "ar", "--tokens", "4", "--seed", "0"]
QUICK = """
import sys
from pipeline.running import processes
processes.JOINING, processes.STEP = 1.0, 0.2
from stages import common
common.PATIENCE = 0
common.main(sys.argv.pop(1))
"""


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def cluster(rank: int, **changed: str) -> dict[str, str]:
    """The environment of one of two processes."""
    variables = {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return environment() | variables | {"INFOTOK_WORKER": ""} | changed


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_that_do_not_come_are_named_in_time(rank):
    command = [sys.executable, "-c", QUICK, "pretrain", *PRETRAIN]
    variables = cluster(rank)
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False, timeout=60)
    waiting, error = done.stderr.strip().splitlines()
    where = f"127.0.0.1:{variables['MASTER_PORT']}"
    said = f"process {rank} waits for process {1 - rank} of 2 at {where}; where none will come, unset WORLD_SIZE, "
    assert waiting.startswith(said)
    assert error.startswith(f"error: process {1 - rank} of 2 did not come to {where} within 1 s, as WORLD_SIZE, RANK, ")
    assert error.endswith("start all of them, or unset these for one process")
    assert done.returncode == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_ends_a_process_that_waits_for_others(rank):
    command = [sys.executable, "-c", QUICK.replace("1.0, 0.2", "600.0, 0.2"), "pretrain", *PRETRAIN]
    process = subprocess.Popen(command, cwd=ROOT, env=cluster(rank), stderr=subprocess.PIPE, text=True)
    assert "waits for" in process.stderr.readline()
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert time.monotonic() - sent < 10


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: 'two' is not from 1 to "),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE: '-1' is not from 1 to "),
        (
            {"RANK": ""},
            "RANK: is not set, while WORLD_SIZE is 2; for one process unset WORLD_SIZE, RANK, ",
        ),
        ({"RANK": "2"}, "RANK: '2' is not from 0 to 1"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR: is not set"),
        ({"MASTER_PORT": ""}, "MASTER_PORT: is not set"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT: 'http' is not from 1 to 65535"),
    ],
)
def test_half_set_variables_are_named(monkeypatch, changed, says):
    for name, value in cluster(0, **changed).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InfotokError) as error:
        announced()
    assert str(error.value).startswith(says)
    assert str(error.value).endswith("for several start the stage by torchrun")


def test_a_sweep_does_not_take_part_in_announced_processes():
    command = [sys.executable, "-m", "stages.cli", "sweep", "--study", "smoke"]
    done = subprocess.run(command, cwd=ROOT, env=cluster(0), capture_output=True, text=True, check=False, timeout=60)
    assert one_line_error(done).startswith("error: WORLD_SIZE: 2 processes are announced, but a sweep starts its own")


@pytest.mark.parametrize("size", [None, "", "1"])
def test_without_other_processes_what_is_left_over_means_nothing(monkeypatch, size):
    for name, value in cluster(1, MASTER_ADDR="", MASTER_PORT="none").items():
        monkeypatch.setenv(name, value)
    if size is None:
        monkeypatch.delenv("WORLD_SIZE")
    else:
        monkeypatch.setenv("WORLD_SIZE", size)
    assert announced() is None


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        variables = cluster(0, MASTER_PORT=str(taken.getsockname()[1]))
        command = [sys.executable, "-m", "stages.pretrain", *PRETRAIN]
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False, timeout=60)
    assert one_line_error(done).startswith(f"error: MASTER_PORT: {variables['MASTER_PORT']} is in use on this machine")


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("INFOTOK_THREADS", "auto", "INFOTOK_THREADS: 'auto' is no whole number of at least 1"),
        ("INFOTOK_THREADS", "0", "INFOTOK_THREADS: '0' is no whole number of at least 1"),
        ("INFOTOK_DEVICE", "gpu", "INFOTOK_DEVICE: 'gpu' is no device; set it to cpu, cuda or cuda:<number>"),
        ("INFOTOK_DEVICE", "cuda", "INFOTOK_DEVICE: 'cuda', but PyTorch finds no GPU here"),
        ("INFOTOK_DEVICE", "cuda:7", "INFOTOK_DEVICE: 'cuda:7', but PyTorch finds no GPU here"),
    ],
)
def test_a_device_or_number_of_threads_that_is_none(monkeypatch, variable, value, says):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv(variable, value)
    with pytest.raises(InfotokError) as error:
        runtime.start()
    assert str(error.value).startswith(says)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("INFOTOK_DEVICE", "cuda")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InfotokError, match=r"LOCAL_RANK: cuda:2, but there are 2 GPUs; start no more processes"):
        runtime.start()


def test_empty_variables_are_as_unset(monkeypatch):
    for name in ("INFOTOK_THREADS", "INFOTOK_TRACKING", "INFOTOK_PROCESSES", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("INFOTOK_DEVICE", "cpu")
    check_variables()
    assert runtime.start() == torch.device("cpu")
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("INFOTOK_THREAD", "2", "INFOTOK_THREAD: is no variable of this program; did you mean INFOTOK_THREADS?"),
        ("INFOTOK_Q17", "2", "INFOTOK_Q17: is no variable of this program; docs/running.md lists them"),
        ("INFOTOK_TRACKING", "never", "INFOTOK_TRACKING: 'never' means nothing; set it to on or off or training"),
    ],
)
def test_misspelled_variables_are_named_by_every_command(name, value, says):
    command = [sys.executable, "-m", "stages.cli", "status", "--study", "smoke"]
    variables = os.environ | {name: value}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert one_line_error(done).startswith(f"error: {says}")
