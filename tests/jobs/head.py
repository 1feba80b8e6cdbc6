"""A Ray head with token authentication, and jobs/submit.py as its users start it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NAMES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_KEY",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "HF_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)
PLANTED = {name: f"planted{uuid.uuid4().hex}" for name in NAMES}
"""Secrets in the environment of every node and every user, by name."""

TOKEN = uuid.uuid4().hex * 2


@dataclass(frozen=True)
class Cluster:
    """A running head, and the people who use it."""

    address: str
    folder: Path
    """Where Ray keeps its logs and what it has unpacked."""

    home: Path
    """A user's home, with the token in it and nothing in the environment."""

    def environment(self, **changes: str) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_A", "RAY_JOB"))}
        return clean | PLANTED | {"HOME": str(self.home), "RAY_API_SERVER_ADDRESS": self.address} | changes

    def start(self, *words: str, **changes: str) -> "subprocess.Popen[str]":
        """jobs/submit.py, as a user starts it."""
        command = [sys.executable, "jobs/submit.py", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=self.environment(**changes), **pipes)

    def submit(self, *words: str, **changes: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of jobs/submit.py."""
        with self.start(*words, **changes) as process:
            try:
                output, said = process.communicate(timeout=180)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return process.returncode, output, said

    def get(self, path: str) -> Any:
        """What the API answers to somebody with the token."""
        wish = urllib.request.Request(f"{self.address}{path}", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(wish, timeout=30) as answer:
            return json.load(answer)

    def status(self, method: str, path: str, token: str, body: Any = None) -> int:
        """The HTTP status for somebody with some token, or with none."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        content = None if body is None else json.dumps(body).encode()
        wish = urllib.request.Request(f"{self.address}{path}", data=content, headers=headers, method=method)
        try:
            with urllib.request.urlopen(wish, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def jobs(self) -> dict[str, Any]:
        return {job["submission_id"]: job for job in self.get("/api/jobs/") if job["submission_id"]}


@contextmanager
def started(home: Path, *more: str, **changes: str) -> Iterator[Cluster]:
    """A head of its own on free ports, which nobody talks to without the token; taken down by its pid.

    Args:
        home: of its user.
        more: options of `ray start`, which overrule ours.
        changes: what is different in the head's environment.
    """
    port, dashboard = free_port(), free_port()
    (home / ".ray").mkdir()
    (home / ".ray/auth_token").write_text(TOKEN)
    # A short name for the sake of Ray's sockets.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    cluster = Cluster(f"http://127.0.0.1:{dashboard}", folder, home)
    program = Path(sys.executable).with_name("ray")
    options = [f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"]
    # Without that port, which any connection of the machine may have taken, no job agent comes up.
    options.append(f"--dashboard-agent-listen-port={free_port()}")
    environment = cluster.environment(
        PATH=f"{program.parent}:{os.environ['PATH']}",
        RAY_AUTH_MODE="token",
        RAY_API_SERVER_ADDRESS="",
        RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="0",
        **changes,
    )
    command = [program, "start", "--head", "--block", "--num-cpus=4", *options, *more]
    head = subprocess.Popen(command, env=environment)
    try:
        deadline = time.monotonic() + 90
        while not answers(cluster):
            assert time.monotonic() < deadline, "the Ray head did not come up"
            time.sleep(0.5)
        yield cluster
    finally:
        head.terminate()
        head.wait(timeout=60)
        end_all(folder)
        shutil.rmtree(folder, ignore_errors=True)


def end_all(folder: Path) -> None:
    """End the raylets that an autoscaler has started in a head's folder, and with them their workers."""
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            if str(folder).encode() in (place / "cmdline").read_bytes():
                os.kill(int(place.name), signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(cluster: Cluster) -> bool:
    try:
        return bool(cluster.get("/api/version"))
    except OSError:
        return False


class Tunnel:
    """A relay to a port that loses its connections when it is told to."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.ends: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        for end in self.ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            near, _ = self.listener.accept()
            far = socket.create_connection(("127.0.0.1", self.target))
            self.ends += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(1 << 16):
                sink.sendall(content)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


def places_of(token: str, *roots: Path) -> list[Path]:
    """The files below some folders in which a text stands."""
    files = [path for root in roots for path in root.rglob("*") if path.is_file()]
    return [path for path in files if token.encode() in path.read_bytes()]


def command_lines() -> list[str]:
    """What a process list shows."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            found.append(path.read_text(errors="replace"))
    return found
