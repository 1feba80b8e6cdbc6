"""A pipeline that is submitted to a head, and what its user sees of it."""

import signal
from dataclasses import dataclass

from midibert_ray.settings.config import Config
from tests.jobs.head import Cluster, Tunnel
from tests.jobs.test_pipeline import command, everything_below


@dataclass(frozen=True)
class Visit:
    """A pipeline that its user left by Ctrl-C and came back to, over a connection that was lost once."""

    config: Config
    job: str
    left: str
    """What was said when it was left."""
    seen: str
    """The last line of its log before that, at which the connection was lost later."""
    log: str
    said: str
    words: list[str]
    """Its command line."""
    jobs: list[str]
    """What was submitted meanwhile."""


def come_and_go(cluster: Cluster) -> Visit:
    """Submit it, leave it, join it again, lose the connection, and see it to its end."""
    config, before = everything_below(cluster.home), cluster.jobs()
    words = [word for word in command("pipeline", config)[1:] if not word.startswith("storage.root=")]
    words.append("storage.root=~/root")  # everything_below's, as somebody at home there writes it
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore Ctrl-C for what runs in the background

    with cluster.start(*words) as process:
        assert process.stdout
        assert process.stderr
        log = ""
        while not (seen := process.stdout.readline()).startswith("corpus"):
            assert seen, log + process.stderr.read()
            log += seen
        process.send_signal(signal.SIGINT)
        left = process.stderr.read()
    assert process.returncode == 130, left
    (job,) = cluster.jobs().keys() - before

    tunnel = Tunnel(int(cluster.address.rpartition(":")[2]))
    with cluster.start("--address", tunnel.address, *words[:3], *reversed(words[3:])) as process:
        assert process.stdout
        assert process.stderr
        log = ""
        for line in process.stdout:
            log += line
            if line == seen:
                tunnel.cut()
        said = process.stderr.read()
    assert process.returncode == 0, log + said
    return Visit(config, job, left, seen, log, said, words, list(cluster.jobs().keys() - before))
