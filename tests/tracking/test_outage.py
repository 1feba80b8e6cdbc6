"""A real tracking server with accounts that is away, hangs, loses answers, comes back: nothing is lost or doubled."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from midibert_ray import tracking
from midibert_ray.settings.config import Config, ConfigError
from midibert_ray.settings.overrides import flatten, replace
from midibert_ray.tracking import Tracker, delivery, sender
from midibert_ray.tracking.spool import Spool, UnreachableError, points
from tests.mlflow_server import ACCOUNT, PASSWORD, Relay, Server, serving

pytestmark = pytest.mark.slow

STUDY = tracking.study_experiment("s")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def relay(server: Server) -> Iterator[Relay]:
    relay = Relay(server.port)
    yield relay
    relay.set("closed")


@pytest.fixture
def config(relay: Relay, tmp_path: Path) -> Config:
    """Records on the server, through the relay."""
    return replace(Config(), {"storage.root": str(tmp_path / "root"), "tracking.uri": relay.uri})


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the server, and times that suit a test."""
    for name, value in ACCOUNT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    times = {"LONGEST_PAUSE_S": 0.5, "POLL_S": 0.1, "STALE_S": 4.0, "BEAT_S": 0.5, "SETTLE_S": 0.2}
    for name, seconds in times.items():
        monkeypatch.setattr(sender, name, seconds)


def wait_for(condition: Callable[[], object], limit_s: float = 120) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def write(config: Config, name: str, between: Callable[[int], None] = lambda step: None) -> None:
    """A study of two trials as its recorder writes it, with a resumed trial; `between` is called before every step."""
    tracker = Tracker(tracking.uris(config))
    parent = tracker.open(STUDY, name, name, params=flatten(config), tags={"stage": "study"})
    parent.extend(tables=["1", "2"])
    trials = [
        tracker.open(STUDY, f"{name}/{trial}", trial, params={"lr": 0.1}, tags={"variant": trial}, parent=name)
        for trial in ("one", "two")
    ]
    trials[0].datasets([{"name": "pop909:train", "digest": "d", "uri": "/t", "context": "training", "profile": "{}"}])
    for step in range(1, 41):
        between(step)
        for number, trial in enumerate(trials):
            trial.log({"train/loss": 1 / step + number, "train/accuracy": step / 40}, step)
            if step % 10 == 0:
                trial.log({"valid/loss": 2 / step + number}, step)
    again = Tracker(tracking.uris(config)).open(STUDY, f"{name}/two", "two", params={"lr": 0.2}, tags={}, parent=name)
    for step in range(31, 51):  # from the last checkpoint on
        between(step)
        again.log({"train/loss": 1 / step + 1, "train/accuracy": step / 40}, step)
    parent.extend(tables=["3", "1"])
    parent.json({"a": 1}, "folder/a.json")
    trials[0].model("/no/weights/here", "note", {"task": "melody"})
    trials[0].register(f"{name}-model".replace(" ", "-"))
    trials[0].finish()
    again.tag(failure="as planned")
    again.finish("FAILED")
    parent.data(bytes(range(256)) * 100, "b.bin")
    parent.finish()


