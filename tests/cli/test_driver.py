"""What keeps a job from starting is said in one line, before Ray starts or soon after."""

import json
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from unittest.mock import Mock

import pytest
from mlflow.exceptions import MlflowException

from midibert_ray import pipeline
from midibert_ray.cli import driver, dry_run, resources
from midibert_ray.cli.arguments import parse
from midibert_ray.cli.commands import COMMANDS
from midibert_ray.cli.jobs import tokenize
from midibert_ray.cli.main import execute
from midibert_ray.settings.compute import ComputeConfig
from midibert_ray.settings.config import ConfigError
from midibert_ray.settings.overrides import replace
from midibert_ray.settings.presets import preset
from tests.cli.test_main import run

CPU_NODE = {"CPU": 4.0, "memory": 1e9}
GPU_NODE = {"CPU": 8.0, "GPU": 2.0, "accelerator_type:L4": 1.0}


@pytest.mark.parametrize(
    ("compute", "nodes", "fits"),
    [
        ({"workers": 4}, [CPU_NODE], True),
        ({"workers": 5}, [CPU_NODE], False),
        ({"workers": 2, "cpus_per_worker": 3}, [CPU_NODE], False),
        ({"workers": 2, "cpus_per_worker": 3}, [CPU_NODE, CPU_NODE], True),
        ({"workers": 5, "placement": "STRICT_PACK"}, [CPU_NODE, CPU_NODE], False),
        ({"workers": 5, "placement": "SPREAD"}, [CPU_NODE, CPU_NODE], True),
        ({"workers": 3, "placement": "STRICT_SPREAD"}, [CPU_NODE, CPU_NODE], False),
        ({"workers": 1, "gpu": True}, [CPU_NODE], False),
        ({"workers": 4, "gpu": True}, [GPU_NODE, CPU_NODE], False),
        ({"workers": 4, "gpu": True}, [GPU_NODE, GPU_NODE], True),
        ({"workers": 2, "gpu": True, "accelerator": "L4"}, [GPU_NODE], True),
        ({"workers": 2, "gpu": True, "accelerator": "H100"}, [GPU_NODE], False),
        ({"workers": 1}, [], False),
    ],
)
def test_workers_fit_the_nodes_or_not(compute: dict[str, object], nodes: list[resources.Resources], fits: bool) -> None:
    (needed,) = resources.requests(ComputeConfig(**compute), pretraining=True)  # type: ignore[arg-type]
    assert needed.fits(nodes) is fits
    assert bool(resources.shortage([needed], nodes)) is not fits


def test_what_is_asked_for_stands_beside_what_there_is() -> None:
    compute = ComputeConfig(workers=8, gpu=True, accelerator="H100", placement="STRICT_SPREAD", gpus_per_trial=0.5)
    needed = resources.requests(compute, pretraining=True, trials=True)
    assert resources.shortage(needed, [CPU_NODE]) == (
        "pre-training asks for 8 x (1 CPU, 1 GPU, H100), each on a node of its own, a trial asks for 1 x (1 CPU, "
        "0.5 GPUs); there are 4 CPUs, 0 GPUs on 1 node"
    )
    assert resources.shortage(needed[1:], [GPU_NODE]) == ""
    assert resources.requests(compute, pretraining=False) == []


@pytest.mark.parametrize(
    ("kinds", "grows"), [({"node_8d7e08"}, False), ({"ray.head.default"}, True), ({"head", "node_8d7e08"}, True)]
)
def test_an_autoscaler_is_known_by_its_kinds_of_nodes(
    kinds: set[str], grows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "_kinds", lambda: kinds)
    assert resources._may_grow() is grows
    monkeypatch.setattr(resources, "MONITOR_S", 0.0)
    monkeypatch.setattr(resources, "_kinds", set)
    assert resources._may_grow(), "nobody says that there is none"


