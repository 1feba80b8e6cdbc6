"""In which order work is handed to Tune, and when it is held back."""

from typing import Any

from ray.tune.search import Searcher

from midibert_ray.music.tasks import TASKS
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.studies.plan import PretrainingSpec, Spec, TrialSpec
from midibert_ray.studies.scheduler import ENCODER, FAILURE, StudyScheduler
from midibert_ray.studies.trials import Trial


def spec(name: str, *, encoder: str = "", workers: int = 0, cpus: float = 1) -> Spec:
    config = replace(Config(), {"compute.workers": workers or 1, "compute.cpus_per_trial": cpus})
    if workers:
        return PretrainingSpec(key=name, config=config, stores=())
    trial = Trial(task="melody", variant=name, protocol="clean", seed=1)
    return TrialSpec(trial=trial, config=config, task=TASKS[trial.task], stores=("",), encoder=encoder)


def name_of(item: Spec) -> str:
    return item.trial.variant if isinstance(item, TrialSpec) else item.key


def scheduler(*items: Spec, cpus: float = 4, **options: Any) -> StudyScheduler:
    return StudyScheduler(items, **({"encoders": {}, "cluster": lambda: {"CPU": cpus}} | options))


def names(chosen: StudyScheduler, count: int) -> list[Any]:
    """What it suggests when it is asked so often; trials are called as the specs."""
    found = []
    for _ in range(count):
        waiting = [item.key for item in chosen.waiting]
        suggested = chosen.suggest(f"trial {len(waiting)}")
        found.append(name_of(suggested["spec"]) if isinstance(suggested, dict) else suggested)
    return found


def test_a_trial_starts_when_its_encoder_is_there_and_others_do_not_wait() -> None:
    chosen = scheduler(spec("encoder", workers=1), spec("tuned", encoder="encoder"), spec("scratch"))
    assert names(chosen, 3) == ["encoder", "scratch", None]
    chosen.on_trial_result("trial 3", {"train/loss": 1.0})
    assert names(chosen, 1) == [None]
    chosen.on_trial_complete("trial 3", {ENCODER: "place"})
    suggested = chosen.suggest("x")
    assert isinstance(suggested, dict) and suggested["encoder"] == "place"
    assert chosen.suggest("y") == Searcher.FINISHED


def test_an_encoder_that_was_there_before_is_used() -> None:
    chosen = scheduler(spec("tuned", encoder="encoder"), encoders={"encoder": "place"})
    assert names(chosen, 1) == ["tuned"]


def test_trials_of_a_failed_pretraining_are_given_up_with_its_reason() -> None:
    tuned = spec("tuned", encoder="encoder")
    chosen = scheduler(spec("encoder", workers=1), tuned, spec("scratch"))
    names(chosen, 2)
    chosen.on_trial_complete("trial 3", {FAILURE: "loss is not finite"})
    assert names(chosen, 1) == [Searcher.FINISHED]
    assert chosen.failed[tuned.key] == "its pre-training encoder failed: loss is not finite"


def test_slots_count_the_workers_of_a_pretraining() -> None:
    chosen = scheduler(spec("encoder", workers=2), spec("a"), spec("b"), spec("c"), slots=2)
    assert names(chosen, 2) == ["encoder", None]
    chosen.on_trial_complete("trial 4", {ENCODER: "place"})
    assert names(chosen, 3) == ["a", "b", None]


def test_workers_that_still_wait_for_resources_are_not_overtaken() -> None:
    chosen = scheduler(spec("encoder", workers=3), spec("a"), spec("b"), cpus=4)
    assert names(chosen, 3) == ["encoder", "a", None]
    chosen.on_trial_result("trial 3", {"train/loss": 1.0})  # they have started: Tune may queue what it likes
    assert names(chosen, 1) == ["b"]


def test_a_second_pretraining_waits_until_there_is_room_for_all_its_workers() -> None:
    chosen = scheduler(spec("first", workers=3), spec("second", workers=2), cpus=4)
    assert names(chosen, 2) == ["first", None]
    chosen.on_trial_complete("trial 2", {ENCODER: "place"})
    assert names(chosen, 1) == ["second"]


def test_what_is_larger_than_the_cluster_is_asked_for_so_that_it_can_grow() -> None:
    chosen = scheduler(spec("first", workers=3), spec("a"), cpus=0)
    assert names(chosen, 2) == ["first", None]
    chosen.on_trial_result("trial 2", {"train/loss": 1.0})
    assert names(chosen, 1) == ["a"]
