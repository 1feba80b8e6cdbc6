"""Models from folders, buckets and MLflow; and nothing imported that a folder does not need."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import midibert_ray as mb
from midibert_ray.model.calibration import CALIBRATION
from midibert_ray.model.folder import ModelFileError
from midibert_ray.settings import shipped
from tests.inference.conftest import MakeModel
from tests.inference.test_annotate import SHORT, a_calibration
from tests.s3 import S3

ALONE = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] not in {"ray", "deepspeed", "mlflow"}:
            return super().find_spec(name, path, target)

sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
try:
    import ray
except ImportError:
    pass
else:
    raise SystemExit("ray was to be hidden")
import midibert_ray as mb
assert "torch" not in sys.modules
model = mb.load(sys.argv[1], device="cpu")
song = model.annotate(sys.argv[2])
assert len(song.notes) > 1000 and song.to_midi().instruments and song._repr_html_()
assert model.embed([sys.argv[2]]).shape == (1, 32)
assert mb.detokenize(mb.tokenize(sys.argv[2]).ids).instruments
assert not {"ray", "deepspeed", "mlflow"} & set(sys.modules)
assert not [name for name in sys.modules if name.startswith(("midibert_ray.storage", "midibert_ray.tracking"))]
"""


@pytest.mark.slow
def test_a_folder_needs_no_framework(note_folder: Path, songs: list[Path]) -> None:
    subprocess.run([sys.executable, "-c", ALONE, str(note_folder), str(songs[0])], check=True)


def test_a_models_calibration_comes_with_it(make_model: MakeModel) -> None:
    folder = make_model()
    assert mb.load(folder, "cpu").calibration is None
    (folder / CALIBRATION).write_text(a_calibration(1.5).to_json())
    assert mb.load(str(folder), "cpu").calibration == a_calibration(1.5)
    (folder / CALIBRATION).write_text("{}")
    with pytest.raises(ModelFileError, match=rf"{folder}: {CALIBRATION} is damaged: .*; export the model again"):
        mb.load(folder, "cpu")


def test_a_folder_that_holds_no_model_is_named(tmp_path: Path, note_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config.json and model.safetensors not found in it"):
        mb.load(tmp_path)
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "config.json").write_bytes((note_folder / "config.json").read_bytes())
    (cut / "model.safetensors").write_bytes((note_folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ModelFileError, match=f"{cut}: damaged, or another model's"):
        mb.load(cut)
    (cut / "model.safetensors").write_bytes((note_folder / "model.safetensors").read_bytes())
    settings = json.loads((cut / "config.json").read_text())
    (cut / "config.json").write_text(json.dumps(settings | {"protocol": {"name": "mine"}}))
    with pytest.raises(ModelFileError, match=f"{cut}: protocol 'mine' is not known; allowed: paper, clean"):
        mb.load(cut)


def test_a_name_opens_a_model_that_ships(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, other = make_model(), make_model(hidden_size=16)
    made.rename(tmp_path / "weights-tune")
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"tune is not a model's folder: .*that ship with midibert_ray: none$"):
        mb.load("tune", "cpu")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights-tune").rename(tmp_path / "weights/tune")
    assert shipped.names() == ["tune"] and shipped.is_shipped("tune")
    assert mb.load("tune", "cpu").config.hidden_size == 32
    with pytest.raises(FileNotFoundError, match=r"tone is not a model's folder: .*ship with midibert_ray: tune$"):
        mb.load("tone", "cpu")
    other.rename(tmp_path / "tune")
    assert mb.load("tune", "cpu").config.hidden_size == 16, "a folder of one's own comes first"
    assert mb.load(tmp_path / "weights/tune", "cpu").config.hidden_size == 32


def test_models_that_ship_are_small_and_say_what_they_may_be_used_for() -> None:
    for name in shipped.names():
        folder = shipped.FOLDER / name
        assert (folder / "model.safetensors").stat().st_size <= 8 * 2**20
        card = (folder / "README.md").read_text()
        assert "license: mit" in card and "No corpus restricts what these weights may be used for" in card
        assert mb.load(name, "cpu").annotate(SHORT).notes.label.notna().all()


def test_a_model_in_a_bucket_answers_like_its_folder(s3: S3, note_folder: Path) -> None:
    bucket = s3.bucket()
    with pytest.raises(
        FileNotFoundError, match=r"is not a model's folder: config.json and model.safetensors not found"
    ):
        mb.load(s3.address(f"{bucket}/nothing"), "cpu")
    client = s3.client()
    for path in note_folder.iterdir():
        with client.open_output_stream(f"{bucket}/exports/melody/{path.name}") as stream:
            stream.write(path.read_bytes())
    found = mb.load(s3.address(f"{bucket}/exports/melody"), "cpu").annotate(SHORT)
    assert found.scores.tobytes() == mb.load(note_folder, "cpu").annotate(SHORT).scores.tobytes()
    assert s3.count("GET") and not [r for r in s3.requests if "README" in r and r.startswith("GET")]


def test_a_model_in_mlflow_answers_like_its_folder(
    tmp_path: Path, note_folder: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    shutil.copy2(empty_database, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(None)
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("models", artifact_location=(tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    client.log_artifacts(run, str(note_folder), "model/artifacts/weights")
    found = mb.load(f"runs:/{run}/model", "cpu").annotate(SHORT)
    assert found.scores.tobytes() == mb.load(note_folder, "cpu").annotate(SHORT).scores.tobytes()
    with pytest.raises(FileNotFoundError, match=f"runs:/{run}/other: MLflow has no such model here"):
        mb.load(f"runs:/{run}/other", "cpu")
    client.log_text(run, "nothing", "text/here.txt")
    with pytest.raises(FileNotFoundError, match="holds no model of this package"):
        mb.load(f"runs:/{run}/text", "cpu")