def test_a_job_waits_for_nodes_with_a_line_a_minute_or_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    needed = [resources.Request("pre-training", 5, {"CPU": 1.0, "GPU": 0.0})]
    seen = iter([[CPU_NODE], [CPU_NODE], [CPU_NODE], [CPU_NODE, CPU_NODE]])
    monkeypatch.setattr(resources, "_nodes", lambda: next(seen))
    monkeypatch.setattr(resources, "_may_grow", lambda: True)
    monkeypatch.setattr(resources, "REMIND_S", 0.0)
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    resources.require(needed, local=False)
    for thread in threading.enumerate():
        if getattr(thread, "_target", None) is resources._remind:
            thread.join(timeout=60)
    assert caplog.messages == ["waiting for nodes: " + resources.shortage(needed, [CPU_NODE])] * 2
    monkeypatch.setattr(resources, "_nodes", lambda: [CPU_NODE])
    with pytest.raises(ConfigError, match=r"asks for 5 x .* there are 4 CPUs, 0 GPUs on 1 node, and no more can come"):
        resources.require(needed, local=True)
    monkeypatch.setattr(resources, "_may_grow", lambda: False)
    with pytest.raises(ConfigError, match=r"no more can come; ask for less \(compute\.\*\), or"):
        resources.require(needed, local=False)
    actor = resources.Request("an actor", 1, {"CPU": 1.0, "GPU": 0.25}, settings="cpus, gpus")
    with pytest.raises(ConfigError, match=r"\(1 CPU, 0\.25 GPUs\); there are .* ask for less \(cpus, gpus\), or"):
        resources.require([actor], local=False)


def test_a_dry_run_says_what_this_machine_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(resources, "LOCAL_CPUS", 4)
    config = replace(preset("debug"), {"storage.root": str(tmp_path / "root"), "compute.workers": 6})
    told = dry_run.describe_plan(pipeline.plan(config), "pretrain")
    assert (
        "resources       not enough on this machine: pre-training asks for 6 x (1 CPU, 0 GPUs); there are 4 CPUs"
        in told
    )
    assert "device-hours at most (1 pre-training " in told and "0 trials" in told
    assert "the sizes of the files of sample (no tokens yet)" in told
    assert not (tmp_path / "root").exists()
    told = dry_run.describe_plan(pipeline.plan(replace(config, {"compute.workers": 4})), "pretrain", estimates=False)
    assert "resources" not in told and "estimate" not in told
    (tmp_path / "file").touch()
    told = dry_run.describe_plan(pipeline.plan(replace(config, {"storage.root": str(tmp_path / "file" / "x")})))
    assert f"storage.root will not do on this machine: {tmp_path}/file is no folder" in told


