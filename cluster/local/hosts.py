"""A Ray cluster of several nodes on one machine, each with an address and folders of its own.

    python cluster/local/hosts.py up             # a head without CPUs, and two workers: 1 and 2
    python cluster/local/hosts.py run head python jobs/tokenize.py --preset debug storage.root=/srv/out
    python cluster/local/hosts.py kill 1         # lose a worker; `cut 1` only pulls its cable
    python cluster/local/hosts.py join 1         # plug it in, and start Ray where it has ended
    python cluster/local/hosts.py down

Nodes are network namespaces of Linux, which need root. Their environment is that of who starts them; their home and
temporary folder lie on a disk that no other node sees, all else they share. The dashboard is reached from this machine
only, with a token that `up` draws; `env` prints what a shell needs to submit jobs (`eval "$(... env)"`).
"""

import argparse
import hashlib
import json
import os
import secrets
import shlex
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from cluster.local.network import Network, NetworkError, obstacle

HEAD = "head"
GCS_PORT, DASHBOARD_PORT = 6379, 8265

START_S = 120.0
"""How long a node may take to come up."""


class Cluster:
    """Ray on some hosts: a head that only drives, and workers; also as a context manager."""

    def __init__(self, name: str = "", workers: Mapping[str, int] | None = None) -> None:
        """Describe a cluster, which need not be up.

        Args:
            name: that of its network; empty: one of this checkout's own.
            workers: name -> logical CPUs; none: those that are up.
        """
        name = name or own_name()
        books = Network(name, []).folder / "workers.json"
        if workers is None:
            workers = json.loads(books.read_bytes()) if books.exists() else {}
        self.books, self.workers = books, dict(workers)
        self.network = Network(name, [HEAD, *self.workers])
        self.token = self.network.folder / "token"
        self.head = self.network.hosts[HEAD].address
        self.address = f"{self.head}:{GCS_PORT}"
        self.dashboard = f"http://{self.head}:{DASHBOARD_PORT}"
        self._processes: list[Popen[bytes]] = []

    def __enter__(self) -> "Cluster":
        """Bring it up, after what an earlier one of its name may have left."""
        self.down()
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def up(self) -> None:
        """Make the hosts and start Ray on them; nothing is left where that fails.

        Raises:
            NetworkError: where there can be no hosts, or Ray does not come up.
        """
        self.network.up()
        try:
            self.books.write_text(json.dumps(self.workers))
            self.token.touch(mode=0o600)
            self.token.write_text(secrets.token_hex(32))
            self._start(HEAD)
            self._wait(lambda: self.head in self.nodes(), "the head")
            for worker in self.workers:
                self._start(worker)
            everybody = {host.address for host in self.network.hosts.values()}
            self._wait(lambda: self.nodes() == everybody, "all workers")
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """End all nodes and remove the hosts, as far as they are there."""
        self.network.down()
        for process in self._processes:
            process.wait()
        self._processes.clear()

    def kill(self, worker: str) -> None:
        """Lose a worker: its processes and its disk are gone at once."""
        self.network.kill(worker)

    def cut(self, worker: str) -> None:
        """Pull a worker's cable."""
        self.network.cut(worker)

    def join(self, worker: str) -> None:
        """Bring back a worker that was lost or cut off: as it is, or anew where its Ray has ended.

        Raises:
            NetworkError: where it does not come up.
        """
        self.network.mend(worker)
        address = self.network.hosts[worker].address

        def is_back() -> bool:
            if not self.network.pids(worker):
                self._start(worker)
            return address in self.nodes()

        self._wait(is_back, f"worker {worker}")

    def environment(self) -> dict[str, str]:
        """The environment of nodes, and of programs that are started on them."""
        ours = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "XDG_"))}
        return ours | {
            "PATH": f"{Path(sys.executable).parent}:{ours.get('PATH', '')}",  # jobs run the `python` that is first here
            "HOME": str(self.network.own / "home"),
            "TMPDIR": str(self.network.own / "tmp"),
            "GLOO_SOCKET_IFNAME": "eth0",  # gloo would take the address of the machine's name, which all share
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_period_ms": "1000",  # a lost worker is noticed after 5 of them
            "REPORTER_UPDATE_INTERVAL_MS": "30000",  # each node has its own process that looks at all others of it
            "LOG_NAME_UPDATE_INTERVAL_S": "10",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
        }

    def access(self) -> dict[str, str]:
        """Variables with which a shell of this machine talks to the cluster."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_API_SERVER_ADDRESS": self.dashboard,
        }

    def start(self, host: str, words: Sequence[str], **options: Any) -> "Popen[Any]":
        """Start a program on a host, such as a job, which finds the cluster; options are those of Popen."""
        environment = self.environment() | self.access() | {"RAY_ADDRESS": self.address}
        return self.network.start(host, words, **{"cwd": ROOT, "env": environment} | options)

    def ask(self, path: str) -> Any:
        """The answer of the dashboard's API, from JSON.

        Raises:
            OSError: where it does not answer, or refuses.
        """
        wish = urllib.request.Request(
            self.dashboard + path, headers={"Authorization": f"Bearer {self.token.read_text()}"}
        )
        with urllib.request.urlopen(wish, timeout=30) as answer:
            return json.load(answer)

    def nodes(self) -> set[str]:
        """Addresses of the nodes that the head takes to be alive; none where it does not answer."""
        try:
            found = self.ask("/api/v0/nodes?limit=1000")["data"]["result"]["result"]
        except OSError:
            return set()
        return {node["node_ip"] for node in found if node["state"] == "ALIVE"}

    def _start(self, host: str) -> None:
        """Start Ray on a host; start.log on the host's disk says what became of it."""
        place = self.network.hosts[host]
        for folder in ("home", "tmp"):
            (place.disk / folder).mkdir(exist_ok=True)
        words = ["ray", "start", "--block", f"--node-ip-address={place.address}", "--object-store-memory=200000000"]
        words += [f"--temp-dir={self.network.own / 'ray'}", f"--num-cpus={self.workers.get(host, 0)}"]
        if host == HEAD:
            words += ["--head", f"--port={GCS_PORT}"]
            words += [f"--dashboard-host={place.address}", f"--dashboard-port={DASHBOARD_PORT}"]
        else:
            words += [f"--address={self.address}"]
        options = {"cwd": "/", "env": self.environment(), "stdin": DEVNULL, "stderr": STDOUT}
        with (place.disk / "start.log").open("ab") as log:
            self._processes.append(self.network.start(host, words, stdout=log, start_new_session=True, **options))

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_S
        while not condition():
            if time.monotonic() > deadline:
                logs = {host.name: host.disk / "start.log" for host in self.network.hosts.values()}
                tails = [f"{name}: {path.read_text()[-500:]}" for name, path in logs.items() if path.exists()]
                raise NetworkError("\n".join([f"Ray did not bring up {what} in {START_S:.0f} s", *tails]))
            time.sleep(0.5)


