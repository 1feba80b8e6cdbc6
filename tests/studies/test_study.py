"""Ray Tune for real: a study does what is open, once, and one failure takes nothing else with it."""

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.tune.execution.tune_controller import TuneController

from midibert_ray import tracking
from midibert_ray.data.store import TokenStore
from midibert_ray.model.calibration import Calibration
from midibert_ray.report import plots, report, table
from midibert_ray.report.publish import publish
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.studies import sweep
from midibert_ray.studies.plan import Locate, Spec, StudyPlan, make
from midibert_ray.studies.study import StudyResult, _column, open_specs, study
from tests.tiny import tiny_study

ALONE = {"compute.max_concurrent_trials": 1}
"""One process does all trials: starting another takes longer than these."""
PRETRAIN = ALONE | {"pretrain.epochs": 2, "pretrain.valid_every": 1, "compute.workers": 1}


@pytest.fixture
def locate(sample_store: TokenStore) -> Locate:
    def find(config: Config, names: Iterable[str]) -> dict[str, str]:
        return dict.fromkeys(names, sample_store.uri)

    return find


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For studies that may find the same pre-training."""
    return tmp_path_factory.mktemp("shared")


def statuses(config: Config, key: str) -> tuple[str, list[str]]:
    """What MLflow says of a study and of its trials, each of which it scores once."""
    tracker = tracking.Tracker(tracking.uris(config))
    experiment = tracking.study_experiment(config.study.name)
    (parent,) = [run for run in tracker.parents(experiment) if run.data.tags[tracking.RUN_KEY] == key]
    children = tracker.children(experiment, parent.info.run_id)
    assert all(len(tracker.curve(child.info.run_id, "test/accuracy")) <= 1 for child in children)
    return parent.info.status, sorted(child.info.status for child in children)


def run(plan: StudyPlan) -> StudyResult:
    """What a job does after it has tokenized."""
    result = study(plan, plots.confusion)
    publish(plan, result)
    return result


def scores(result: StudyResult) -> dict[str, dict[str, float]]:
    return {item.trial: item.metrics for item in result.outcomes}


def test_a_task_that_the_corpus_cannot_serve_stops_before_any_trial(tmp_path: Path, locate: Locate) -> None:
    plan = make(tiny_study(tmp_path, study__tasks=("emotion",)), locate)
    with pytest.raises(ValueError, match=r"task emotion needs the labels Q1.*set finetune\.corpus=emopia"):
        open_specs(plan, {}, set())


def test_work_that_is_done_is_not_handed_out_again(tmp_path: Path, locate: Locate) -> None:
    plan = make(tiny_study(tmp_path, study__variants=("scratch", "pretrained", "rnn"), rnn__epochs=3), locate)
    (encoder,) = plan.pretrainings
    scratch, pretrained, rnn = plan.trials
    assert [item.key for item in open_specs(plan, {}, set())] == [encoder, rnn, scratch, pretrained]
    assert [item.key for item in open_specs(plan, {encoder: "there"}, {rnn})] == [scratch, pretrained]
    assert [item.key for item in open_specs(plan, {}, {pretrained})] == [rnn, scratch]
    assert open_specs(plan, {}, set(plan.trials)) == []


@pytest.mark.ray
def test_a_study_pretrains_tunes_and_repeats_nothing(ray_cluster: object, shared: Path, locate: Locate) -> None:
    config = replace(tiny_study(shared, study__variants=("pretrained", "probe", "scratch")), PRETRAIN)
    first = run(make(config, locate))
    assert not first.failed and [item.variant for item in first.outcomes] == ["pretrained", "probe", "scratch"]
    assert first.outcomes[1].metrics["probe/layer"] == 1
    folder = shared / "root/studies" / first.key
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*/checkpoint_*/outcome.json")}
    assert len(written) == 3
    for path in written:
        calibration = Calibration.find(path.parent)
        assert calibration and calibration.test and calibration.familiarity and calibration.valid.scored > 0

    more = replace(config, {"study.seeds": 2})
    plan = make(more, locate)
    for path in folder.iterdir():  # Tune's books are not needed
        if path.is_file() and path.name != "inputs.json":
            path.unlink()
    again = run(plan)
    assert again.key == first.key and len(again.outcomes) == 6 and not again.failed
    (encoder,) = plan.pretrainings  # one for all seeds
    assert (shared / "root/runs" / encoder / "result.json").exists()
    assert run(plan) == again
    assert statuses(more, again.key) == ("FINISHED", ["FINISHED"] * 6)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert scores(again).items() >= scores(first).items(), "same seeds, same scores"


@pytest.mark.ray
def test_levers_are_tested_against_masks_and_drawn(ray_cluster: object, shared: Path, locate: Locate) -> None:
    rows = ("pretrained", "noise-roll-transpose")
    config = replace(tiny_study(shared), PRETRAIN | {"study.tables": ("levers",), "study.variants": rows})
    config = replace(config, {"study.tasks": ("melody",), "study.name": "levers"})
    result = run(make(config, locate))
    assert not result.failed and {item.variant for item in result.outcomes} == set(rows)
    (levers,) = table.build(result.outcomes, {}, tables=("levers",))
    tested = {key.variant: cell.p for key, cell in levers.cells.items()}
    assert tested["pretrained"] is None and tested["noise-roll-transpose"] is not None
    page = Path(report.write(config, result.key)).read_text()
    for words in (
        "What helps: pre-trainings that see as many notes",
        "noise, piano roll, transposition",
        "roll 0.0057",
    ):
        assert words in page
    tracker = tracking.Tracker(tracking.uris(config))
    (parent,) = tracker.parents(tracking.study_experiment("levers"))
    for name in ("curves-pretraining-loss.png", "curves-melody-clean.png"):
        assert tracker.artifact(parent.info.run_id, name).startswith(b"\x89PNG")


@pytest.mark.ray
def test_a_failure_is_one_cell_with_its_reason(ray_cluster: object, tmp_path: Path, locate: Locate) -> None:
    rates = {"optimizer__lr": 1e30, "finetune__lr": 1e30}
    config = tiny_study(tmp_path, **rates, rnn__epochs=1, study__variants=("pretrained", "scratch", "rnn"))
    plan = make(replace(config, PRETRAIN), locate)
    result = run(plan)
    assert [item.variant for item in result.outcomes] == ["rnn"]
    reasons = {trial.variant: reason for trial, reason in result.failed.items()}
    assert reasons.keys() == {"pretrained", "scratch"}
    assert "lower finetune.lr" in reasons["scratch"]
    assert "its pre-training pretrain-" in reasons["pretrained"] and "not finite" in reasons["pretrained"]
    assert statuses(config, plan.key) == ("FAILED", ["FAILED", "FAILED", "FINISHED"])
    assert not run(plan).outcomes[1:], "and it fails again"


@pytest.mark.ray
def test_a_process_that_is_lost_between_two_trials_takes_none_with_it(
    ray_cluster: object,
    tmp_path: Path,
    locate: Locate,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As with a node: Tune notices when it hands the process its next trial, and gives that one up at once."""
    hand, lost = TuneController._schedule_trial_reset, list[str]()

    def lose_first(controller: TuneController, trial: Any, *settings: Any) -> None:
        if not lost:
            lost.append(trial.config["spec"].key)
            actor = trial.temporary_state.ray_actor
            ray.kill(actor)
            with pytest.raises(ray.exceptions.RayActorError):  # it is dead, and not about to die
                while True:
                    ray.get(actor.__ray_ready__.remote())
        hand(controller, trial, *settings)

    monkeypatch.setattr(TuneController, "_schedule_trial_reset", lose_first)
    plan = make(replace(tiny_study(tmp_path, study__variants=("scratch",), study__seeds=3), ALONE), locate)
    with caplog.at_level("INFO"):
        result = run(plan)
    assert lost and f"done again, as their processes were lost: {lost[0]}" in caplog.text
    assert not result.failed and len(result.outcomes) == 3
    assert statuses(plan.config, plan.key) == ("FINISHED", ["FINISHED"] * 3)


