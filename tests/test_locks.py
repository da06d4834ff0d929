"""Locks between processes, and file systems that have none."""

import errno
import fcntl
import subprocess
import sys

import pytest
from smoke import ROOT

from pipeline import locks
from pipeline.config.study import Study
from pipeline.running.stage import running
from pipeline.sweep.processes import only_sweep

HOLD = "import sys; from pipeline.locks import try_lock\n"
HOLD += "with open(sys.argv[1], 'a') as file: print(try_lock(file), flush=True); sys.stdin.read()"


def holder(path):
    command = [sys.executable, "-c", HOLD, str(path)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_one_process_holds_a_lock_until_it_ends(tmp_path):
    path = tmp_path / "lock"
    first = holder(path)
    assert first.stdout.readline() == "True\n"
    with open(path, "a") as file:
        assert not locks.try_lock(file)
        first.kill()
        locks.wait_for_lock(file)
        first.communicate()
        second = holder(path)
        assert second.communicate("")[0] == "False\n"


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def without_locks(request, monkeypatch):
    """As on a file system that answers so."""

    def flock(file, how):
        raise OSError(request.param, "No locks available")

    locks._warn.cache_clear()
    monkeypatch.setattr(fcntl, "flock", flock)
    yield
    locks._warn.cache_clear()


def test_without_locks_stages_and_sweeps_run_after_one_warning(without_locks, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("INFOTOK_TRACKING", "off")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((ROOT / "studies/smoke/params.yaml").read_text())
    ran = 0
    for _ in range(2):
        with only_sweep(tmp_path), running("prepare", Study(), None) as stage:
            ran += stage is not None
    assert ran == 2
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("no locks on this file system (No locks available): start no second sweep or stage beside")
    assert "`dvc config --local core.hardlink_lock true`" in line


def test_other_errors_are_errors(monkeypatch, tmp_path):
    def flock(file, how):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with open(tmp_path / "lock", "a") as file, pytest.raises(OSError, match="Input/output error"):
        locks.try_lock(file)
