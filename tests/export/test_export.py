"""jobs/export.py: the authors' files and our own checkpoints become folders that open without Ray."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray import tune
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM

from midibert_ray import pipeline, storage
from midibert_ray.cli.main import execute
from midibert_ray.data.store import TokenStore
from midibert_ray.model.calibration import Calibration
from midibert_ray.model.folder import load_checkpoint
from midibert_ray.model.heads import MidiBertForNotes, MidiBertForSequences
from midibert_ray.model.midibert import MidiBertModel
from midibert_ray.model.reference import load_reference
from midibert_ray.music.vocabulary import CP
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.settings.presets import preset
from midibert_ray.storage import digests
from midibert_ray.studies import result as results
from midibert_ray.studies.plan import make
from midibert_ray.studies.trial import run_trial
from midibert_ray.training.build import new_model
from midibert_ray.training.checkpoints import write_digests
from midibert_ray.training.runs import PretrainRun, note_settings, run_key, run_uri
from tests.export.test_card import head
from tests.jobs.test_pipeline import command, done
from tests.reference import LENGTH, reference_weights, write
from tests.s3 import S3

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FILES = ["README.md", "config.json", "model.safetensors", "vocabulary.json"]
SIZES = {
    "tokens.segment": 64,
    "model.layers": 1,
    "model.hidden": 32,
    "model.heads": 2,
    "model.feed_forward": 64,
    "pretrain.epochs": 12,
    "pretrain.valid_every": 4,
}
TRIALS = {
    "study.tasks": ("melody",),
    "study.variants": ("freeze-backbone", "scratch"),
    "study.seeds": 1,
    "finetune.epochs": 1,
    "finetune.lr": 0.01,
}
KINDS = {"encoder": MidiBertModel, "notes": MidiBertForNotes, "sequences": MidiBertForSequences}

Job = Callable[..., tuple[int, str]]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Job:
    """Runs the job in this process: its exit code, and all that it said."""

    def start(*words: str) -> tuple[int, str]:
        caplog.clear()
        code = 0
        try:
            code = execute(["export", *words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, "".join(capsys.readouterr()) + caplog.text

    return start


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestReference:
    """Files of the authors' code."""

    @pytest.mark.parametrize("prefix", ["", "module."])
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_becomes_a_folder(self, kind: str, prefix: str, tmp_path: Path, job: Job) -> None:
        scores = {"valid_acc": [0.9, 0.4, 0.3, 0.2], "valid_loss": 1.5, "train_loss": float("nan"), "note": "![](x)"}
        path = write(tmp_path / "x.ckpt", reference_weights("cp", kind, prefix), **scores)
        code, said = job(f"reference={path}", f"output={tmp_path / 'deep' / 'out'}")
        assert code == 0, said
        folder = tmp_path / "deep" / "out"
        assert names(folder) == FILES
        assert names(folder.parent) == ["out"]
        assert (folder / "vocabulary.json").read_text() == CP.to_json() + "\n"

        expected, _ = load_reference(path)
        model = KINDS[kind].from_pretrained(folder)
        assert equal(model.state_dict(), expected.state_dict())
        tokens, mask = torch.randint(0, 3, (2, LENGTH, 4)), torch.ones(2, LENGTH, dtype=torch.bool)
        outputs = [m(tokens=tokens, attention_mask=mask) for m in (model, expected)]
        assert torch.equal(*(out.logits if kind != "encoder" else out.last_hidden_state for out in outputs))
        encoder = getattr(expected, "midibert", expected)
        assert equal(AutoModel.from_pretrained(folder).state_dict(), encoder.state_dict())

        card = (folder / "README.md").read_text()
        assert "| `valid_acc/pitch` | 0.3000 |" in card and "| `valid_loss` | 1.5000 |" in card
        assert "The use of these weights is restricted" in card and "gives the melody away" in card
        assert "nan" not in card and "![](x)" not in card and str(tmp_path) not in card
        task = {"encoder": "", "notes": "velocity", "sequences": "composer"}[kind]
        assert f"fine-tuned for {task}" in card or not task

    def test_a_file_that_would_run_code_is_refused(self, tmp_path: Path, job: Job) -> None:
        target, path = tmp_path / "created", tmp_path / "bomb.ckpt"
        torch.save({"state_dict": reference_weights(), "epoch": Bomb(target)}, path)
        code, said = job(f"reference={path}", f"output={tmp_path / 'out'}")
        assert code == 2 and "error: " in said and "Traceback" not in said, said
        assert "bomb.ckpt: refused, it holds more than tensors" in said
        assert names(tmp_path) == ["bomb.ckpt"], "neither the bomb's file nor any output"

    @pytest.mark.parametrize("content", [b"", b"MThd" + bytes(99), b"PK\x03\x04" + bytes(99)])
    def test_other_files_are_refused(self, content: bytes, tmp_path: Path, job: Job) -> None:
        (tmp_path / "x.ckpt").write_bytes(content)
        code, said = job(f"reference={tmp_path / 'x.ckpt'}", f"output={tmp_path / 'out'}")
        assert code == 2 and "x.ckpt: " in said
        assert names(tmp_path) == ["x.ckpt"]

    @pytest.mark.corpora
    @pytest.mark.parametrize(
        ("file", "kind", "key"),
        [
            ("pretrain_model", "encoder", "last_hidden_state"),
            ("melody_model_best", "notes", "melody_logits"),
            ("composer_model_best", "sequences", "composer_logits_all_ones_mask"),
        ],
    )
    def test_outputs_equal_the_authors(
        self, file: str, kind: str, key: str, corpora_root: Path, tmp_path: Path, job: Job
    ) -> None:
        golden = corpora_root / "golden" / "reference_checkpoint"
        if not golden.is_dir():
            pytest.skip(f"no golden checkpoints in {golden}")
        code, said = job(f"reference={golden / file}.ckpt", f"output={tmp_path / 'out'}")
        assert code == 0, said
        with np.load(golden / "expected.npz") as arrays:
            tokens = torch.from_numpy(arrays["tokens"].astype(np.int64))
            mask, expected = torch.from_numpy(arrays["attention_mask"]), torch.from_numpy(arrays[key])
        model = KINDS[kind].from_pretrained(tmp_path / "out")
        with torch.no_grad():
            # In sequence-level tasks the authors attend to padding.
            actual = model(tokens=tokens, attention_mask=torch.ones_like(mask) if kind == "sequences" else mask)
        actual = actual.last_hidden_state if kind == "encoder" else actual.logits
        real = mask.bool() if kind != "sequences" else slice(None)
        torch.testing.assert_close(actual[real], expected[real], rtol=0, atol=1e-5)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return replace(preset("debug"), SIZES | {"storage.root": str(tmp_path_factory.mktemp("root"))})