def test_draws_are_compared_within_their_task_and_the_longest_come_to_their_end(tmp_path: Path, locate: Locate) -> None:
    """Tune's own way is to stop a trial at the largest number of epochs, before it has scored itself."""
    tasks = ("melody", "velocity")
    config = tiny_study(tmp_path, study__name="sweep", study__draws=2, study__tasks=tasks, finetune__epochs=2)
    plan = make(replace(config, PRETRAIN), locate)
    scheduler = sweep.DrawScheduler(config, _column)

    def said(spec: Spec, *reports: dict[str, float]) -> list[str]:
        trial = SimpleNamespace(trial_id=spec.key, config={"spec": spec})
        scheduler.on_trial_add(None, trial)
        return [scheduler.on_trial_result(None, trial, {"epoch": at, **report}) for at, report in enumerate(reports, 1)]

    melody, poor, velocity, _ = plan.trials.values()
    assert said(melody, *({sweep.BEST: score} for score in (0.5, 0.6, 0.7, 0.8))) == ["CONTINUE"] * 4
    assert said(poor, {sweep.BEST: 0.4}) == ["STOP"]
    assert said(velocity, {sweep.BEST: 0.1}) == ["CONTINUE"]
    (encoder,) = plan.pretrainings.values()
    assert said(encoder, {"valid/loss": 3.0}) == ["CONTINUE"]


@pytest.mark.ray
def test_a_sweep_stops_poor_draws_and_names_the_best(ray_cluster: object, shared: Path, locate: Locate) -> None:
    config = tiny_study(shared, study__name="sweep", study__draws=2, study__tasks=("melody", "velocity"))
    config = replace(config, PRETRAIN | {"finetune.epochs": 2, "finetune.patience": 0})
    plan = make(config, locate)
    result = run(plan)
    assert not result.failed and len(result.outcomes) + len(result.stopped) == 4
    assert {item.task for item in result.outcomes} == {"melody", "velocity"}, "of each one at least comes to its end"
    assert all(item.split == "valid" and "test/accuracy" not in item.metrics for item in result.outcomes)
    melody = [item for item in result.outcomes if item.task == "melody"]
    best = sweep.ranking(result.outcomes)["melody"][0]
    assert best.metrics["valid/best"] == max(item.metrics["valid/best"] for item in melody)
    command = dict(word.split("=") for word in sweep.settings(config, best).split())
    trial = next(entry for entry in plan.trials.values() if entry.trial.name == best.trial)
    assert replace(config, command).finetune == trial.config.finetune
    assert run(plan) == result, "what was stopped stays stopped"
