"""Curves without gaps or duplicates, on a real MLflow over sqlite."""

import json
import logging
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from midibert_ray import storage, tracking
from midibert_ray.settings.config import Config, ConfigError
from midibert_ray.settings.overrides import flatten, replace

STUDY = tracking.study_experiment("s")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Config:
    root = tmp_path_factory.mktemp("root")
    shutil.copy2(empty_database, root)
    return replace(Config(), {"storage.root": str(root)})


def test_a_run_is_found_again_and_its_curve_goes_on(config: Config) -> None:
    tracker = tracking.Tracker(tracking.uris(config))
    first = tracker.open("midibert/x", "key-1", "first", params=flatten(config), tags={"seed": 1})
    for step in range(1, 4):
        first.log({"train/loss": step, "train/loss/pitch": 2 * step}, step)

    again = tracking.Tracker(tracking.uris(config)).open("midibert/x", "key-1", "first", params={"seed": 7}, tags={})
    for step in range(2, 6):
        again.log({"train/loss": 10 * step}, step)
    again.finish()

    (run,) = tracker.parents("midibert/x")
    assert tracker.curve(run.info.run_id, "train/loss") == [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50)]
    assert tracker.find("midibert/x", "key-1") is not None
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == str(config.seed)
    assert run.data.params["corpora.names"] == "pop909,asap,pop1k7,pianist8,emopia"


def test_parents_and_children(config: Config) -> None:
    tracker = tracking.Tracker(tracking.uris(config))
    tracker.open("midibert/studies/s", "s-1", "s-1", params={}, tags={})
    for name in ("a", "b"):
        tracker.open("midibert/studies/s", f"s-1/{name}", name, params={}, tags={}, parent="s-1")
    (parent,) = tracker.parents("midibert/studies/s")
    assert parent.info.run_name == "s-1"
    assert {run.info.run_name for run in tracker.children("midibert/studies/s", parent.info.run_id)} == {"a", "b"}
    assert tracker.studies() == ["s"]
    assert tracker.find("midibert/studies/none", "x") is None


def test_artifacts_lie_below_the_root(config: Config) -> None:
    tracker = tracking.Tracker(tracking.uris(config))
    log = tracker.open("midibert/x", "key-2", "second", params={}, tags={})
    log.json({"a": [1]}, "folder/a.json")
    log.data(b"\x00\x01", "b.bin")
    run = tracker.find("midibert/x", "key-2")
    assert run is not None
    assert tracker.artifact(run.info.run_id, "b.bin") == b"\x00\x01"
    assert b"[\n" in (tracker.artifact(run.info.run_id, "folder/a.json") or b"")
    assert tracker.artifact(run.info.run_id, "absent") is None
    assert list(Path(config.storage.root, "mlflow").rglob("b.bin"))


def test_places_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tracking\.uri is empty"):
        tracking.uris(replace(Config(), {"storage.root": "s3://bucket/x"}))
    for uri in ("mlruns", "file:///mlruns", "ftp://host/x"):
        with pytest.raises(ConfigError, match=f"tracking.uri='{uri}' is not allowed; use"):
            tracking.uris(replace(Config(), {"tracking.uri": uri}))
    assert tracking.uris(replace(Config(), {"tracking.uri": "HTTP://host:5000"})).artifacts == ""
    server = tracking.uris(replace(Config(), {"tracking.uri": "http://host:5000", "storage.root": "s3://bucket/x"}))
    assert server == tracking.TrackingUris("http://host:5000", "", "s3://bucket/x/spool/http-host-5000")
    database = replace(Config(), {"tracking.uri": "sqlite:////a/runs.db", "storage.root": "s3://bucket/x"})
    assert tracking.uris(database) == tracking.TrackingUris("sqlite:////a/runs.db", "file:///a/mlflow")


