"""Submitting jobs: what is sent, under which name, and what a user sees of it, on a real head with a token."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from midibert_ray.cli import cluster as server
from midibert_ray.cli.submission import ROOT, Submission, describe
from midibert_ray.settings import shipped
from midibert_ray.settings.config import ConfigError
from tests.jobs.head import PLANTED, TOKEN, Cluster, command_lines, places_of
from tests.jobs.visit import Visit

# ------------------------------------------------------------------------------------------- under which name


def wanted(*words: str, job: str = "pipeline") -> Submission:
    return describe(f"jobs/{job}.py", *words)


@pytest.mark.slow
def test_an_id_says_what_is_made_and_where() -> None:
    one = wanted("--preset", "debug", "storage.root=/a", "seed=7")
    assert re.fullmatch(r"pipeline-[0-9a-f]{10}", one.id)
    assert one == replace(wanted("seed=7", "storage.root=/a", "--preset", "debug"), entrypoint=one.entrypoint)

    faster = wanted("--preset", "debug", "storage.root=/a", "seed=7", "compute.workers=1")
    assert (faster.id, faster.settings != one.settings) == (one.id, True)
    others = [
        wanted("--preset", "debug", "storage.root=/a", "seed=8"),
        wanted("--preset", "debug", "storage.root=/b", "seed=7"),
        wanted("--preset", "debug", "storage.root=/a", "seed=7", "--dry-run"),
        wanted("--preset", "debug", "storage.root=/a", "seed=7", "output=/c", job="export"),
        wanted("--preset", "debug", "storage.root=/a", "seed=7", "ablation", job="report"),
        wanted("--preset", "debug", "storage.root=/a", "seed=7", job="pretrain"),
    ]
    assert len({one.id, *(other.id for other in others)}) == 7


def test_the_users_words_reach_the_cluster_as_they_are() -> None:
    words = ["--preset", "debug", "corpora.names=folder:/a b/it's,folder:/c;d$(e)", "storage.root=~/out"]
    assert shlex.split(wanted(*words).entrypoint) == ["python", "jobs/pipeline.py", *words]


def test_a_model_that_ships_lies_on_every_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("input=/music", "output=s3://bucket/out")
    with pytest.raises(ConfigError, match="model='melody' is a relative path"):
        monkeypatch.setattr(shipped, "FOLDER", tmp_path)
        wanted("model=melody", *words, job="annotate")
    (tmp_path / "melody").mkdir()
    (tmp_path / "melody/config.json").touch()
    assert "model=melody" in wanted("model=melody", *words, job="annotate").entrypoint


@pytest.mark.parametrize(
    "word",
    [
        "storage.root=out",
        "corpora.root=../data",
        "corpora.names=folder:music",
        "tracking.uri=sqlite:///runs.db",
        "output=x",
    ],
)
def test_folders_that_would_vanish_with_the_job_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=rf"{word.partition('=')[0]}='.*' is a relative path.*s3://"):
        wanted(word, job="export")


def test_a_job_with_other_settings_is_not_mistaken_for_the_running_one(caplog: pytest.LogCaptureFixture) -> None:
    from ray.dashboard.modules.job.pydantic_models import JobDetails

    one = wanted("--preset", "debug", "compute.workers=1")
    labels = {"settings": one.settings, "code": "c0de"}
    running = JobDetails(
        type="SUBMISSION", submission_id=one.id, status="RUNNING", entrypoint=one.entrypoint, metadata=labels
    )
    assert server.join(one, running, "c0de") == one.id
    assert not caplog.records
    assert server.join(one, running, "0ther") == one.id
    assert "other code" in caplog.text
    with pytest.raises(ConfigError, match=rf"compute\.workers=1\n.*--stop {one.id}"):
        server.join(wanted("--preset", "debug", "compute.workers=2"), running, "c0de")


# ------------------------------------------------------------------------------------------- what a user sees


def submit(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "jobs/submit.py", *words],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_what_is_wrong_is_said_before_anything_is_sent() -> None:
    wrong = submit("jobs/download.py", "pop909", "corpora.rot=/data")
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("error: unknown setting 'corpora.rot'; did you mean")
    asked = submit("jobs/download.py", "--help")
    assert asked.returncode == 0
    assert "corpora.root*" in asked.stdout
    right = submit("--dry-run", "jobs/download.py", "pop909", "corpora.root=/a b")
    assert right.returncode == 0, right.stderr
    assert right.stderr.splitlines()[-1].endswith(": python jobs/download.py pop909 'corpora.root=/a b'")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["jobs/nothing.py"], "name one as jobs/NAME.py: annotate, download, embed"),
        (["jobs/submit.py"], "is no job of"),
        (["--attach", "x", "--address", "http://user:hunter2@127.0.0.1:9"], "holds a password or a key"),
        (["--attach", "x", "--address", "127.0.0.1:9"], "no Ray cluster answers at http://127.0.0.1:9; give"),
        ([], "name a job to submit"),
    ],
)
def test_each_mistake_is_one_line(words: list[str], message: str) -> None:
    said = submit(*words)
    assert said.returncode == 2
    assert message in said.stderr.splitlines()[-1]
    assert "Traceback" not in said.stderr + said.stdout
    assert "hunter2" not in said.stderr + said.stdout


@pytest.mark.slow
def test_a_server_of_another_kind_is_no_cluster() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        said = submit("--attach", "x", "--address", f"http://127.0.0.1:{other.server_port}")
        other.shutdown()
    assert said.returncode == 2
    assert f"error: no Ray cluster answers at http://127.0.0.1:{other.server_port} (HTTPError: 501" in said.stderr


def test_a_head_that_cannot_take_jobs_is_told_from_one_that_does_not_answer() -> None:
    said = r"http://head answers, but no job agent .*--dashboard-agent-listen-port"
    with pytest.raises(server.ClusterError, match=said), server._explained("http://head"):
        raise RuntimeError("Request failed with status code 500: No available agent to submit job, try again later..")


def test_a_token_that_is_not_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert not server.has_token()
    (tmp_path / "token").write_text("\n")
    assert not server.has_token()
    (tmp_path / "token").write_text("abc\n")
    assert server.has_token()


# ------------------------------------------------------------------------------------------- on a cluster


@pytest.mark.ray
def test_a_job_is_left_and_joined_again(head: Cluster, visit: Visit) -> None:
    assert re.fullmatch(r"pipeline-[0-9a-f]{10}", visit.job)
    again = f"python jobs/submit.py --attach {visit.job}\nstop      python jobs/submit.py --stop {visit.job}\n"
    assert visit.left.endswith(f"{visit.job} goes on without you\nfollow    {again}")
    assert f"running   {visit.job}" in visit.said
    assert visit.said.endswith(f"succeeded {visit.job}\n")
    assert visit.jobs == [visit.job]
    assert visit.log.count(visit.seen) == 1
    assert "majority class" in visit.log
    assert visit.log == head.get(f"/api/jobs/{visit.job}/logs")["logs"]


# Tune copies these from the driver into the runtime_env of trials, which Ray logs, until studies/study.py keeps it from
# doing so; see ray.tune.execution.class_cache.
@pytest.mark.ray
@pytest.mark.parametrize("name", PLANTED)
def test_no_secret_leaves_its_place(head: Cluster, visit: Visit, name: str) -> None:
    assert (head.home / "root/mlflow.db").exists()
    assert places_of(PLANTED[name], head.folder, head.home) == []
    shown = [json.dumps(head.get("/api/jobs/")), visit.left, visit.log, visit.said, *command_lines()]
    assert not [text for text in shown if PLANTED[name] in text]


@pytest.mark.ray
def test_the_token_stays_in_its_file(head: Cluster, visit: Visit) -> None:
    assert [path.name for path in places_of(TOKEN, head.folder, head.home)] == ["auth_token"]
    shown = [json.dumps(head.get("/api/jobs/")), visit.left, visit.log, visit.said, *command_lines()]
    assert not [text for text in shown if TOKEN in text]


@pytest.mark.ray
def test_a_job_ends_with_its_own_exit_code_and_may_be_submitted_again(head: Cluster, tmp_path: Path) -> None:
    names = []
    for _ in range(2):
        code, output, said = head.submit("jobs/download.py", "pop999", f"corpora.root={tmp_path}")
        assert code == 2
        assert "pop999" in output.splitlines()[-1]
        names += re.findall(r"^started   (\S+):", said, re.MULTILINE)
        assert said.splitlines()[-1] == f"failed    {names[-1]}"
    assert names == [names[0], f"{names[0]}-2"]
    labels = head.jobs()[names[1]]["metadata"]
    assert (labels["job"], labels["preset"], f"download-{labels['identity']}") == ("download", "base", names[0])


@pytest.mark.ray
def test_a_job_is_stopped(head: Cluster, tmp_path: Path) -> None:
    code, _, said = head.submit("--no-wait", "jobs/tokenize.py", "--preset", "debug", f"storage.root={tmp_path}")
    assert code == 0
    (name,) = re.findall(r"^follow .* --attach (\S+)$", said, re.MULTILINE)
    assert head.submit("--stop", name) == (0, "", f"stopped   {name}\n")
    assert head.submit("--attach", name)[0] == 143


@pytest.mark.ray
def test_rays_own_command_submits_it_again_and_it_finds_all_done(head: Cluster, visit: Visit) -> None:
    program = str(Path(sys.executable).with_name("ray"))
    command = [program, "job", "submit", "--working-dir", ".", "--", "python", *visit.words]
    environment = head.environment(RAY_AUTH_MODE="token")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "goes on where it stopped: 4 of 4 trials are done, 1 of 1 pre-trainings" in done.stdout
    assert "majority class" in done.stdout and "report.html" in done.stdout


@pytest.mark.ray
@pytest.mark.parametrize(("token", "status"), [("", 401), ("f" * 64, 403)], ids=["none", "wrong"])
def test_the_job_api_is_closed_to_strangers(
    head: Cluster, visit: Visit, tmp_path: Path, token: str, status: int
) -> None:
    mark, before = tmp_path / "mark", head.jobs()
    job, wish = f"/api/jobs/{visit.job}", {"entrypoint": f"touch {mark}"}
    asked = {
        ("GET", "/api/jobs/"): None,
        ("GET", job): None,
        ("GET", f"{job}/logs"): None,
        ("POST", "/api/jobs/"): wish,
        ("POST", f"{job}/stop"): None,
        ("DELETE", job): None,
        ("PUT", "/api/packages/gcs/code.zip"): None,
    }
    answers = {way: head.status(*way, token, body) for way, body in asked.items()}
    assert answers == dict.fromkeys(asked, status)
    assert head.status("GET", job, TOKEN) == 200
    assert head.jobs() == before
    assert not mark.exists()


@pytest.mark.ray
def test_strangers_learn_and_start_nothing(head: Cluster, tmp_path: Path) -> None:
    before = head.jobs()
    wrong = {"RAY_AUTH_TOKEN": "f" * 64}
    code, output, said = head.submit("jobs/download.py", "pop909", f"corpora.root={tmp_path}", **wrong)
    assert (code, output) == (2, "")
    assert "does not take the token that is set here; put the token of its head" in said.splitlines()[-1]
    code, output, said = head.submit("--stop", next(iter(before), "x"), HOME=str(tmp_path))
    assert (code, output) == (2, "")
    assert "wants a token, and none is set here" in said.splitlines()[-1]
    assert head.jobs() == before

    code, _, said = head.submit("--attach", "pipeline-0123456789")
    assert code == 2
    assert "knows no job 'pipeline-0123456789'" in said.splitlines()[-1]
