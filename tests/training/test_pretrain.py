"""The pre-training loop in one process, with real DeepSpeed on the sample music."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from midibert_ray.data.store import TokenStore
from midibert_ray.model.folder import load_checkpoint, save_export
from midibert_ray.model.midibert import MidiBertModel
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.training import engine as engines
from midibert_ray.training.build import new_model
from midibert_ray.training.engine import Progress
from midibert_ray.training.pretrain import PretrainData, PretrainLoop, run_epochs, score
from midibert_ray.training.recorder import progress_lines
from tests.stores import Piece, write_store

CPU = torch.device("cpu")
Reports = list[tuple[dict[str, Any], bool]]


def run(
    config: Config,
    store: TokenStore,
    *,
    resume: Path | None = None,
    save: Path | None = None,
    kept: list[list[int]] | None = None,
) -> Reports:
    """All reports of a run; with `save`, a checkpoint of its first validation is written there.

    `kept` takes the steps of the reports that each checkpoint holds.
    """
    data = PretrainData(config, [store])
    engine = engines.build(new_model(config), config, steps=data.steps(config.pretrain.epochs), device=CPU)
    progress = engines.load(engine, resume) if resume else Progress()
    reports: Reports = []

    def report(metrics: dict[str, Any], checkpoint: bool) -> None:
        reports.append((metrics, checkpoint))
        if checkpoint and save and not save.exists():
            save.mkdir()
            engines.save(engine, progress, save)
        if checkpoint and kept is not None:
            kept.append([int(each["step"]) for each in progress.reports])

    run_epochs(PretrainLoop(config, data, engine, rank=0, world=1, device=CPU), progress, report)
    return reports


def losses(reports: Reports) -> list[float]:
    names = ("train/loss", "valid/loss", "train/roll", "valid/roll")
    return [metrics[key] for metrics, _ in reports for key in names if key in metrics]


def test_clean_data_leaves_test_pieces_out_and_cuts_by_piece(sample_store: TokenStore, tiny: Config) -> None:
    data = PretrainData(tiny, [sample_store])

    def pieces(segments: Any, rows: Any) -> set[str]:
        return {segments.piece_id(int(piece)) for piece in segments.gather(rows).piece}

    train, valid = pieces(data.train, data.train_rows), pieces(data.valid, data.valid_rows)
    tested = {sample_store.piece_id(i) for i in range(len(sample_store)) if sample_store.split(i) == "test"}
    assert not train & valid
    assert not (train | valid) & tested
    assert len(train | valid | tested) == len(sample_store)


def test_paper_data_takes_all_segments_and_cuts_by_segment(sample_store: TokenStore, tiny: Config) -> None:
    data = PretrainData(replace(tiny, {"tokens.protocol": "paper"}), [sample_store])
    assert len(data.train_rows) == int(0.85 * len(data.train))
    assert len(data.train_rows) + len(data.valid_rows) == len(data.train)


def test_each_repair_of_pretraining_data_changes_its_own_part(sample_store: TokenStore, tiny: Config) -> None:
    def pieces(**switches: object) -> tuple[set[str], set[str]]:
        changes = {f"protocol.{name}": value for name, value in switches.items()}
        data = PretrainData(replace(tiny, {"tokens.protocol": "paper"} | changes), [sample_store])
        sides = ((data.train, data.train_rows), (data.valid, data.valid_rows))
        train, valid = ({part.piece_id(int(i)) for i in part.gather(rows).piece} for part, rows in sides)
        return train, valid

    tested = {sample_store.piece_id(i) for i in range(len(sample_store)) if sample_store.split(i) == "test"}
    train, valid = pieces()
    assert train & valid and (train | valid) >= tested
    train, valid = pieces(validates_by="piece")
    assert not train & valid and (train | valid) >= tested
    train, valid = pieces(pretrains_on_test=False)
    assert train & valid and not (train | valid) & tested


def test_the_repaired_score_is_the_loss(tiny: Config) -> None:
    paper, metrics = replace(tiny, {"tokens.protocol": "paper"}), {"valid/accuracy": 0.5, "valid/loss": 2.0}
    assert score(paper, metrics) == 0.5
    assert score(replace(paper, {"protocol.judged_by": "loss"}), metrics) == -2.0


@pytest.mark.parametrize("protocol", ["paper", "clean"])
def test_train_splits_leave_validation_and_test_pieces_out(
    sample_pieces: list[Piece], tiny: Config, tmp_path: Path, protocol: str
) -> None:
    unlabelled = [(f"{piece} again", "pretrain", None, tokens) for piece, _, _, tokens in sample_pieces[:4]]
    stores = [
        TokenStore.open(write_store(tmp_path / name, pieces, name), str(tmp_path / "cache"))
        for name, pieces in (("labelled", sample_pieces), ("unlabelled", unlabelled))
    ]
    data = PretrainData(replace(tiny, {"tokens.protocol": protocol, "pretrain.splits": "train"}), stores)
    found = {
        segments.piece_id(int(piece))
        for segments, rows in ((data.train, data.train_rows), (data.valid, data.valid_rows))
        for piece in segments.gather(rows).piece
    }
    assert found == {piece for piece, split, *_ in [*sample_pieces, *unlabelled] if split in ("train", "pretrain")}


@pytest.mark.parametrize(
    ("protocol", "representation"),
    [
        ("clean", "cp"),
        ("paper", "remi"),
        pytest.param("paper", "cp", marks=pytest.mark.slow),
        pytest.param("clean", "remi", marks=pytest.mark.slow),
    ],
)
def test_it_learns(
    process_group: None, sample_store: TokenStore, tiny: Config, protocol: str, representation: str
) -> None:
    changes = {"tokens.protocol": protocol, "model.representation": representation}
    reports = run(replace(tiny, changes | {"compute.log_every": 2}), sample_store)
    train = [metrics["train/loss"] for metrics, _ in reports if "train/loss" in metrics]
    assert train[-1] < train[0] - 0.1


NOISY = {
    "pretrain.objective": "noise",
    "mask.fraction": 0.3,
    "augment.transpose": 6,
    "augment.shift": 15,
    "augment.scale": True,
    "augment.thin": 0.1,
}


ROLLED = NOISY | {"pretrain.roll": 0.01}


@pytest.mark.parametrize("changes", [{}, NOISY, ROLLED], ids=["mask", "noise", "roll"])
def test_any_accumulation_gives_the_same_curve(
    process_group: None, sample_store: TokenStore, tiny: Config, changes: dict[str, Any]
) -> None:
    tiny = replace(tiny, {"pretrain.epochs": 1} | changes)
    whole = losses(run(tiny, sample_store))
    parts = losses(run(replace(tiny, {"compute.micro_batch": 4}), sample_store))
    assert parts == pytest.approx(whole, rel=1e-4)


def test_noise_is_learned_and_validation_sees_music_as_it_is(
    process_group: None, sample_store: TokenStore, tiny: Config
) -> None:
    tiny = replace(tiny, {"pretrain.objective": "noise", "mask.fraction": 0.3, "pretrain.epochs": 2})
    plain = run(tiny, sample_store)
    train = [metrics["train/loss"] for metrics, _ in plain if "train/loss" in metrics]
    assert train[-1] < train[0] - 0.1
    # A model that learns nothing is validated on the same notes, whatever its training sees.
    still = replace(tiny, {"optimizer.lr": 1e-12, "pretrain.epochs": 1})
    valid = [
        [metrics["valid/loss"] for metrics, _ in run(config, sample_store) if "valid/loss" in metrics]
        for config in (still, replace(still, {"augment.transpose": 6, "augment.thin": 0.3}))
    ]
    assert valid[0] == pytest.approx(valid[1], rel=1e-5)


def test_rolls_are_learned_beside_tokens_and_left_out_of_what_is_opened(
    process_group: None, sample_store: TokenStore, tiny: Config, tmp_path: Path
) -> None:
    changes = {"pretrain.roll": 0.05, "pretrain.epochs": 7}
    reports = run(replace(tiny, changes), sample_store, save=tmp_path / "rolled")
    for name in ("train/roll", "valid/roll"):
        errors = [metrics[name] for metrics, _ in reports if name in metrics]
        assert errors and errors[-1] < 34, "the squared length of a target is 34 at most, the error of silence"
    errors = [metrics["train/roll"] for metrics, _ in reports if "train/roll" in metrics]
    assert errors[-1] < errors[0] - 0.5
    assert "roll" in progress_lines(1, 2, reports[0][0])[0]
    assert any(name.startswith("roll.") for name in load_file(tmp_path / "rolled/model.safetensors"))
    folder = save_export(load_checkpoint(tmp_path / "rolled"), tmp_path / "export")
    assert not any(name.startswith("roll.") for name in load_file(folder / "model.safetensors"))
    encoder = MidiBertModel.from_pretrained(tmp_path / "rolled")
    assert encoder.state_dict().keys() == MidiBertModel.from_pretrained(folder).state_dict().keys()


@pytest.mark.parametrize("roll", [0.0, 0.01])
def test_a_resumed_run_goes_on_bit_for_bit(
    process_group: None, sample_store: TokenStore, tiny: Config, tmp_path: Path, roll: float
) -> None:
    config = replace(tiny, {"model.dropout": 0.1, "pretrain.valid_every": 1, "pretrain.roll": roll})
    undisturbed = run(config, sample_store, save=tmp_path / "first")
    resumed = run(config, sample_store, resume=tmp_path / "first")
    first = next(at for at, (_, checkpoint) in enumerate(undisturbed) if checkpoint)
    # First it says again what was reported before the checkpoint: the driver may not have written it down.
    assert losses(resumed) == losses(undisturbed)
    assert [metrics["step"] for metrics, _ in resumed] == [metrics["step"] for metrics, _ in undisturbed]
    assert not any(checkpoint for _, checkpoint in resumed[: first + 1])


def test_a_checkpoint_holds_the_reports_that_may_wait_to_be_written_down(
    process_group: None, sample_store: TokenStore, tiny: Config, tmp_path: Path
) -> None:
    """With it on the disk, the controller may still be at the reports of the last checkpoint but two.

    So it was where a driver was ended while its controller imported MLflow, for seconds, and epochs took less.
    """
    config = replace(tiny, {"pretrain.epochs": 5, "pretrain.valid_every": 1, "compute.log_every": 1})
    kept: list[list[int]] = []
    reports = run(config, sample_store, save=tmp_path / "first", kept=kept)
    steps, ends = ([int(each["step"]) for each, saved in reports if saved >= only] for only in (False, True))
    per_epoch = ends[0]
    assert (
        ends == [per_epoch * epoch for epoch in range(1, 6)] and per_epoch > 1 and steps == list(range(1, ends[-1] + 1))
    )
    assert kept == [[step for step in steps if end - 3 * per_epoch < step <= end] for end in ends]
    # What a resumed run says again is written down with its first own report, not when it was first said.
    kept.clear()
    run(config, sample_store, resume=tmp_path / "first", kept=kept)
    assert [(held[0], held[-1]) for held in kept] == [(1, ends[1]), (1, ends[2]), (1, ends[3]), (ends[1] + 1, ends[4])]


def test_a_run_at_its_end_only_says_again_what_it_said(
    process_group: None, sample_store: TokenStore, tiny: Config, tmp_path: Path
) -> None:
    config = replace(tiny, {"pretrain.epochs": 1})
    reports = run(config, sample_store, save=tmp_path / "last")
    again = run(config, sample_store, resume=tmp_path / "last")
    assert again == [(metrics, False) for metrics, _ in reports]


@pytest.mark.parametrize("stage", [0, 1])
def test_a_gradient_that_is_not_finite_stops_the_run(
    process_group: None, sample_store: TokenStore, tiny: Config, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    def poison(engine: Any) -> None:
        if engine.global_steps == 2:
            weight = engine.module.heads[0].bias
            weight.register_hook(lambda grad: grad / 0)

    whole = PretrainLoop._forward

    def forward(job: PretrainLoop, *inputs: Any, **how: Any) -> dict[str, Any]:
        poison(job.engine)
        return whole(job, *inputs, **how)

    monkeypatch.setattr(PretrainLoop, "_forward", forward)
    with pytest.raises(FloatingPointError, match=r"loss or gradient is not finite at step 3 on worker 0"):
        run(replace(tiny, {"compute.zero_stage": stage}), sample_store)


@pytest.mark.parametrize(
    ("parts", "detail"),
    [
        ({}, ""),
        ({"valid/roll": 3.0}, " (roll 3.00)"),
        ({"valid/loss/pitch": 2.0, "valid/loss/duration": 1.0}, " (pitch 2.00 dur 1.00)"),
        ({"valid/loss/pitch": 2.0, "valid/roll": 3.0}, " (pitch 2.00, roll 3.00)"),
    ],
)
def test_a_line_takes_a_loss_apart_where_it_has_parts(parts: dict[str, float], detail: str) -> None:
    (line,) = progress_lines(1, 2, {"valid/loss": 5.0, "valid/accuracy": 0.5, **parts})
    assert line == f"step       1/2  50.0% │ valid loss  5.000{detail} │ accuracy 50.0%"


@pytest.mark.parametrize("representation", ["cp", "remi"])
def test_only_notes_count_as_super_tokens(
    process_group: None, sample_store: TokenStore, tiny: Config, representation: str
) -> None:
    config = replace(tiny, {"model.representation": representation, "pretrain.epochs": 1, "compute.log_every": 1})
    data = PretrainData(config, [sample_store])
    metrics = [metrics for metrics, _ in run(config, sample_store) if "train/loss" in metrics]
    counted = [f["throughput/super_tokens_per_s"] / f["throughput/steps_per_s"] for f in metrics]
    batches = [data.train.gather(data.train_rows[data.order.indices(0, k)]) for k in range(len(metrics))]
    assert counted == pytest.approx([(batch.note >= 0).sum() for batch in batches])


def test_early_stop(process_group: None, sample_store: TokenStore, tiny: Config) -> None:
    config = replace(
        tiny, {"optimizer.lr": 1e-12, "pretrain.epochs": 9, "pretrain.patience": 2, "pretrain.valid_every": 1}
    )
    validations = [metrics for metrics, checkpoint in run(config, sample_store) if checkpoint]
    assert len(validations) < 9


def test_a_loss_that_is_not_finite_stops_the_run(process_group: None, sample_store: TokenStore, tiny: Config) -> None:
    config = replace(tiny, {"optimizer.lr": 1e30, "optimizer.warmup_steps": 0, "optimizer.clip": 0})
    with pytest.raises(
        FloatingPointError, match=r"loss or gradient is not finite at step 2 on worker 0; none was finite before; lower"
    ):
        run(config, sample_store)


def test_a_loss_that_breaks_later_names_the_last_finite_metrics(
    process_group: None, sample_store: TokenStore, tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = PretrainLoop._forward

    def poisoned(job: PretrainLoop, *inputs: Any, **how: Any) -> dict[str, Any]:
        sums = whole(job, *inputs, **how)
        broken = {name: sums[name] / 0 for name in ("loss", "Pitch/loss")}
        return sums | broken if job.engine.global_steps == 6 else sums

    monkeypatch.setattr(PretrainLoop, "_forward", poisoned)
    words = (
        r"not finite at step 7 on worker 0; the last finite metrics, of step 4: train/loss \d\.\d+, .*train/accuracy"
    )
    with pytest.raises(FloatingPointError, match=words):
        run(tiny, sample_store)


@pytest.mark.parametrize("stage", [0, 1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_reports_carry_what_a_reader_wants(
    process_group: None, sample_store: TokenStore, tiny: Config, stage: int
) -> None:
    tiny = replace(tiny, {"pretrain.epochs": 1, "compute.zero_stage": stage, "compute.log_every": 2})
    reports = run(tiny, sample_store)
    train = reports[0][0]
    wanted = {"train/loss/pitch", "train/accuracy/bar", "optimizer/lr", "optimizer/gradient_norm", "memory/gib"}
    rates = {f"throughput/{name}" for name in ("super_tokens_per_s", "model_flops_per_s", "mfu")}
    assert wanted | rates <= train.keys()
    assert 0 < train["throughput/mfu"] < 1
    assert 0 <= train["throughput/batches_waited"] < 1 and train["throughput/batches_made"] > 0
    assert train["optimizer/lr"] == pytest.approx(tiny.optimizer.lr * train["step"] / tiny.optimizer.warmup_steps)
    assert train["step"] == tiny.compute.log_every
    (line,) = progress_lines(train["step"], train["steps"], train)
    assert all(word in line for word in ("pitch", "dur", "super tokens/s", "eta"))
    valid = reports[-1][0]
    assert valid["valid/score"] == score(tiny, valid) == -valid["valid/loss"]
    training, validation = progress_lines(valid["step"], valid["steps"], valid)
    assert "super tokens/s" in training
    assert "accuracy" in validation