def test_tags_that_are_lists_grow(config: Config) -> None:
    tracker = tracking.Tracker(tracking.uris(config))
    log = tracker.open("midibert/x", "key-3", "third", params={}, tags={"tables": "1"})
    log.extend(tables=["2", "1"], encoder=[])
    log.extend(tables=["3", "2"], encoder=["a", "a"])
    run = tracker.find("midibert/x", "key-3")
    assert run is not None
    assert (run.data.tags["tables"], run.data.tags["encoder"]) == ("1,2,3", "a")


@pytest.mark.slow
def test_a_database_appears_whole_although_its_maker_is_killed(tmp_path: Path) -> None:
    config = replace(Config(), {"storage.root": str(tmp_path / "root")})
    code = "import sys; from midibert_ray import tracking; tracking.Tracker(tracking.TrackingUris(sys.argv[1], ''))"
    process = subprocess.Popen([sys.executable, "-c", code, tracking.uris(config).uri])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("root/.mlflow.db.*/mlflow.db")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not Path(config.storage.root, "mlflow.db").exists()
    assert tracking.Tracker(tracking.uris(config)).studies() == []
    assert Path(config.storage.root, "mlflow.db").exists()


def test_an_address_makes_nothing_and_its_command_can_be_pasted(tmp_path: Path) -> None:
    place = tracking.uris(replace(Config(), {"storage.root": str(tmp_path / "a b")}))
    assert not list(tmp_path.iterdir())
    setting, *words = shlex.split(place.command())
    assert setting == "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"
    assert words[1:] == ["ui", "--backend-store-uri", f"sqlite:///{tmp_path}/a b/mlflow.db"]
    assert shutil.which(words[0])
    database = tracking.uris(replace(Config(), {"tracking.uri": "postgresql+psycopg2://u@host/db"}))
    assert database.command().endswith("mlflow ui --backend-store-uri postgresql+psycopg2://u@host/db")