def words(config: Config) -> list[str]:
    changed = {**SIZES, "storage.root": config.storage.root}
    return ["--preset", "debug", *(f"{key}={value}" for key, value in changed.items())]


@pytest.fixture(scope="module")
def run(config: Config) -> PretrainRun:
    """A finished pre-training as training.launch leaves it, its best checkpoint the first of two, without training."""
    key = run_key(config, [each.uri for each in pipeline.plan(config).tokens[0].values()])
    address = run_uri(config, key)
    note_settings(address, config)
    for step in (10, 20):
        folder = Path(address, f"step_{step:09d}")
        new_model(replace(config, {"seed": step})).save_pretrained(folder)
        point = {"valid/loss": step / 8, "valid/accuracy/pitch": 0.5, "valid/score": -1.0, "train/loss": 9.0}
        progress = {"epoch": 1, "step": step, "reports": [{"train/loss": 10.0}, point]}
        (folder / "progress.json").write_text(json.dumps(progress))
    done = PretrainRun(key, f"{address}/step_000000010", 10, {"valid/loss": 1.25, "valid/score": -1.0})
    storage.write_bytes(f"{address}/result.json", json.dumps(dataclasses.asdict(done)).encode())
    return done


class TestRun:
    """Checkpoints of our own."""

    def test_the_finished_run_of_the_settings(self, config: Config, run: PretrainRun, tmp_path: Path, job: Job) -> None:
        folder = tmp_path / "out"
        code, said = job(*words(config), f"output={folder}", "--dry-run")
        assert code == 0 and run.checkpoint in said and str(folder) in said
        assert not folder.exists()

        code, said = job(*words(config), f"output={folder}")
        assert code == 0, said
        assert names(folder) == FILES
        trained = load_checkpoint(run.checkpoint)
        assert equal(AutoModelForMaskedLM.from_pretrained(folder).state_dict(), trained.state_dict())
        assert equal(MidiBertModel.from_pretrained(folder).state_dict(), trained.midibert.state_dict())
        card = (folder / "README.md").read_text()
        assert run.key in card and "after 10 optimizer steps" in card and "| `valid/loss` | 1.2500 |" in card
        assert "license: mit" in card and "`clean`" in card and "optimizer.lr=0.002" in card
        assert str(tmp_path) not in card and "storage.root" not in card and "valid/score" not in card

    def test_a_storage_root_may_have_moved(self, config: Config, run: PretrainRun, tmp_path: Path, job: Job) -> None:
        shutil.copytree(config.storage.root, tmp_path / "moved")
        Path(config.storage.root).rename(tmp_path / "gone")
        there = replace(config, {"storage.root": str(tmp_path / "moved")})
        code, said = job(*words(there), f"output={tmp_path / 'out'}")
        (tmp_path / "gone").rename(config.storage.root)
        assert code == 0, said

    def test_a_checkpoint_in_a_bucket(self, config: Config, run: PretrainRun, s3: S3, tmp_path: Path, job: Job) -> None:
        root, written = s3.address(f"{s3.bucket()}/root"), Path(config.storage.root)
        for path in written.glob("runs/**/*.*"):
            storage.write_bytes(storage.join(root, path.relative_to(written).as_posix()), path.read_bytes())
        there = replace(config, {"storage.root": root})
        code, said = job(*words(there), f"output={tmp_path / 'best'}")
        assert code == 0, said
        assert equal(load_checkpoint(tmp_path / "best").state_dict(), load_checkpoint(run.checkpoint).state_dict())
        checkpoint = storage.join(root, "runs", run.key, "step_000000020")
        code, said = job(f"run={checkpoint}", f"output={tmp_path / 'known'}")
        assert code == 0 and "not known" not in said
        assert "after 20 optimizer steps" in (tmp_path / "known" / "README.md").read_text()

    def test_any_checkpoint_with_what_lies_beside_it(self, run: PretrainRun, tmp_path: Path, job: Job) -> None:
        address = run.checkpoint.replace("step_000000010", "step_000000020")
        code, said = job(f"run={address}", f"output={tmp_path / 'out'}")
        assert code == 0, said
        assert equal(load_checkpoint(tmp_path / "out").state_dict(), load_checkpoint(address).state_dict())
        card = (tmp_path / "out" / "README.md").read_text()
        assert "after 20 optimizer steps" in card and "| `valid/loss` | 2.5000 |" in card
        assert "train/loss" not in card and "model.hidden=32" in card and "license: mit" in card

    def test_half_the_size_on_request(self, run: PretrainRun, tmp_path: Path, job: Job) -> None:
        code, said = job(f"run={run.checkpoint}", f"output={tmp_path / 'out'}", "weights=int8")
        assert code == 2 and "weights='int8' is not allowed; use one of fp32, bf16" in said
        code, said = job(f"run={run.checkpoint}", f"output={tmp_path / 'out'}", "weights=bf16")
        assert code == 0, said
        rounded = {name: each.bfloat16().float() for name, each in load_checkpoint(run.checkpoint).state_dict().items()}
        assert equal(load_checkpoint(tmp_path / "out").state_dict(), rounded)
        sizes = [Path(folder, "model.safetensors").stat().st_size for folder in (tmp_path / "out", run.checkpoint)]
        assert sizes[0] == pytest.approx(sizes[1] / 2, rel=0.1)
        assert "the file has them rounded to bf16" in (tmp_path / "out" / "README.md").read_text()

    def test_a_checkpoint_of_which_nothing_is_known(self, run: PretrainRun, tmp_path: Path, job: Job) -> None:
        shutil.copytree(run.checkpoint, tmp_path / "copy" / "runs" / "lost" / "step")
        for number, address in enumerate(("copy/runs/lost/step", "copy/runs/lost/../lost/step/", "plain")):
            if address == "plain":
                shutil.copytree(run.checkpoint, tmp_path / address)
            code, said = job(f"run={tmp_path / address}", f"output={tmp_path / f'out{number}'}")
            assert code == 0 and "its training is not known" in said
            card = (tmp_path / f"out{number}" / "README.md").read_text()
            assert "license: other" in card and "neither is what these weights may be used for" in card
        assert not list((tmp_path / "copy").glob("*.db")), "looking leaves nothing behind"

    @pytest.mark.parametrize("left", ["", '{"epoch": 1, "st'])
    def test_a_cut_file_beside_the_weights_is_as_none(
        self, left: str, run: PretrainRun, tmp_path: Path, job: Job
    ) -> None:
        shutil.copytree(Path(run.checkpoint).parents[1], tmp_path / "runs")
        step = tmp_path / "runs" / run.key / "step_000000010"
        (step / "progress.json").write_text(left)
        code, said = job(f"run={step}", f"output={tmp_path / 'out'}")
        assert code == 0 and "its training is not known" in said
        assert equal(load_checkpoint(tmp_path / "out").state_dict(), load_checkpoint(run.checkpoint).state_dict())

    def test_what_is_not_there_is_said(self, config: Config, tmp_path: Path, job: Job) -> None:
        nowhere = replace(config, {"storage.root": str(tmp_path / "root")})
        code, said = job(*words(nowhere), f"output={tmp_path / 'out'}")
        assert code == 2 and "no finished pre-training" in said and "jobs/pretrain.py" in said
        code, said = job(f"run={tmp_path}", f"output={tmp_path / 'out'}")
        assert code == 2 and f"no model in {tmp_path}" in said
        code, said = job(f"run={tmp_path / 'nowhere'}", f"output={tmp_path / 'out'}")
        assert code == 2 and f"run={tmp_path / 'nowhere'}: there is no such folder" in said
        code, said = job(f"reference={tmp_path}", f"output={tmp_path / 'out'}")
        assert code == 2 and "there is no such file" in said
        assert not (tmp_path / "out").exists()

    def test_a_damaged_checkpoint_is_refused(self, run: PretrainRun, tmp_path: Path, job: Job) -> None:
        folder = Path(shutil.copytree(run.checkpoint, tmp_path / "step"))
        weights = folder / "model.safetensors"
        write_digests(folder, 0, 1)
        assert job(f"run={folder}", f"output={tmp_path / 'whole'}")[0] == 0
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit of a weight
        code, said = job(f"run={folder}", f"output={tmp_path / 'out'}")
        assert code == 2 and "model.safetensors is not what was written; export another" in said
        (folder / "digests-00000.json").unlink()
        weights.write_bytes(whole[:-50])
        code, said = job(f"run={folder}", f"output={tmp_path / 'out'}")
        assert code == 2 and "damaged" in said
        assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def trials(config: Config, run: PretrainRun, sample_store: TokenStore) -> dict[str, Path]:
    """Variant -> folder of a finished trial on that encoder."""
    return finished_trials(config, run.checkpoint, sample_store)


