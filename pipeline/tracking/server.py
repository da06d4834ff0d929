"""MLflow's server on this machine, opened on the saved view."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from rich.console import Console

from infotok.errors import InfotokError
from pipeline.config.study import Study
from pipeline.tracking.mirror import enabled, initialise, rebuild
from pipeline.tracking.store import store_uri
from pipeline.tracking.view import HOST, view_url

START_SECONDS = 120.0
SERVER = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


def serve(study: Study, port: int = 5000) -> None:
    """Bring MLflow up to date with the results, show it on this machine, and wait for Ctrl-C.

    Raises:
        InfotokError: the port is in use, tracking is off or kept by another server, or MLflow does not start.
    """
    uri = store_uri(study)
    if not enabled():
        raise InfotokError("INFOTOK_TRACKING is off: nothing to show; unset it first")
    if uri.startswith(("http:", "https:")):
        raise InfotokError(f"MLFLOW_TRACKING_URI is {uri}, a server that runs already; open it in a browser")
    _check_port(port)
    rebuild(study)
    address = view_url(initialise(study) or "0", port)
    options = {
        "--host": HOST,
        "--port": str(port),
        "--workers": "1",
        "--backend-store-uri": uri,
        "--artifacts-destination": str(study.root.resolve() / "mlartifacts"),
    }
    command = [sys.executable, "-m", "mlflow", "server", *(part for pair in options.items() for part in pair)]
    journal = study.root / ".ckpt" / "mlflow-server.log"
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