def test_nothing_waits_for_a_database(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    where = tracking.uris(config)
    with tracking.recording(config):
        tracking.Tracker(where).open("midibert/x", "key-4", "fourth", params={}, tags={}).log({"loss": 1.0}, 1)
        assert tracking.caught_up(where)
    assert not Path(config.storage.root, "spool").exists()
    assert tracking.amount(where) == "0 points of curves (0 records) wait"
    tracking.flush(where)
    assert caplog.messages[-1].endswith("is a database, which takes everything at once: nothing waits")


def test_the_command_that_sends_what_is_left_can_be_pasted(tmp_path: Path) -> None:
    changes = {"storage.root": "s3://bucket/x?endpoint_override=h:1&scheme=http", "tracking.uri": "http://host:5000"}
    words = shlex.split(tracking.flush_command(replace(Config(), changes), "ablation"))
    assert words == [
        *("python", "jobs/report.py", "ablation", "--flush", "--preset", "base"),
        *(f"{name}={value}" for name, value in changes.items()),
    ]


def study(config: Config, steps: range) -> tracking.Tracker:
    """A study of one trial, as each start of its job opens it."""
    tracker = tracking.Tracker(tracking.uris(config))
    tracker.open(STUDY, "s-1", "s-1", params=flatten(config), tags={"stage": "study"})
    trial = tracker.open(STUDY, "s-1/a", "a", params={"lr": 1}, tags={"task": "melody"}, parent="s-1")
    for step in steps:
        trial.log({"loss": step}, step)
    return tracker


@pytest.mark.parametrize(
    "deleted",
    [
        pytest.param("parent", marks=pytest.mark.slow),
        pytest.param("trial", marks=pytest.mark.slow),
        "both",
        "experiment",
    ],
)
def test_runs_that_were_deleted_are_restored_at_the_next_start(
    recorded: Config, deleted: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = study(recorded, range(3))
    (parent,) = tracker.parents(STUDY)
    (trial,) = tracker.children(STUDY, parent.info.run_id)
    if deleted == "experiment":
        tracker._client.delete_experiment(parent.info.experiment_id)
    for run in (parent, trial):
        if deleted in ("both", "parent" if run is parent else "trial"):
            tracker._client.delete_run(run.info.run_id)

    tracker = study(recorded, range(1, 5))
    (again,) = tracker.parents(STUDY)
    (child,) = tracker.children(STUDY, again.info.run_id)
    assert (again.info.run_id, child.info.run_id) == (parent.info.run_id, trial.info.run_id)
    assert tracker.curve(child.info.run_id, "loss") == [(step, step) for step in range(5)], "no gap"
    said = {
        "parent": ["run s-1"],
        "trial": ["run s-1/a"],
        "both": ["run s-1", "run s-1/a"],
        "experiment": ["experiment"],
    }
    warnings = [line.message for line in caplog.records if line.levelno >= logging.WARNING]
    for message, words in zip(warnings, said[deleted], strict=True):
        assert f"the {words} " in message and "was deleted in MLflow; it is restored" in message


@pytest.mark.parametrize("deleted", ["run", "experiment"])
def test_what_is_deleted_while_a_job_writes_to_it_is_restored(
    recorded: Config, deleted: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = tracking.Tracker(tracking.uris(recorded))
    run = tracker.open(STUDY, "s-1", "s-1", params={"lr": 1}, tags={})
    run.log({"loss": 1}, 1)
    (found,) = tracker.parents(STUDY)
    if deleted == "run":
        tracker._client.delete_run(found.info.run_id)
    else:
        tracker._client.delete_experiment(found.info.experiment_id)
    for point in (2, 3):
        run.log({"loss": point}, point)
    run.finish()
    (again,) = tracker.parents(STUDY)
    assert (again.info.run_id, again.info.status) == (found.info.run_id, "FINISHED")
    assert tracker.curve(again.info.run_id, "loss") == [(1, 1), (2, 2), (3, 3)]
    assert caplog.text.count("was deleted in MLflow; it is restored") == 1


def test_a_run_that_was_deleted_for_good_is_made_anew(recorded: Config) -> None:
    tracker = study(recorded, range(3))
    (parent,) = tracker.parents(STUDY)
    for run in (parent, *tracker.children(STUDY, parent.info.run_id)):
        tracker._client._tracking_client.store._hard_delete_run(run.info.run_id)  # as `mlflow gc` does
    tracker = study(recorded, range(1, 5))
    (again,) = tracker.parents(STUDY)
    (child,) = tracker.children(STUDY, again.info.run_id)
    assert again.info.run_id != parent.info.run_id
    assert [step for step, _ in tracker.curve(child.info.run_id, "loss")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_database_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere/runs.db"
    study(replace(Config(), {"storage.root": str(tmp_path / "root"), "tracking.uri": f"sqlite:///{path}"}), range(1))
    assert [item for item in path.parent.glob("*.db*") if item.stat().st_mode & 0o777 != 0o600] == []
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_processes_that_only_report_do_not_import_mlflow() -> None:
    code = "import sys; from midibert_ray import tracking; tracking.RunLog; assert 'mlflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_a_job_leaves_is_its_owners_alone(tmp_path: Path) -> None:
    config = replace(Config(), {"storage.root": str(tmp_path / "root")})
    with tracking.recording(config):
        study(config, range(1)).log(STUDY, "s-1").text("a", "folder/a.txt")
        storage.write_bytes(f"{config.storage.root}/runs/a/result.json", b"{}")
        subprocess.run(["touch", tmp_path / "root/by-a-process"], check=True)
    (tmp_path / "after").touch()
    made = [path for path in tmp_path.rglob("*") if path.name != "after"]
    assert {"mlflow.db", "a.txt", "result.json", "by-a-process"} <= {path.name for path in made}
    assert [path for path in made if path.stat().st_mode & 0o077] == []
    assert (tmp_path / "after").stat().st_mode & 0o044, "the process is as it was before"


def test_mlflow_has_our_experiments_alone_and_a_link_opens_the_runs_of_one(config: Config) -> None:
    tracker = tracking.Tracker(tracking.uris(config))
    tracker.open("midibert/linked", "key-5", "fifth", params={}, tags={})
    experiments = tracker._client.search_experiments()
    assert "Default" not in [each.name for each in experiments]
    (own,) = [each for each in experiments if each.name == "midibert/linked"]
    command, link = tracker.browse("midibert/linked").splitlines()
    assert command == tracker.uris.command()
    page = f"/#/experiments/{own.experiment_id}/runs?workflowType=machine_learning"
    assert link == f"then open http://127.0.0.1:5000{page}"
    away = tracking.Tracker(tracking.TrackingUris("http://127.0.0.1:9/", "", "unused"))
    assert away.browse("midibert/linked") == "http://127.0.0.1:9/#/experiments?workflowType=machine_learning"


def test_a_run_has_data_and_a_table_however_often_they_are_said(config: Config) -> None:
    tracker = tracking.Tracker(tracking.uris(config))
    log = tracker.open("midibert/x", "key-6", "sixth", params={}, tags={tracking.NOTE: "A sentence."})
    facts = {"digest": "d" * 36, "uri": "/root/tokens/pop909", "profile": '{"protocol": "clean"}'}
    for _ in range(2):
        log.datasets(facts | {"name": f"pop909:{split}", "context": use} for split, use in (("a", "b"), ("c", "d")))
        table = tracking.to_table({"figure": ["test/accuracy", "test/f1"], "value": [0.5, 0.25]})
        log.files({"figures.json": table, "folder/a.txt": b"a"})
        log.log({}, 1, tracking.shown_table("figures.json"))
    run = tracker.find("midibert/x", "key-6")
    assert run is not None and run.data.tags["mlflow.note.content"] == "A sentence."
    found = {each.dataset.name: (each.tags[0].value, each.dataset) for each in run.inputs.dataset_inputs}
    assert {name: use for name, (use, _) in found.items()} == {"pop909:a": "b", "pop909:c": "d"}
    dataset = found["pop909:a"][1]
    assert (dataset.digest, dataset.profile) == (facts["digest"], facts["profile"])
    assert json.loads(dataset.source) == {"uri": facts["uri"]}
    found_table = json.loads(tracker.artifact(run.info.run_id, "figures.json") or b"")
    assert found_table == {"columns": ["figure", "value"], "data": [["test/accuracy", 0.5], ["test/f1", 0.25]]}
    assert tracker.artifact(run.info.run_id, "folder/a.txt") == b"a"
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "figures.json", "type": "table"}]


def test_a_run_that_is_deleted_for_good_while_a_job_writes_to_it_ends_nothing(
    recorded: Config, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = tracking.Tracker(tracking.uris(recorded))
    run, other = (tracker.open(STUDY, key, key, params={"lr": 1}, tags={}) for key in ("s-1", "s-2"))
    run.log({"loss": 1}, 1)
    tracker._client._tracking_client.store._hard_delete_run(tracker.find(STUDY, "s-1").info.run_id)  # type: ignore[union-attr]
    for step in (2, 3):
        run.log({"loss": step}, step)
        other.log({"loss": step}, step)
    run.text("a", "a.txt")
    run.finish()
    (warning,) = [line.message for line in caplog.records if line.levelno >= logging.WARNING]
    assert warning.startswith(f"the run s-1 of {STUDY} was deleted from MLflow for good; what is recorded of it now is")
    (left,) = tracker.parents(STUDY)
    assert tracker.curve(left.info.run_id, "loss") == [(2, 2), (3, 3)]
    tracker.open(STUDY, "s-1", "s-1", params={"lr": 1}, tags={}).log({"loss": 4}, 4)
    again = tracker.find(STUDY, "s-1")
    assert again is not None and tracker.curve(again.info.run_id, "loss") == [(4, 4)]