def own_name(purpose: str = "mb") -> str:
    """The name of a network of this checkout: those of other checkouts have other names."""
    return purpose + hashlib.sha256(str(ROOT.resolve()).encode()).hexdigest()[:6]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; gives the exit code."""
    asked = _parse(arguments)
    try:
        if asked.verb == "up":
            return _up(Cluster(asked.name, {str(number): asked.cpus for number in range(1, asked.workers + 1)}))
        cluster = Cluster(asked.name)
        if asked.verb == "down":
            cluster.down()
            return 0
        return _use(cluster, asked)
    except (NetworkError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _up(cluster: Cluster) -> int:
    if reason := obstacle():
        raise NetworkError(reason)
    cluster.up()
    for host in cluster.network.hosts.values():
        print(f"{host.name:<6}{host.address:<16}{cluster.workers.get(host.name, 0)} CPUs, disk {host.disk}")
    print(f"dashboard {cluster.dashboard}, its token is in {cluster.token}")
    return 0


def _use(cluster: Cluster, asked: argparse.Namespace) -> int:
    """Do something with a cluster that is up."""
    if not cluster.workers:
        raise NetworkError(f"there is no cluster {cluster.network.name}; bring it up first: python {__file__} up")
    if asked.verb == "env":
        print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in cluster.access().items()))
        return 0
    if asked.host not in cluster.network.hosts or (asked.verb != "run" and asked.host == HEAD):
        raise NetworkError(f"{asked.verb} {asked.host} is not possible; the workers are {', '.join(cluster.workers)}")
    if asked.verb == "run":
        return cluster.start(asked.host, asked.words).wait()
    {"kill": cluster.kill, "cut": cluster.cut, "join": cluster.join}[asked.verb](asked.host)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="", help="of the network (default: one of this checkout's own)")
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="make the hosts and start Ray on them")
    up.add_argument("--workers", type=int, default=2, help="how many (default: 2)")
    up.add_argument("--cpus", type=int, default=2, help="logical CPUs of a worker (default: 2)")
    for verb, meaning in {"env": "print what a shell needs to submit jobs", "down": "take all of it down"}.items():
        verbs.add_parser(verb, help=meaning)
    for verb, meaning in {"kill": "lose a worker", "cut": "pull its cable", "join": "bring it back"}.items():
        verbs.add_parser(verb, help=meaning).add_argument("host", metavar="WORKER")
    run = verbs.add_parser("run", help="run a program on a host, with the cluster's environment")
    run.add_argument("host", metavar="HOST")
    run.add_argument("words", nargs=argparse.REMAINDER, metavar="PROGRAM ...")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
