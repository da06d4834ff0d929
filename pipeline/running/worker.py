"""A worker that starts stages without waiting for their imports.

Loading PyTorch, transformers, torchmetrics and MLflow takes a stage longer than many a stage works. While a sweep runs,
one process holds these libraries loaded and forks for every stage. `python -m stages.train` finds its socket in
INFOTOK_WORKER, hands over its arguments, environment, folder and streams, and waits: signals that it gets are passed
on, it ends as the stage ends, and the stage ends with it. Without the variable, or while the libraries are still being
loaded, a stage runs in its own process, as it does when the worker is gone.

This file is also the worker's program. It imports nothing of this project, so that every stage reads the code as it
is when the stage starts.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TextIO

VARIABLE = "INFOTOK_WORKER"
LIBRARIES = (
    "torch",
    "torch._dynamo",  # what an optimizer loads at its first step
    "transformers.models.llama.modeling_llama",
    "torchmetrics.functional.image",
    "torchmetrics.image.fid",
    "torchmetrics.image.kid",
    "safetensors.torch",
    "tokenizers",
    "datasets",
    "pandas",
    "scipy.special",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "pydantic",
    "ruamel.yaml",
    "typer",
    "rich.progress",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
)
# A process with several threads, or with a context on a GPU, cannot be forked.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
HEAD = 8  # bytes of a request's length, which stand before it
PR_SET_PDEATHSIG = 1  # of Linux' prctl: the signal that a process gets when its parent ends


@contextmanager
def worker(libraries: Sequence[str] = LIBRARIES) -> Iterator[dict[str, str]]:
    """Keep a worker that has these modules loaded; yields what stages need in their environment to find it.

    It ends when this process does, after the stages that it has started. Where there is one already, that one serves;
    elsewhere than on Linux there is none.
    """
    if sys.platform != "linux" or os.environ.get(VARIABLE):
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="infotok-") as folder:
        path = f"{folder}/worker"
        # -P: the folder of this file is not a place to import from. Its standard input ends when this process ends.
        command = [sys.executable, "-P", __file__, path, *libraries]
        with open(f"{folder}/log", "w+") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | ONE_THREAD,
                start_new_session=True,
            )
            try:
                yield {VARIABLE: path}
            finally:
                if not os.path.exists(path):  # still loading
                    process.kill()
                process.communicate()
                if process.returncode > 0:
                    log.seek(0)
                    print(f"stages ran without a worker: {log.read().strip().splitlines()[-1]}", file=sys.stderr)


def hand_over() -> None:
    """In `python -m <module>`: let the worker run the module, and end as it ends; return where there is none."""
    path = os.environ.get(VARIABLE)
    if not path or sys.argv[:1] != ["-m"] or not os.path.exists(path):
        return
    arguments = sys.orig_argv[sys.orig_argv.index("-m") + 1 :]
    request = {
        "module": arguments[0],
        "arguments": arguments[1:],
        "folder": os.getcwd(),
        "path": sys.path,
        "environment": {name: value for name, value in os.environ.items() if name != VARIABLE},
        "streams": [_settings(stream) for stream in (sys.stdin, sys.stdout, sys.stderr)],
        "ignored": [number for number in PASSED_ON if signal.getsignal(number) is signal.SIG_IGN],
    }
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            message = json.dumps(request).encode()
            socket.send_fds(connection, [len(message).to_bytes(HEAD)], [0, 1, 2])
            connection.sendall(message)
            code = _wait(connection.makefile())
    except (OSError, ValueError):
        print(f"the worker of this sweep is gone; {arguments[0]} runs by itself", file=sys.stderr)
        return
    if code < 0:
        with suppress(OSError):  # SIGKILL cannot be set
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _settings(stream: io.TextIOWrapper) -> dict[str, Any]:
    names = ("encoding", "errors", "line_buffering", "write_through")
    return {name: getattr(stream, name) for name in names}


def _wait(said: TextIO) -> int:
    """The exit code of the stage, to which signals are passed on until then."""
    stage = int(said.readline())
    before = {number: signal.getsignal(number) for number in PASSED_ON}
    for number in PASSED_ON:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os.kill(stage, number))
    try:
        return int(said.readline())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve(path: str) -> dict[str, Any]:
    """Fork for every request; returns the request in the child. The program ends when the one that started it has
    ended, and the last stage with it."""
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as watched:
        listener.bind(path)
        listener.listen(64)
        watched.register(listener, selectors.EVENT_READ, ("request", None))
        watched.register(0, selectors.EVENT_READ, ("end", None))
        stages: list[Forked] = []
        wanted, this = True, os.getpid()
        while wanted or stages:
            for key, _ in watched.select():
                event, stage = key.data
                if event == "request":
                    connection, _ = listener.accept()
                    if (request := _read(connection)) is None:
                        connection.close()
                        continue
                    if (pid := os.fork()) == 0:
                        for other in stages:
                            other.close()
                        connection.close()
                        _die_with(this)
                        return request
                    for stream in request["descriptors"]:
                        os.close(stream)
                    stage = Forked(pid, connection)
                    stages.append(stage)
                    watched.register(stage.end, selectors.EVENT_READ, ("ended", stage))
                    watched.register(connection, selectors.EVENT_READ, ("abandoned", stage))
                    stage.tell(pid)
                elif event == "end":
                    wanted = False
                    os.unlink(path)
                    watched.unregister(listener)
                    watched.unregister(0)
                elif stage in stages and event == "abandoned":
                    os.kill(stage.pid, signal.SIGKILL)
                    watched.unregister(stage.connection)
                elif stage in stages:
                    _, status = os.waitpid(stage.pid, 0)
                    stage.tell(os.waitstatus_to_exitcode(status))
                    for watching in (stage.end, stage.connection):
                        with suppress(KeyError):
                            watched.unregister(watching)
                    stage.close()
                    stages.remove(stage)
    sys.exit()


class Forked:
    """A stage that was forked, and the connection to the process that waits for it."""

    def __init__(self, pid: int, connection: socket.socket):
        self.pid, self.connection = pid, connection
        self.end = os.pidfd_open(pid)  # readable when the stage has ended

    def tell(self, number: int) -> None:
        with suppress(OSError):
            self.connection.sendall(b"%d\n" % number)

    def close(self) -> None:
        os.close(self.end)
        self.connection.close()


def _read(connection: socket.socket) -> dict[str, Any] | None:
    """A whole request and its three streams; None where the client broke off."""
    head, streams, _, _ = socket.recv_fds(connection, HEAD, 3)
    size, message = int.from_bytes(head), b""
    while len(message) < size and (part := connection.recv(size - len(message))):
        message += part
    if size == 0 or len(message) < size:
        for stream in streams:
            os.close(stream)
        return None
    return json.loads(message) | {"descriptors": streams}


def _die_with(parent: int) -> None:
    """End this process at once when its parent does."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def run(request: dict[str, Any]) -> None:
    """Be the process that has asked, and run its module."""
    for number, descriptor in enumerate(request["descriptors"]):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.BufferedReader(file) if number == 0 else io.BufferedWriter(file), **settings)
        for number, settings in enumerate(request["streams"])
        for file in [io.FileIO(number, "rb" if number == 0 else "wb", closefd=False)]
    )
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    os.setpgid(0, 0)  # signals come by way of the one that asked
    for number in PASSED_ON:
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else signal.SIG_DFL)
    if signal.SIGINT not in request["ignored"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:] = request["path"]
    sys.argv[1:] = request["arguments"]
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code:
            raise
    _end()


def _end() -> NoReturn:
    """End well, as a process that `multiprocessing` has forked ends. An interpreter that takes itself apart looks at
    every object of the libraries, which costs half a second in a process that shares them with another."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # children share what is never collected
    run(serve(sys.argv[1]))


if __name__ == "__main__":
    main()