def finished_trials(config: Config, encoder: str, store: TokenStore) -> dict[str, Path]:
    """Variant -> folder of a trial that is run for real without Ray, and stored as Tune does."""
    folders: dict[str, Path] = {}
    mine = replace(config, TRIALS | {"storage.cache": str(Path(config.storage.root) / "cache")})
    plan = make(mine, lambda config, names: dict.fromkeys(names, store.uri))
    for key, entry in plan.trials.items():
        folder = folders[entry.trial.variant] = Path(plan.uri(key))

        def report(metrics: dict[str, Any], checkpoint: Any = None, folder: Path = folder) -> None:
            if checkpoint:
                shutil.rmtree(folder, ignore_errors=True)  # Tune is told to keep one
                shutil.copytree(checkpoint.path, folder / f"checkpoint_{metrics['epoch']:06d}")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tune, "report", report)
            patch.setattr(tune, "get_checkpoint", lambda: None)
            run_trial(entry, encoder if entry.encoder else "", plan.key, str(folder))
    return folders


class TestTrial:
    """Fine-tuned models of our own."""

    @pytest.mark.parametrize("variant", ["freeze-backbone", "scratch"])
    def test_the_card_tells_what_the_trial_left(
        self, variant: str, trials: dict[str, Path], run: PretrainRun, tmp_path: Path, job: Job
    ) -> None:
        folder = trials[variant]
        (checkpoint,) = folder.iterdir()
        name, root = folder.name[:-11], folder.parents[2]  # without its hash, as the tables print it
        code, said = job(f"run={name}", f"storage.root={root}", f"output={tmp_path / 'out'}", "--dry-run")
        assert code == 0 and str(checkpoint) in said
        code, said = job(f"run={folder}", f"output={tmp_path / 'out'}")
        assert code == 0 and "not known" not in said, said
        assert names(tmp_path / "out") == sorted([*FILES, "calibration.json"])
        assert (tmp_path / "out" / "calibration.json").read_bytes() == (checkpoint / "calibration.json").read_bytes()
        model, trained = MidiBertForNotes.from_pretrained(tmp_path / "out"), load_checkpoint(checkpoint)
        assert equal(model.state_dict(), trained.state_dict())
        assert list(model.config.id2label.values()) == ["melody", "bridge", "accompaniment"]
        for config in (model.config, trained.config):
            assert config.task == "melody" and config.protocol == {"name": "clean"}

        card, left = (
            (tmp_path / "out" / "README.md").read_text(),
            results.TrialResult.from_json((checkpoint / results.OUTCOME).read_bytes()),
        )
        assert "fine-tuned for melody" in card and "(task melody):" in card and folder.parent.name in card
        assert all(f"| `{name}` | {value:.4f} |" in card for name, value in left.metrics.items())
        assert {"test/accuracy", "test/f1", "test/loss"} <= left.metrics.keys()
        assert f"{left.scored:,} notes of the test split of sample, protocol `clean`" in card
        assert f"would score {left.majority:.4f}" in card
        calibration = Calibration.find(tmp_path / "out")
        assert calibration and calibration.test and calibration.test.scored == left.scored
        assert f"Divide logits by {calibration.temperature:.4f}" in card and "On the test split, probability" in card
        first = calibration.test.abstention[0]
        assert f"| 0.5 | {first.coverage:.4f} | {first.accuracy:.4f} |" in card
        assert "1 epoch from" in card and "license: mit" in card and "finetune.lr=0.01" in card
        assert "Not known" not in card and "not known" not in card
        assert str(tmp_path.parent) not in card and "finetune.corpus" not in card, "no addresses of this machine"
        pretrained = variant != "scratch"
        assert (f"the encoder of pre-training `{run.key}` with the encoder frozen" in card) == pretrained
        assert ("| pre-training and fine-tuning | " in card) == ("pretrain.epochs=" in card) == pretrained
        assert ("from random weights" in card) == ("| fine-tuning | " in card) != pretrained

    def test_corpora_and_licences_are_those_of_both_stages(
        self, trials: dict[str, Path], tmp_path: Path, job: Job
    ) -> None:
        (checkpoint,) = Path(shutil.copytree(trials["freeze-backbone"], tmp_path / "trial")).iterdir()
        place = checkpoint / results.ORIGIN
        origin = results.Provenance.from_json(place.read_bytes())
        corpora = {"corpora.names": ("pop1k7", "asap"), "finetune.corpus": "", "tokens.protocol": "paper"}
        place.write_text(dataclasses.replace(origin, config=origin.config | corpora).to_json())
        write_digests_anew(checkpoint)
        assert job(f"run={checkpoint}", f"output={tmp_path / 'out'}")[0] == 0
        card = (tmp_path / "out" / "README.md").read_text()
        assert head(card)["datasets"] == ["pop1k7", "asap", "pop909"] and "license: other" in card
        licence = card.partition("## Licence")[2].partition("##")[0]
        assert (
            "**The use of these weights is restricted**" in licence and "ASAP (4/4 scores): CC BY-NC-SA 4.0" in licence
        )
        assert (
            "| pre-training | ASAP (4/4 scores) | CC BY-NC-SA 4.0 |" in card
            and "| fine-tuning | POP909 | MIT |" in card
        )
        assert "test split of pop909, protocol `paper`" in card and "gives the melody away" in card

    def test_a_lineage_goes_on(
        self, config: Config, run: PretrainRun, sample_store: TokenStore, tmp_path: Path, job: Job
    ) -> None:
        assert job(f"run={run.checkpoint}", f"output={tmp_path / 'first'}")[0] == 0
        assert "## Lineage" not in (tmp_path / "first" / "README.md").read_text()
        start = {"finetune.start": str(tmp_path / "first"), "storage.root": str(tmp_path / "root")}
        folder = finished_trials(replace(config, start), "", sample_store)["freeze-backbone"]
        code, said = job(f"run={folder}", f"output={tmp_path / 'second'}")
        assert code == 0, said
        first, second = (load_checkpoint(tmp_path / name) for name in ("first", "second"))
        assert equal(second.midibert.state_dict(), first.midibert.state_dict()), "which was frozen"
        sha256 = digests.of_file(tmp_path / "first" / "model.safetensors")["sha256"]
        (pretrained,) = first.config.lineage
        ancestor, own = second.config.lineage
        assert ancestor == pretrained | {"sha256": sha256} and own["corpora"] == ["sample"]
        card = (tmp_path / "second" / "README.md").read_text()
        assert (
            f"1. pre-training `{run.key}` after 10 optimizer steps, on sample; sha256 of its weights `{sha256}`" in card
        )
        assert "2. fine-tuning for melody, trial `melody-freeze-backbone-clean-seed2021` of study `" in card
        assert "1 epoch from the encoder of its lineage with the encoder frozen" in card
        assert "| earlier stages and fine-tuning | " in card and "license: mit" in card and str(tmp_path) not in card

    def test_without_its_settings_a_trial_still_has_metrics(
        self, trials: dict[str, Path], tmp_path: Path, job: Job
    ) -> None:
        (checkpoint,) = Path(shutil.copytree(trials["scratch"], tmp_path / "trial")).iterdir()
        (checkpoint / results.ORIGIN).unlink()
        (checkpoint / "calibration.json").unlink()  # as in a trial of an earlier version
        write_digests_anew(checkpoint)
        code, said = job(f"run={checkpoint}", f"output={tmp_path / 'out'}")
        assert code == 0 and "has no trial.json: the model card will say that its training is not known" in said
        card = (tmp_path / "out" / "README.md").read_text()
        assert "Not calibrated" in card and names(tmp_path / "out") == FILES
        assert "| `test/accuracy` |" in card and "notes of the test split" in card and "license: other" in card
        assert "neither is what these weights may be used for" in card

    def test_an_unfinished_or_damaged_trial_is_refused(self, trials: dict[str, Path], tmp_path: Path, job: Job) -> None:
        trial = Path(shutil.copytree(trials["scratch"], tmp_path / "trial"))
        (checkpoint,) = trial.iterdir()
        text = (checkpoint / results.OUTCOME).read_text()
        (checkpoint / results.OUTCOME).write_text(text.replace("melody", "malady"))
        code, said = job(f"run={checkpoint}", f"output={tmp_path / 'out'}")
        assert code == 2 and "outcome.json is not what was written; bring it back" in said
        (checkpoint / results.OUTCOME).unlink()
        write_digests_anew(checkpoint)
        code, said = job(f"run={trial}", f"output={tmp_path / 'out'}")
        assert code == 2 and "has not finished" in said and "start its study again" in said
        code, said = job(f"run={trials['scratch'].parent}", f"output={tmp_path / 'out'}")
        assert code == 2 and "or a finished trial, such as OUT/studies/ablation-" in said
        code, said = job(f"run={checkpoint / 'config.json'}", f"output={tmp_path / 'out'}")
        assert code == 2 and "no model in" in said
        assert not (tmp_path / "out").exists()


