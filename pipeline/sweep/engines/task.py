"""The program that runs one job of a sweep on another machine: it brings a clone to the sweep's commit, runs
`dvc repro --pull` there and pushes what that has made.

An engine sends the text of this file (`python -c <text> <order>`), as the machine may have no clone yet; so it imports
nothing but Python's own library. It ends its stage gently, with a checkpoint, when its standard input ends, which
happens too when the process that started it is killed, and at SIGTERM and SIGINT.

The order, in JSON:
    url, commit: of the repository. targets: of `dvc repro`. environment: more variables of the stages.
    clones: the folder for clones on this machine; `~` and variables in it are this machine's.
    log, progress: the files to write output and progress to.

Exit codes: that of the stage that failed; 2 where clone or environment cannot be used; 130 when it was interrupted.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, NoReturn

POLL = 0.2  # seconds
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
EXITED = re.compile(r"exited with (-?\d+)\s*$", re.MULTILINE)  # how DVC says it of a stage


class Ending:
    """Whether this program is to end."""

    def __init__(self) -> None:
        self.signalled = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._hear)
        # Some engines block it, and children inherit that.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        # Slurm sends its warnings to every process of a job; they are for the one that started this.
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)

    def _hear(self, number: int, frame: object) -> None:
        self.signalled = True

    def asked(self) -> bool:
        if not self.signalled and select.select([0], [], [], 0)[0]:
            self.signalled = not os.read(0, 1)
        return self.signalled


def go_on_in_a_child(ending: Ending) -> None:
    """Return in a child of this process, which waits for it, hands signals on and ends as it does.

    Where a worker of Ray ends, Ray kills its children and its process group at once. A child's child in a group of its
    own has the time to write a checkpoint.
    """
    if (child := os.fork()) == 0:
        os.setpgid(0, 0)
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os.kill(child, number))
    if ending.signalled:
        os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) % 256)


def fail(message: str, code: int = BAD_INPUT) -> NoReturn:
    print(f"error: {socket.gethostname()}: {message}", flush=True)
    sys.exit(code)


def run(command: list[str], ending: Ending, **options) -> int:
    """Exit code of a command, in a process group of its own, which is interrupted when this program is to end."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, **options)
    told = False
    while True:
        try:
            return process.wait(POLL)
        except subprocess.TimeoutExpired:
            if ending.asked() and not told:
                told = True
                os.killpg(process.pid, signal.SIGINT)


def git(ending: Ending, *command: str) -> None:
    """Run git, which must end well."""
    if run(["git", "-c", "advice.detachedHead=false", *command], ending):
        sys.stdout.flush()
        if ending.asked():
            sys.exit(INTERRUPTED)
        fail("git failed, as said above; this machine must reach the sweep's repository")


def take_clone(folder: Path) -> tuple[Path, IO]:
    """The first place for a clone that no other job of this machine uses, and its lock."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        lock = open(folder / f"{number}.lock", "a+")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return folder / str(number), lock
        except BlockingIOError:
            lock.close()
            number += 1


def bring_to_commit(clone: Path, url: str, commit: str, ending: Ending) -> None:
    """Make the clone if need be, and check the commit out. What DVC has written of other states of the code goes, and
    what a killed job may have cut off."""
    if not (clone / ".git").is_dir():
        unfinished = clone.with_name(f"{clone.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        git(ending, "clone", "--quiet", "--no-checkout", url, str(unfinished))
        unfinished.replace(clone)
    within = ("-C", str(clone))
    has = subprocess.run(["git", *within, "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True, check=False)
    if has.returncode:
        git(ending, *within, "fetch", "--quiet", url, "+refs/heads/*:refs/remotes/origin/*")
    head = subprocess.run(["git", *within, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    busy = clone.with_name(f"{clone.name}.busy")
    if busy.exists() or head.stdout.strip() != commit or not (clone / "dvc.yaml").exists():
        (clone / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)
        git(ending, *within, "checkout", "--quiet", "--force", "--detach", commit)
        git(ending, *within, "clean", "--quiet", "--force", "-d")  # a dvc.lock that no commit has; results are ignored
    busy.touch()
    # What one job of this machine has pulled or made, the others need not pull.
    (clone / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {clone.parent / 'cache'}\n")


def code_of_stage(log: Path) -> int:
    """The exit code of the stage that failed, as DVC's output tells it."""
    found = EXITED.findall(log.read_text(errors="replace"))
    code = int(found[-1]) if found else FAILED
    return 128 - code if code < 0 else code


def main() -> None:
    order = json.loads(sys.argv[1])
    ending = Ending()
    go_on_in_a_child(ending)
    log = Path(order["log"])
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as output:
        with suppress(OSError):  # a shared file system may have no locks
            fcntl.flock(output, fcntl.LOCK_EX)  # held until the last process that writes here has ended
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    print(f"{socket.gethostname()}: {', '.join(order['targets'])}", flush=True)
    if importlib.util.find_spec("dvc") is None:
        fail(f"{sys.executable} has no DVC; install requirements.lock into the environment that the engine starts")
    known = hashlib.sha256(order["url"].encode()).hexdigest()[:12]
    folder = Path(os.path.expandvars(order["clones"])).expanduser().absolute() / known / socket.gethostname()
    try:
        clone, lock = take_clone(folder)
        bring_to_commit(clone, order["url"], order["commit"], ending)
    except OSError as error:
        fail(f"{error.filename or folder}: {error.strerror or error}; --clones names another folder")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = dict(os.environ) | order["environment"] | {"PATH": path, "INFOTOK_PROGRESS": order["progress"]}
    # Stages hold the clone's lock too: it is free once the last of them has ended.
    settings = {"cwd": clone, "env": environment, "pass_fds": (lock.fileno(),)}
    dvc = [sys.executable, "-m", "dvc"]
    code = run([*dvc, "--wait-for-lock", "repro", "--pull", *order["targets"]], ending, **settings)
    if code and not ending.asked():
        code = code_of_stage(log)
    elif not code:
        code = run([*dvc, "push", "--quiet", "--run-cache", *order["targets"]], ending, **settings)
        if code and not ending.asked():
            fail("DVC could not push the results, as said above; this machine keeps them for the next try", FAILED)
    if code and ending.asked():
        code = INTERRUPTED
    clone.with_name(f"{clone.name}.busy").unlink(missing_ok=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
