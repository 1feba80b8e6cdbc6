"""Several hosts on one machine: each has a network namespace, an address and a folder of its own; a bridge joins them.

By `ip` and `mount`, as root on Linux. Whatever is made bears the name of its network, so that all of it is found again
by that name and taken down, whoever made it and however far they came.
"""

import ipaddress
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RANGE = ipaddress.ip_network("10.77.0.0/16")
"""Where networks have their addresses, 256 of them, by a hash of their names."""

_INSIDE = 'mount --bind "$1" "$2" && mount --bind /dev/null /etc/resolv.conf && shift 2 && exec "$@"'
"""A shell line that starts a program on a host: for it and its children alone, the host's disk appears at
`Network.own`, and no name server, which no host would reach, is waited for."""


class NetworkError(RuntimeError):
    """Hosts cannot be made, or not be taken down."""


@dataclass(frozen=True)
class Host:
    """A host of a network."""

    name: str

    label: str
    """Name of its namespace, and of its cable's end at the bridge."""

    address: str

    disk: Path
    """Folder that the host has at `Network.own`."""


def obstacle() -> str:
    """Why there can be no hosts on this machine; empty where there can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are a thing of Linux"
    if missing := [program for program in ("ip", "mount") if not shutil.which(program)]:
        return f"network namespaces need the commands {' and '.join(missing)} (Debian: iproute2, mount)"
    if os.geteuid():
        return "network namespaces need root"
    probe = Network(f"mb{os.getpid()}", ["x"])
    try:
        probe.up()
        probe.run("x", ["true"], check=True)
    except (NetworkError, subprocess.CalledProcessError, OSError) as error:
        return f"network namespaces are not allowed here: {error}"
    finally:
        probe.down()
    return ""


class Network:
    """Some hosts on a bridge, by name; it need not be up."""

    def __init__(self, name: str, hosts: Sequence[str]) -> None:
        """Describe a network.

        Args:
            name: begins the names of all that is made; two networks of different names do not disturb each other.
            hosts: names of its hosts; that of the network, a dash and one of these must make 15 letters at most.

        Raises:
            NetworkError: for a name that Linux does not take.
        """
        for label in [name, *(f"{name}-{host}" for host in hosts)]:
            if not re.fullmatch(r"[a-z][a-z0-9-]{0,14}", label):
                raise NetworkError(f"{label!r} is no name for a link; use at most 15 of a-z, 0-9 and -")
        self.name = name
        self.subnet = list(RANGE.subnets(new_prefix=24))[zlib.crc32(name.encode()) % 256]
        self.folder = Path(tempfile.gettempdir(), name)
        self.own = self.folder / "own"
        """Where every host has its own disk, and nobody sees another's."""
        self.gateway = str(self.subnet[1])
        self.hosts = {
            host: Host(host, f"{name}-{host}", str(self.subnet[10 + number]), self.folder / "disks" / host)
            for number, host in enumerate(hosts)
        }

    @property
    def is_up(self) -> bool:
        """True where any of it is there."""
        return bool(self._links() or self._namespaces() or self.folder.exists())

    def up(self) -> None:
        """Make the bridge and all hosts; nothing is left where that fails.

        Raises:
            NetworkError: where they are there already, the addresses are taken, or Linux refuses.
        """
        if self.is_up:
            raise NetworkError(f"the network {self.name} is there already; take it down first")
        self._check_addresses()
        try:
            self.folder.mkdir(mode=0o700)
            self.own.mkdir()
            _ip("link", "add", self.name, "type", "bridge")
            _ip("address", "add", f"{self.gateway}/{self.subnet.prefixlen}", "dev", self.name)
            _ip("link", "set", self.name, "up")
            for host in self.hosts.values():
                self._add(host)
        except BaseException:
            self.down()
            raise

    def _check_addresses(self) -> None:
        """Refuse addresses that this machine has or reaches otherwise than by its default route."""
        for route in json.loads(_ip("-json", "-4", "route")):
            if route["dst"] != "default" and ipaddress.ip_network(route["dst"]).overlaps(self.subnet):
                raise NetworkError(f"{self.subnet} is in use (dev {route.get('dev')}); give the network another name")

    def _add(self, host: Host) -> None:
        host.disk.mkdir(parents=True)
        _ip("netns", "add", host.label)
        _ip("link", "add", host.label, "type", "veth", "peer", "name", "eth0", "netns", host.label)
        _ip("link", "set", host.label, "master", self.name, "up")
        _ip("-n", host.label, "address", "add", f"{host.address}/{self.subnet.prefixlen}", "dev", "eth0")
        for link in ("lo", "eth0"):
            _ip("-n", host.label, "link", "set", link, "up")
        # Nothing is forwarded, but programs find their own address by asking for the way to some other one.
        _ip("-n", host.label, "route", "add", "default", "via", self.gateway)

    def command(self, host: str, words: Sequence[str]) -> list[str]:
        """The command line that runs a program on a host."""
        place = self.hosts[host]
        return ["ip", "netns", "exec", place.label, "sh", "-c", _INSIDE, "sh", str(place.disk), str(self.own), *words]

    def start(self, host: str, words: Sequence[str], **options: Any) -> "subprocess.Popen[Any]":
        """Start a program on a host; options are those of Popen."""
        return subprocess.Popen(self.command(host, words), **options)

    def run(
        self, host: str, words: Sequence[str], *, check: bool = False, **options: Any
    ) -> "subprocess.CompletedProcess[Any]":
        """Run a program on a host to its end; options are those of subprocess.run."""
        return subprocess.run(self.command(host, words), check=check, **options)

    def pids(self, host: str) -> list[int]:
        """Ids of the processes on a host."""
        return _pids([self.hosts[host].label])

    def kill(self, host: str) -> None:
        """End a host as a lost machine ends: everything on it at once, and its disk is gone."""
        place = self.hosts[host]
        _end([place.label], signal.SIGKILL, limit_s=10)
        shutil.rmtree(place.disk)
        place.disk.mkdir()

    def cut(self, host: str) -> None:
        """Pull a host's cable."""
        _ip("link", "set", self.hosts[host].label, "down")

    def mend(self, host: str) -> None:
        """Plug it in again."""
        _ip("link", "set", self.hosts[host].label, "up")

    def down(self) -> None:
        """End what runs on the hosts and remove them, the bridge and the folder, as far as they are there.

        Raises:
            NetworkError: where something is left.
        """
        namespaces = self._namespaces()
        _end(namespaces, signal.SIGTERM, limit_s=5)
        _end(namespaces, signal.SIGKILL, limit_s=10)
        for link in self._links():
            _ip("link", "delete", link)
        for namespace in namespaces:
            _ip("netns", "delete", namespace)
        if self.folder.exists():
            shutil.rmtree(self.folder)
        if self.is_up:
            raise NetworkError(f"left over: {[*self._links(), *self._namespaces(), self.folder]}")

    def _links(self) -> list[str]:
        """Its links on this machine, cables before the bridge."""
        names = [link["ifname"] for link in json.loads(_ip("-json", "link"))]
        return sorted((name for name in names if self._is_mine(name)), reverse=True)

    def _namespaces(self) -> list[str]:
        return [name for name in map(_first_word, _ip("netns", "list").splitlines()) if self._is_mine(name)]

    def _is_mine(self, label: str) -> bool:
        return label == self.name or label.startswith(f"{self.name}-")


def _first_word(line: str) -> str:
    return line.split()[0]


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NetworkError(f"`{shlex.join(['ip', *words])}`: {done.stderr.strip()}")
    return done.stdout


def _pids(namespaces: Sequence[str]) -> list[int]:
    return [int(pid) for namespace in namespaces for pid in _ip("netns", "pids", namespace).split()]


def _end(namespaces: Sequence[str], with_signal: signal.Signals, limit_s: float) -> None:
    """Send a signal to every process of some namespaces, later ones included, and wait until all have ended."""
    deadline, told = time.monotonic() + limit_s, set[int]()
    while (alive := set(_pids(namespaces))) and time.monotonic() < deadline:
        for pid in alive - told:
            with suppress(ProcessLookupError):
                os.kill(pid, with_signal)
        told |= alive
        time.sleep(0.1)
