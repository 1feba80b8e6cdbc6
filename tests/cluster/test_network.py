"""Hosts in network namespaces: apart from each other, lost, cut off, and gone without a trace. No Ray."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local import hosts, network
from cluster.local.network import Network, NetworkError

SERVE = """
import socket
server = socket.create_server(("", 7000))
print(flush=True)
while True:
    server.accept()[0].sendall(b"hello")
"""
CALL = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000), timeout=1) as server:
    print(server.recv(9).decode())
"""
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(flush=True)
time.sleep(999)
"""


def test_where_there_can_be_no_hosts_the_reason_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert network.obstacle() == "network namespaces need root"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert network.obstacle().startswith("network namespaces need the commands ip and mount")


@pytest.mark.parametrize("name", ["", "Mb", "mb 1", "m/b", "twelve-chars"])
def test_names_that_are_no_links_are_refused(name: str) -> None:
    with pytest.raises(NetworkError, match="is no name for a link"):
        Network(name, ["head"])


def test_checkouts_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = hosts.own_name()
    monkeypatch.setattr(hosts, "ROOT", tmp_path)
    assert hosts.own_name() != here
    assert Network(hosts.own_name(), ["head"]).subnet.subnet_of(network.RANGE)


# ------------------------------------------------------------------------------------------- with namespaces


@pytest.fixture(scope="module")
def allowed() -> None:
    if reason := network.obstacle():
        pytest.skip(reason)


@pytest.fixture
def pair(allowed: None) -> Iterator[Network]:
    made = Network(hosts.own_name("mx"), ["a", "b"])
    made.down()
    made.up()
    yield made
    made.down()


def listening(net: Network, host: str, program: str = SERVE) -> "subprocess.Popen[str]":
    """A program on a host, which says when it is ready."""
    process = net.start(host, [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "\n"
    return process


def hears(net: Network, caller: str, called: str) -> bool:
    words = [sys.executable, "-c", CALL, net.hosts[called].address]
    done = net.run(caller, words, capture_output=True, text=True)
    assert done.returncode == 0 or "timed out" in done.stderr or "No route to host" in done.stderr, done.stderr
    return bool(done.stdout == "hello\n")


def ended(process: "subprocess.Popen[str]") -> int:
    with process:
        return process.wait(timeout=5)


@pytest.mark.cluster
def test_hosts_have_addresses_and_a_disk_of_their_own(pair: Network) -> None:
    server = listening(pair, "a")
    assert hears(pair, "b", "a")
    here = subprocess.run([sys.executable, "-c", CALL, pair.hosts["a"].address], capture_output=True, text=True)
    assert here.stdout == "hello\n", "the machine reaches its hosts"
    nowhere = subprocess.run([sys.executable, "-c", CALL, "127.0.0.1"], capture_output=True, text=True)
    assert "refused" in nowhere.stderr, "and that by the bridge alone"

    pair.run("a", ["touch", str(pair.own / "x")], check=True)
    assert pair.run("a", ["test", "-e", str(pair.own / "x")]).returncode == 0
    assert pair.run("b", ["test", "-e", str(pair.own / "x")]).returncode == 1
    assert not (pair.own / "x").exists()
    assert (pair.hosts["a"].disk / "x").exists()
    pair.down()
    assert ended(server) == -signal.SIGTERM


@pytest.mark.cluster
def test_a_cable_is_pulled_and_plugged_in_again(pair: Network) -> None:
    server = listening(pair, "a")
    pair.cut("a")
    assert not hears(pair, "b", "a")
    pair.mend("a")
    assert hears(pair, "b", "a")
    assert server.poll() is None
    pair.down()
    ended(server)


@pytest.mark.cluster
def test_a_lost_host_takes_its_processes_and_its_disk_along_and_no_other(pair: Network) -> None:
    lost, other = listening(pair, "a", DEAF), listening(pair, "b", DEAF)
    for host in pair.hosts:
        pair.run(host, ["touch", str(pair.own / "x")], check=True)
    pair.kill("a")
    assert ended(lost) == -signal.SIGKILL
    assert other.poll() is None
    assert [(place.disk / "x").exists() for place in pair.hosts.values()] == [False, True]
    assert pair.pids("a") == []
    assert len(pair.pids("b")) == 1
    pair.down()
    assert ended(other) == -signal.SIGKILL


@pytest.mark.cluster
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4])
def test_what_a_killed_start_has_left_is_taken_down(pair: Network, steps: int) -> None:
    """Up to some point of its way, a process in a half-made host included."""
    pair.down()
    half = Network(pair.name, ["a", "b"])
    label = half.hosts["a"].label
    commands = [
        ["mkdir", "-p", str(half.own)],
        ["ip", "link", "add", half.name, "type", "bridge"],
        ["ip", "netns", "add", label],
        ["ip", "link", "add", label, "type", "veth", "peer", "name", "eth0", "netns", label],
    ]
    for command in commands[:steps]:
        subprocess.run(command, check=True)
    left = subprocess.Popen(["ip", "netns", "exec", label, "sleep", "999"]) if steps > 2 else None
    assert half.is_up == bool(steps)
    Network(pair.name, []).down()
    assert not half.is_up
    assert left is None or left.wait(timeout=5) == -signal.SIGTERM
    half.up()
    with pytest.raises(NetworkError, match="is there already; take it down first"):
        pair.up()


@pytest.mark.cluster
def test_a_refusal_leaves_nothing_and_names_the_reason(pair: Network) -> None:
    names = (f"my{number}" for number in range(100_000))
    same = next(name for name in names if Network(name, []).subnet == pair.subnet)
    other = Network(same, ["a"])
    with pytest.raises(
        NetworkError, match=rf"10\.77\.\d+\.0/24 is in use \(dev {pair.name}\); give the network another"
    ):
        other.up()
    twice = Network(hosts.own_name("mz"), ["a", "a-b"])
    twice.folder.mkdir()
    (twice.folder / "disks").write_text("in the way")
    with pytest.raises(NetworkError, match="is there already"):
        twice.up()
    twice.down()
    assert not other.is_up
    assert not twice.is_up
    assert pair.is_up