def test_a_dry_run_refuses_a_root_with_a_question_mark(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^storage\.root=.*/what\? has a question mark"):
        pipeline.plan(replace(preset("debug"), {"storage.root": str(tmp_path / "what?")}))


def test_a_task_without_splits_or_labels_is_refused_by_the_plan(tmp_path: Path) -> None:
    (tmp_path / "a.mid").write_bytes(b"MThd")
    own = {"finetune.corpus": f"folder:{tmp_path}", "study.tasks": ("velocity",), "study.variants": ("scratch",)}
    config = replace(preset("debug"), {"storage.root": str(tmp_path / "root")})
    with pytest.raises(ValueError, match="needs the splits train, valid and test"):
        pipeline.plan(replace(config, own), study=True)
    with pytest.raises(ValueError, match=r"task composer needs the labels .*set finetune\.corpus=pianist8"):
        pipeline.plan(replace(config, {"study.tasks": ("composer",)}), study=True)


def ends(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The words with which a command ends; `test_main.py` has processes of the same code."""
    assert execute([words[0], "--preset", "debug", *words[1:]]) == 2
    return capsys.readouterr().err


def test_an_address_without_ray_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    (line,) = ends(capsys, "tokenize", f"storage.root={tmp_path}").splitlines()
    assert line.startswith("error: no Ray answers at RAY_ADDRESS=127.0.0.1:1 ([Errno 111]")


def test_an_address_of_no_known_form_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(ConfigError, match=r"^no Ray answers at RAY_ADDRESS=nonsense .*; give HOST:PORT of the head"):
        driver.start_ray()


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_too_long_for_sockets_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    driver._require_short_sockets()
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv(name, "/tmp/" + "x" * 60)
    with pytest.raises(ConfigError, match=rf"{name}='/tmp/x+' is \d+ bytes too long .* RAY_TMPDIR=/tmp$"):
        driver._require_short_sockets()


def test_a_locked_or_broken_database_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LOCKED_S", 0.05)
    path = tmp_path / "mlflow.db"
    driver._require_database(f"sqlite:///{path}")
    assert not path.exists()
    with closing(sqlite3.connect(path, isolation_level=None)) as held:
        held.execute("CREATE TABLE x (y)")
        driver._require_database(f"sqlite:///{path}")
        held.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ConfigError, match="cannot be written to: database is locked; end the program"):
            driver._require_database(f"sqlite:///{path}")
    path.write_bytes(b"no database" * 100)
    with pytest.raises(ConfigError, match="file is not a database"):
        driver._require_database(f"sqlite:///{path}")


def test_a_database_that_fills_its_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "start_ray", lambda needed: None)
    config = replace(preset("debug"), {"storage.root": str(tmp_path / "root")})
    full = MlflowException("(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT INTO metrics]")
    said = r"root/mlflow\.db cannot be written to: database or disk is full; end"
    with pytest.raises(ConfigError, match=said), driver.at_work(config, []):
        raise full
    with pytest.raises(MlflowException, match="something else"), driver.at_work(config, []):
        raise MlflowException("something else")


@pytest.mark.parametrize("job", ["tokenize", "study"])
def test_a_root_that_cannot_be_written_to_ends_a_job_before_ray(
    job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ray.init", Mock(side_effect=AssertionError("Ray was started")))
    (tmp_path / "file").touch()
    (line,) = ends(capsys, job, f"storage.root={tmp_path}/file/root").splitlines()
    assert line.startswith(f"error: storage.root={tmp_path}/file/root cannot be written to: ")


def test_a_report_without_a_database_makes_none(tmp_path: Path) -> None:
    config = replace(preset("debug"), {"storage.root": str(tmp_path / "root")})
    with pytest.raises(LookupError, match=r"no MLflow database at .*/root/mlflow\.db; give the root of the job"):
        pipeline.report(config, "ablation")
    assert not (tmp_path / "root").exists()


@pytest.mark.slow
def test_a_report_without_a_database_leaves_nothing_behind(tmp_path: Path) -> None:
    said = run(sys.executable, "jobs/report.py", "ablation", HOME=str(tmp_path))
    assert said.returncode == 2 and said.stderr.startswith("error: there is no study 'ablation', as there is no MLflow")
    left = [path for path in tmp_path.rglob("*") if path.is_file() and "matplotlib" not in path.parts]
    assert not left, "MLflow would keep an account of its use"


def test_tokens_are_their_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "start_ray", lambda: (tmp_path / "root/by-ray").touch())
    monkeypatch.setattr(pipeline, "tokenize", lambda plan: (tmp_path / "root/manifest.json").touch() or [])
    tokenize.run(parse(COMMANDS["tokenize"], ["--preset", "debug", f"storage.root={tmp_path}/root"]))
    made = list(tmp_path.rglob("*"))
    assert len(made) == 3 and not any(path.stat().st_mode & 0o077 for path in made)


def test_pre_training_asks_for_its_tokens_before_it_starts_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ray.init", Mock(side_effect=AssertionError("Ray was started")))
    said = ends(capsys, "pretrain", f"storage.root={tmp_path}")
    assert said.startswith("error: no token store of sample under these settings")


# ------------------------------------------------------------------------------------------- with Ray

LISTENERS = """
import json, psutil, ray
from midibert_ray.cli import driver, resources
from midibert_ray.settings.compute import ComputeConfig
driver.start_ray(resources.requests(ComputeConfig(workers=resources.LOCAL_CPUS), pretraining=True))
assert ray.get(ray.remote(lambda: 1).remote()) == 1
me = psutil.Process()
ours = [me, *me.children(recursive=True)]
found = [(p.name(), c.laddr.ip) for p in ours for c in p.net_connections() if c.status == "LISTEN"]
try:
    resources.require(resources.requests(ComputeConfig(workers=resources.LOCAL_CPUS + 1), pretraining=True), local=True)
except ValueError as error:
    print(json.dumps([found, str(error)]))
"""


@pytest.mark.ray
def test_a_ray_of_this_machine_listens_on_loopback_and_says_what_it_has_not(no_ray: None) -> None:
    done = subprocess.run([sys.executable, "-c", LISTENERS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found, error = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 5
    assert [(name, ip) for name, ip in found if ip.removeprefix("::ffff:") not in ("127.0.0.1", "::1")] == []
    assert f"there are {resources.LOCAL_CPUS} CPUs" in error and "no more can come" in error