def write_digests_anew(checkpoint: Path) -> None:
    (checkpoint / "digests-00000.json").unlink()
    write_digests(checkpoint, 0, 1, checkpoint.parent.name)


class TestOutput:
    """Where an export is written."""

    def test_nothing_is_overwritten_and_an_empty_folder_will_do(self, tmp_path: Path, job: Job) -> None:
        path = write(tmp_path / "x.ckpt", reference_weights())
        folder = tmp_path / "out"
        folder.mkdir()
        assert job(f"reference={path}", f"output={folder}")[0] == 0
        before = {name: (folder / name).read_bytes() for name in FILES}
        for taken in (folder, path):
            code, said = job(f"reference={path}", f"output={taken}")
            assert code == 2 and "there already" in said
        assert {name: (folder / name).read_bytes() for name in names(folder)} == before

    def test_a_bucket_has_an_export_once_its_last_file_is_there(self, s3: S3, tmp_path: Path, job: Job) -> None:
        path = write(tmp_path / "x.ckpt", reference_weights())
        bucket = s3.bucket()
        words = [f"reference={path}", f"output={s3.address(f'{bucket}/exports/mine')}"]
        s3.hook = lambda request: request.startswith("PUT") and "vocabulary.json" in request
        with pytest.raises(OSError, match="ACCESS_DENIED"):
            job(*words)
        s3.hook = None
        assert s3.keys(f"{bucket}/exports/mine") == ["model.safetensors"]
        code, said = job(*words)
        assert code == 0 and f"{', '.join(FILES)}" in said
        assert s3.keys(f"{bucket}/exports/mine") == FILES
        puts = [request.partition("?")[0].rpartition("/")[2] for request in s3.requests if request.startswith("PUT")]
        assert puts[-1] == "config.json"
        code, said = job(*words)
        assert code == 2 and "there already" in said
        storage.download(s3.address(f"{bucket}/exports/mine"), tmp_path, FILES)
        assert equal(MidiBertModel.from_pretrained(tmp_path).state_dict(), load_reference(path)[0].state_dict())

    def test_what_others_left_in_a_bucket_is_not_overwritten(self, s3: S3, tmp_path: Path, job: Job) -> None:
        path = write(tmp_path / "x.ckpt", reference_weights())
        for number, names in enumerate(
            (["README.md"], ["model.safetensors", "other"], ["model.safetensors", "config.json"])
        ):
            place = s3.address(f"{s3.bucket()}/{number}")
            for name in names:
                storage.write_bytes(storage.join(place, name), b"x")
            code, said = job(f"reference={path}", f"output={place}")
            assert code == 2 and "nothing is overwritten" in said
        code, said = job(f"reference={path}", f"output={s3.address('no-such-bucket/x')}")
        assert code == 2 and "there is no such bucket" in said

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            (["reference=x"], "output='' is not allowed"),
            (["reference=x", "output="], "output= has no value"),
            (["reference=x", "output=hdfs://host/x"], "use a folder, s3://bucket/prefix or gs://bucket/prefix"),
            (["run=s3://Bucket/x", "output=z"], "run='s3://Bucket/x' is not allowed"),
            (["reference=s3://bucket/x", "output=z"], "use a folder of the machine itself"),
            (["reference=x", "run=y", "output=z"], "two sources"),
            (["refrence=x", "output=z"], "did you mean 'reference'"),
            (["output=z", "optimizer.lrr=1"], "optimizer.lr"),
        ],
    )
    def test_wrong_words_are_explained(self, given: list[str], told: str, job: Job) -> None:
        code, said = job(*given)
        assert code == 2 and told in said


