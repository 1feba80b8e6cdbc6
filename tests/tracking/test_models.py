"""Models as MLflow holds them: rows in, rows out, served over HTTP, registered once, their weights not copied."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest

import midibert_ray as mb
from midibert_ray import tracking
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from tests.inference.conftest import write_model
from tests.jobs.head import free_port

pytestmark = pytest.mark.slow

EXPERIMENT = tracking.study_experiment("models")
ROOT = Path(__file__).parents[2]
SONG = min((ROOT / "midibert_ray/corpora/sample/POP909").rglob("[0-9]*.mid"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def tracker(folder: Path) -> tracking.Tracker:
    """Runs `note`, `sequence` and `encoder`, each with its model, the first one registered; all of it said twice."""
    tracker = tracking.Tracker(tracking.uris(replace(Config(), {"storage.root": str(folder / "root")})))
    for kind in ("note", "sequence", "encoder"):
        weights = write_model(folder / kind, kind)
        log = tracker.open(EXPERIMENT, kind, kind, params={}, tags={})
        for _ in range(2):
            log.model(str(weights), kind, {"task": "melody"})
            if kind == "note":
                log.register("mine")
        log.finish()
    return tracker


@pytest.fixture(autouse=True)
def uri(tracker: tracking.Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uris.uri)


def of_run(tracker: tracking.Tracker, kind: str) -> str:
    run = tracker.find(EXPERIMENT, kind)
    assert run is not None
    return f"runs:/{run.info.run_id}/model"


def test_weights_are_stored_once_and_nothing_is_pickled(tracker: tracking.Tracker, folder: Path) -> None:
    files = [path for path in (folder / "root").rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".safetensors", ".pkl", ".pickle", ".bin", ".pt")]
    assert sum(path.stat().st_size for path in files if "models" in path.parts) < 30_000
    run = tracker.find(EXPERIMENT, "note")
    assert run is not None and len(run.outputs.model_outputs) == 1
    (version,) = tracker._client.search_model_versions("name = 'mine'")
    assert version.run_id == run.info.run_id and run.outputs.model_outputs[0].model_id in version.source


def test_a_model_labels_notes_of_paths_and_of_bytes(tracker: tracking.Tracker, folder: Path) -> None:
    expected = mb.load(folder / "note").annotate(SONG).notes
    for uri in (of_run(tracker, "note"), "models:/mine@best", "models:/mine/1"):
        found = mlflow.pyfunc.load_model(uri).predict(pd.DataFrame({"path": [str(SONG)]}))
        assert (found.pop("piece") == 0).all()
        pd.testing.assert_frame_equal(found, expected)
    model = mlflow.pyfunc.load_model("models:/mine@best")
    assert model.metadata.signature.outputs.input_names() == ["piece", *expected.columns]
    twice = model.predict(pd.DataFrame({"midi": [SONG.read_bytes()] * 2}), params={"abstain": 1.0})
    assert twice.piece.value_counts().to_dict() == {0: len(expected), 1: len(expected)}
    assert set(twice.label) == {""}


def test_a_model_of_pieces_gives_a_row_a_piece_and_an_encoder_an_embedding(
    tracker: tracking.Tracker, folder: Path
) -> None:
    rows = pd.DataFrame({"path": [str(SONG)], "midi": [None]})
    song = mb.load(folder / "sequence").annotate(SONG)
    found = mlflow.pyfunc.load_model(of_run(tracker, "sequence")).predict(rows)
    assert found.to_dict("records") == [
        {"piece": 0, "label": song.label, "probability": pytest.approx(song.probabilities.max())}
    ]
    (embedding,) = mlflow.pyfunc.load_model(of_run(tracker, "encoder")).predict(rows).embedding
    assert embedding == pytest.approx(mb.load(folder / "encoder").embed([SONG])[0].tolist())


def test_a_row_without_music_is_told(tracker: tracking.Tracker) -> None:
    model = mlflow.pyfunc.load_model(of_run(tracker, "note"))
    with pytest.raises(ValueError, match="a row has neither `path` nor `midi`"):
        model.predict(pd.DataFrame({"path": [""]}))


def test_the_library_opens_what_mlflow_names_and_weights_may_move(tracker: tracking.Tracker, folder: Path) -> None:
    assert mb.load("models:/mine@best").classes == ("melody", "bridge", "accompaniment")
    (folder / "note").rename(folder / "moved")
    try:
        moved = mlflow.pyfunc.load_model("models:/mine@best", model_config={"weights": str(folder / "moved")})
        assert len(moved.predict(pd.DataFrame({"path": [str(SONG)]})))
        with pytest.raises(FileNotFoundError, match=f"{folder / 'note'} is not a model's folder"):
            mb.load("models:/mine@best")
    finally:
        (folder / "moved").rename(folder / "note")
    with pytest.raises(FileNotFoundError, match="MLflow has no such model here"):
        mb.load("models:/yours@best")


def ask(port: int, rows: list[list[Any]]) -> Any:
    body = json.dumps({"dataframe_split": {"columns": ["midi"], "data": rows}}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["predictions"]


def test_mlflow_serves_it(tracker: tracking.Tracker, folder: Path) -> None:
    port, log = free_port(), folder / "serve.log"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", "models:/mine@best"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "--env-manager", "local", "--port", str(port), "--workers", "1"],
            env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 240
        while True:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                break
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.3)
        rows = ask(port, [[base64.b64encode(SONG.read_bytes()).decode()]])
        expected = mb.load(folder / "note").annotate(SONG).notes
        assert [row["label"] for row in rows] == list(expected.label)
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(port, [[base64.b64encode(b"no MIDI").decode()]])
        assert refused.value.code in (400, 500) and ask(port, [[base64.b64encode(SONG.read_bytes()).decode()]])
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