def content(config: Config, name: str) -> Any:
    """All that MLflow holds of such a study: every point with its step and value, in the order of its timestamps."""
    tracker = Tracker(tracking.uris(config))
    (parent,) = [run for run in tracker.parents(STUDY) if run.info.run_name == name]
    runs = [parent, *tracker.children(STUDY, parent.info.run_id)]
    assert [run.info.run_name for run in runs] == [name, "one", "two"]
    curves = {}
    for run in runs:
        for key in run.data.metrics:
            history = tracker._client.get_metric_history(run.info.run_id, key)
            ordered = sorted(history, key=lambda point: (point.timestamp, point.step))
            curves[run.info.run_name, key] = [(point.step, point.value) for point in ordered]
    one = runs[1]
    experiment = one.info.experiment_id
    logged = tracker._client.search_logged_models([experiment], f"source_run_id = '{one.info.run_id}'")
    versions = tracker._client.search_model_versions(f"name = '{name.replace(' ', '-')}-model'")
    own = ("stage", "variant", "tables", "failure")
    return {
        "curves": curves,
        "status": [run.info.status for run in runs],
        "tags": [{key: value for key, value in run.data.tags.items() if key in own} for run in runs],
        "params": [{key: value for key, value in run.data.params.items() if "." not in key} for run in runs],
        "data": [(each.dataset.name, each.tags[0].value) for each in one.inputs.dataset_inputs],
        "models": [(str(each.status), each.params) for each in logged],
        "outputs": len(one.outputs.model_outputs),
        "versions": [(str(version.version), version.run_id == one.info.run_id) for version in versions],
        "files": [tracker.artifact(parent.info.run_id, file) for file in ("folder/a.json", "b.bin")],
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same, in sqlite."""
    config = replace(Config(), {"storage.root": str(tmp_path_factory.mktemp("undisturbed"))})
    write(config, "calm")
    found = content(config, "calm")
    assert found["curves"]["two", "train/loss"] == [(step, 1 / step + 1) for step in range(1, 51)]
    assert found["status"] == ["FINISHED", "FINISHED", "FAILED"]
    assert found["data"] == [("pop909:train", "training")]
    assert (found["models"], found["outputs"]) == ([("READY", {"task": "melody"})], 1)
    assert [right for _, right in found["versions"]] == [True]
    assert found["tags"][0] == {"stage": "study", "tables": "1,2,3"}
    return found


def check(config: Config, name: str, undisturbed: Any) -> None:
    assert Spool(tracking.uris(config).spool).names() == []
    with pytest.MonkeyPatch.context() as patient:  # these answers are waited for, however busy the machine is
        patient.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
        found = content(config, name)
    for curve, values in undisturbed["curves"].items():
        assert found["curves"][curve if curve[0] != "calm" else (name, curve[1])] == values, curve
    assert {key: found[key] for key in found if key != "curves"} == {
        key: undisturbed[key] for key in undisturbed if key != "curves"
    }
    assert len(found["curves"]) == len(undisturbed["curves"])


# ------------------------------------------------------------------------------------------------------ accounts


@pytest.mark.parametrize("password", ["", "wrong", "password1234"])
def test_a_job_without_the_password_ends_at_once(
    config: Config, password: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if password:
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    else:
        for name in ACCOUNT:
            monkeypatch.delenv(name)
    with (
        pytest.raises(
            ConfigError, match=r"tracking\.uri=http://.* refuses access \(401.*MLFLOW_TRACKING_USERNAME and"
        ) as e,
        tracking.recording(config),
    ):
        raise AssertionError("the job goes on")
    shown = str(e.value) + caplog.text
    assert not password or password not in shown
    assert PASSWORD not in shown
    with pytest.raises(UnreachableError, match="refuses access"):
        Tracker(tracking.uris(config)).studies()


def test_a_password_that_is_changed_meanwhile_is_an_outage(
    config: Config, undisturbed: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def change(step: int) -> None:
        if step == 20:
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "old")
            wait_for(lambda: "refuses access" in caplog.text)

    with tracking.recording(config):
        write(config, "locked out", change)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    check(config, "locked out", undisturbed)
    assert len(caplog.records) == 2 and "points arrived late" in caplog.text
    assert not {PASSWORD, "old"} & set(caplog.text.split())


def test_mlflow_does_not_start_with_the_password_that_everybody_knows(tmp_path: Path) -> None:
    process = Server(tmp_path, password="password1234").launch()
    try:
        assert process.wait(timeout=180) != 0
    finally:
        process.kill()
    assert "password" in (tmp_path / "server.log").read_text()


# ------------------------------------------------------------------------------------------------------- outages


@pytest.mark.parametrize("fault", ["closed", "silent", "deaf"])
def test_an_outage_leaves_no_trace(
    config: Config, relay: Relay, undisturbed: Any, fault: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """`deaf`: the server carries everything out, and its answers are lost."""
    box = Spool(tracking.uris(config).spool)

    def lines(words: str) -> int:
        return sum(words in line.message for line in caplog.records)

    def repair() -> None:
        wait_for(lambda: lines("does not answer") > lines("points arrived late"))
        # The connection that is cut when a fault begins makes an outage, too.
        wait_for(lambda: fault != "deaf" or relay.lost > lines("points arrived late"))
        relay.set("open")

    def disturb(step: int) -> None:
        if step in (1, 5, 25):
            repair()
            wait_for(lambda: not box.names() and lines("does not answer") == lines("points arrived late"))
        if step in (3, 15, 45):
            relay.set(fault)

    relay.set(fault)  # the first run is opened while it is away
    with tracking.recording(config):
        write(config, fault, disturb)
        repair()
    check(config, fault, undisturbed)
    assert lines("does not answer") == lines("points arrived late") == 4
    assert len(caplog.records) == 8, caplog.text
    assert (relay.lost >= 4) == (fault == "deaf")


def test_a_server_that_is_stopped_and_started_again(config: Config, server: Server, undisturbed: Any) -> None:
    def restart(step: int) -> None:
        if step == 10:
            server.stop()
        if step == 30:
            server.start()

    with tracking.recording(config):
        write(config, "restarted", restart)
    check(config, "restarted", undisturbed)


def test_a_run_that_is_made_late_and_twice_is_one(
    config: Config, relay: Relay, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server carries out what was given up and repeated in the meantime."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    box = Spool(tracking.uris(config).spool)

    def delay(step: int) -> None:
        if step == 1:
            wait_for(lambda: relay.held >= 3)  # MLflow's client asks twice, then the sender again
            relay.set("open")

    relay.set("late")
    with tracking.recording(config):
        write(config, "twice", delay)
        wait_for(lambda: not box.names())
    check(config, "twice", undisturbed)


def test_a_server_that_hangs(
    config: Config, server: Server, undisturbed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with tracking.recording(config):
        os.killpg(server.pid, signal.SIGSTOP)
        try:
            write(config, "hanging")
            wait_for(lambda: "does not answer" in caplog.text)
        finally:
            os.killpg(server.pid, signal.SIGCONT)
    check(config, "hanging", undisturbed)


def test_an_outage_that_has_lasted_long_is_not_waited_for_again(
    config: Config, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, tries = tracking.uris(config), list[float]()
    monkeypatch.setattr(delivery, "PATIENCE_S", 3.0)
    one = sender.Sender.step
    monkeypatch.setattr(sender.Sender, "step", lambda self: tries.append(time.monotonic()) or one(self))
    relay.set("closed")
    with tracking.recording(config):
        write(config, "away")
        wait_for(lambda: tries and tries[-1] - tries[0] > delivery.PATIENCE_S)
        before = len(tries)
        assert not tracking.caught_up(place)
        assert len(tries) - before <= 3, "one more, and what the thread of the job does meanwhile"
    assert Spool(place.spool).names(), "they wait"


def test_a_writer_does_not_wait_for_a_server(config: Config, relay: Relay, undisturbed: Any) -> None:
    relay.set("silent")
    place = tracking.uris(config)
    write(config, "afterwards")  # nobody sends: it returns all the same
    box = Spool(place.spool)
    before = box.names()
    assert points(before) == 2 * (40 * 2 + 4) + 20 * 2
    assert all(PASSWORD.encode() not in (box.get(name) or b"") for name in before)
    relay.set("closed")
    with pytest.raises(UnreachableError, match="does not answer"):
        tracking.flush(place)
    assert box.names() == before
    relay.set("open")
    tracking.flush(place)
    check(config, "afterwards", undisturbed)
    tracking.flush(place)


def test_a_job_that_ends_first_says_how_the_rest_is_sent(
    config: Config, relay: Relay, undisturbed: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("midibert_ray.tracking.delivery.PATIENCE_S", 1.0)
    with tracking.recording(config):
        write(config, "left", lambda step: relay.set("closed") if step == 20 else None)
    left = len(Spool(tracking.uris(config).spool).names())
    assert left
    last = caplog.records[-1].message
    settings = f"storage.root={config.storage.root} tracking.uri={relay.uri}"
    command = f"python jobs/report.py --flush --preset base {settings}"
    assert f"({left} records) wait in " in last and last.endswith(command)
    relay.set("open")
    done = subprocess.run(
        [sys.executable, *command.split()[1:]], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"({left} records) sent to {relay.uri}" in done.stdout
    check(config, "left", undisturbed)


def test_a_server_that_is_there_gets_everything_and_first_what_an_earlier_job_has_left(
    config: Config, relay: Relay, undisturbed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    relay.set("closed")
    write(config, "earlier")
    relay.set("open")
    with tracking.recording(config):
        write(config, "later")
    check(config, "earlier", undisturbed)
    check(config, "later", undisturbed)
    assert caplog.records == []


WRITER = """
import json, sys
from midibert_ray import tracking
from midibert_ray.settings.overrides import from_flat
from midibert_ray.tracking import sender
from tests.tracking.test_outage import write
sender.LONGEST_PAUSE_S = 0.5
config = from_flat(json.loads(sys.argv[1]))
with tracking.recording(config):
    write(config, "killed")
    print("written", flush=True)
"""


@contextmanager
def writer(config: Config) -> Iterator["subprocess.Popen[str]"]:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", WRITER, json.dumps(flatten(config))]
    with subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_writer_that_is_killed_while_it_sends(config: Config, relay: Relay, undisturbed: Any) -> None:
    box = Spool(tracking.uris(config).spool)
    relay.set("silent")
    with writer(config) as process:
        assert process.stdout and process.stdout.readline() == "written\n"
        all_of_it = len(box.names())
        relay.set("deaf")  # what it sends last arrives, and it does not learn of it
        wait_for(lambda: relay.lost > 1)
        relay.delay_s = 0.1  # it does not get far before it is killed
        relay.set("open")
        wait_for(lambda: len(box.names()) < 0.8 * all_of_it)
        process.send_signal(signal.SIGKILL)
    assert 0 < len(box.names()) < 0.8 * all_of_it
    relay.delay_s = 0.0
    with tracking.recording(config):  # the next job, which has to see that the one before is dead
        pass
    check(config, "killed", undisturbed)


def test_a_run_that_somebody_deletes_takes_nothing_with_it(
    config: Config, undisturbed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    place = tracking.uris(config)
    tracker = Tracker(place)
    log = tracker.open("midibert/x", "gone", "gone", params={}, tags={})
    tracking.flush(place)
    run = tracker.find("midibert/x", "gone")
    assert run
    tracker._client.delete_run(run.info.run_id)
    with tracking.recording(config):
        for step in range(5):
            log.log({"loss": 1.0}, step)
        write(config, "beside it")
    check(config, "beside it", undisturbed)
    (warning,) = [line for line in caplog.records if line.levelno >= logging.WARNING]
    assert "a record of midibert/x/gone was not taken" in warning.message