WITHOUT_RAY = """
import sys

sys.modules |= dict.fromkeys(("ray", "deepspeed", "mlflow"))  # none of them is found, nor can be imported
for name in ("ray", "deepspeed"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} could be imported")

import torch
from transformers import AutoModel
from midibert_ray.model.midibert import MidiBertModel

folder = sys.argv[1]
batch = torch.load(folder + "/batch.pt", weights_only=True)
models = [kind.from_pretrained(folder + "/out").eval() for kind in (MidiBertModel, AutoModel)]
with torch.no_grad():
    torch.save([model(**batch).last_hidden_state for model in models], folder + "/hidden.pt")
"""


def test_the_folder_opens_where_ray_and_deepspeed_cannot_be_imported(
    run: PretrainRun, tmp_path: Path, job: Job
) -> None:
    assert job(f"run={run.checkpoint}", f"output={tmp_path / 'out'}")[0] == 0
    lengths = torch.tensor([[64], [30]])
    batch = {"tokens": torch.randint(0, 3, (2, 64, 4)), "attention_mask": torch.arange(64) < lengths}
    torch.save(batch, tmp_path / "batch.pt")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = load_checkpoint(run.checkpoint).midibert(**batch).last_hidden_state
    for hidden in torch.load(tmp_path / "hidden.pt", weights_only=True):
        torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-6)


@pytest.mark.ray
def test_a_real_pre_training_is_exported(undisturbed: Config, tmp_path: Path) -> None:
    done("export", *command("export", undisturbed)[2:], f"output={tmp_path / 'out'}")
    (place,) = Path(undisturbed.storage.root).glob("runs/*/result.json")
    result = json.loads(place.read_text())
    assert equal(load_checkpoint(tmp_path / "out").state_dict(), load_checkpoint(result["checkpoint"]).state_dict())
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| `valid/loss` | {result['metrics']['valid/loss']:.4f} |" in card
