"""A real MLflow server with accounts, and a relay before it that fails on demand."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from tests.jobs.head import free_port

PASSWORD = f"planted{uuid.uuid4().hex}"
"""The administrator's; the servers of tests have no other account."""

ACCOUNT = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
"""What the environment of a job must hold."""


class Server:
    """`mlflow server` over sqlite in a folder; it may be stopped and started again, and keeps what it has."""

    def __init__(self, folder: Path, password: str = PASSWORD) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        settings = {
            "default_permission": "READ",
            "admin_username": "admin",
            "admin_password": password,
            "database_uri": f"sqlite:///{folder}/accounts.db",
            "auth_cache_ttl_seconds": 60,  # else every request takes the time of a password's hash
        }
        (folder / "auth.ini").touch(mode=0o600)
        (folder / "auth.ini").write_text(
            "\n".join(["[mlflow]", *(f"{key} = {value}" for key, value in settings.items())])
        )

    def launch(self) -> "subprocess.Popen[bytes]":
        options = ["--app-name", "basic-auth", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        places = ["--backend-store-uri", f"sqlite:///{self.folder}/runs.db", "--artifacts-destination", "artifacts"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")} | {
            "MLFLOW_AUTH_CONFIG_PATH": str(self.folder / "auth.ini"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": uuid.uuid4().hex,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        with (self.folder / "server.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options, *places],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start(self) -> None:
        self._process = self.launch()
        deadline = time.monotonic() + 180
        while not self._healthy():
            log = (self.folder / "server.log").read_text()
            assert self._process.poll() is None and time.monotonic() < deadline, log[-3000:]
            time.sleep(0.2)

    @property
    def pid(self) -> int:
        """Of the process, and of the group that it has started."""
        return self._process.pid if self._process else 0

    def stop(self) -> None:
        """End it with the processes that it has started; they are a group of their own."""
        if self._process and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _healthy(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
            return bool(answer.status == 200)
        return False


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


Mode = Literal["open", "closed", "silent", "deaf", "late"]


class Relay:
    """Stands before a server.

    `open` passes everything on; `closed` refuses connections; `silent` takes requests and passes nothing on; `deaf`
    passes requests on and loses the answers; `late` keeps requests for a new run back, and passes them on when the mode
    changes, whoever still waits for them. Connections that are open when another mode changes are cut.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._mode: Mode = "open"
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self.lost = 0
        """Answers that were lost."""
        self.held = 0
        """Requests that were kept back."""
        self.delay_s = 0.0
        """How long every answer is on its way."""
        self._let_go = threading.Event()
        self._listen()

    def set(self, mode: Mode) -> None:
        if mode == self._mode:
            return
        before, self._mode = self._mode, mode
        if mode == "closed":
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # close alone would leave `accept` waiting
            self._listener.close()
        elif before == "closed":
            self._listener = socket.create_server(("127.0.0.1", self._port))
            self._listen()
        if mode == "late":
            self._let_go.clear()
        elif before == "late":
            self._let_go.set()
            return
        ends, self._ends = self._ends, []
        for end in ends:
            _cut(end)

    def _listen(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # it was closed
            while True:
                near, _ = listener.accept()
                self._ends.append(near)
                if self._mode != "silent":
                    self._join(near)

    def _join(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            _cut(near)
            return
        self._ends.append(far)
        for source, sink, answers in ((near, far, False), (far, near, True)):
            threading.Thread(target=self._pump, args=(source, sink, answers), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while content := source.recv(1 << 16):
                time.sleep(self.delay_s if answers else 0)
                if answers and self._mode == "deaf":
                    self.lost += 1
                    break
                if not answers and self._mode == "late" and b"mlflow/runs/create" in content:
                    self.held += 1
                    self._let_go.wait()
                    sink.sendall(content)
                    time.sleep(1)  # a server may drop what it was asked by somebody who has left
                else:
                    sink.sendall(content)
        _cut(sink)
        _cut(source)


def _cut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
