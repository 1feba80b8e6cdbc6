"""A job's plan: each corpus is listed once, from the plan to the study."""

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from midibert_ray import pipeline
from midibert_ray.cli import dry_run
from midibert_ray.model.folder import save_export
from midibert_ray.settings.config import ConfigError
from midibert_ray.settings.overrides import replace
from midibert_ray.storage import digests
from midibert_ray.storage.lease import lease
from midibert_ray.studies.plan import StudyPlan, study_uri
from midibert_ray.studies.study import StudyResult
from midibert_ray.tokenizing import plan as planning
from midibert_ray.tokenizing import tokenize
from midibert_ray.training.build import new_model
from tests.stores import make_here
from tests.tiny import tiny_study


@pytest.mark.slow
def test_a_job_lists_each_corpus_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two protocols and two orders: four token stores of one corpus."""
    listed: Counter[str] = Counter()
    list_files = planning.list_files

    def count(location: str) -> Any:
        listed[location] += 1
        return list_files(location)

    monkeypatch.setattr(planning, "list_files", count)
    monkeypatch.setattr(tokenize, "_stream", make_here)
    monkeypatch.setattr(pipeline, "run_study", lambda plan, picture: StudyResult(plan.key, [], {}, []))
    variants = ("pretrained", "scratch-by-pitch", "rnn-by-pitch")
    config = tiny_study(tmp_path, study__variants=variants, study__protocols=("paper", "clean"))
    plan = pipeline.plan(config, study=True)
    text = dry_run.describe_plan(plan, "tokenize", "pretrain")
    with pytest.raises(pipeline.MissingInputError, match=r"no token store of sample .*\n.*tokenize\.py --preset"):
        pipeline.study(plan)
    made = [summary.uri for summary in pipeline.tokenize(plan)]
    assert len(set(made)) == 4 and plan.study and set(plan.study.stores) == set(made)
    assert any(address in text for address in made)
    pipeline.outcome(config, pipeline.study(plan))
    assert list(listed.values()) == [1]


def test_a_job_makes_the_tokens_that_it_needs(tmp_path: Path) -> None:
    config = tiny_study(tmp_path, study__variants=("scratch",), study__protocols=("paper",))
    (group,) = pipeline.plan(config, study=True).tokens
    assert [each.protocol.name for each in group.values()] == ["paper"]
    (group,) = pipeline.plan(replace(config, {"corpora.names": ("sample",)})).tokens
    assert [each.protocol.name for each in group.values()] == ["clean"]


def test_weights_to_start_from_are_told_before_all_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be given as they lie below the directory of the job; workers run elsewhere."""
    config = tiny_study(tmp_path, study__variants=("pretrained",))
    save_export(new_model(config), tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    plan = pipeline.plan(replace(config, {"finetune.start": "mine"}), study=True)
    text = dry_run.describe_plan(plan, "tokenize", "pretrain", estimates=False)
    sha256 = digests.of_file(tmp_path / "mine" / "model.safetensors")["sha256"]
    assert f"finetune.start  {tmp_path}/mine  sha256 {sha256}" in text and "/runs/" not in text
    text = dry_run.describe_plan(
        pipeline.plan(replace(config, {"pretrain.start": "mine"})), "pretrain", estimates=False
    )
    assert f"pretrain.start  {tmp_path}/mine  sha256 {sha256}" in text and "/runs/pretrain-" in text
    with pytest.raises(
        ConfigError, match=r"model\.hidden=32 is not allowed; use 16, as the weights of pretrain\.start="
    ):
        pipeline.plan(replace(config, {"pretrain.start": "mine", "model.hidden": 32}))


@pytest.mark.slow
def test_of_two_that_run_a_study_the_second_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It waits, says for whom, and runs the study when the first has ended: nothing of it is open then."""
    order: list[str] = []

    def run(plan: StudyPlan, picture: object) -> StudyResult:
        order.append("second")
        return StudyResult(plan.key, [], {}, [])

    monkeypatch.setattr(pipeline, "run_study", run)
    monkeypatch.setattr(pipeline, "publish", lambda plan, result: order.append("published"))
    monkeypatch.setattr(pipeline, "require_tokens", lambda plan: None)
    plan = pipeline.plan(tiny_study(tmp_path, study__variants=("scratch",)), study=True)
    assert plan.study
    folder = study_uri(plan.config, plan.study.key)
    said = threading.Event()
    caplog.handler.addFilter(lambda record: "waiting for its end" not in record.getMessage() or said.set() or True)
    with caplog.at_level("INFO"):
        with lease(folder, what="the first", report=print):
            second = threading.Thread(target=pipeline.study, args=(plan,))
            second.start()
            assert said.wait(60)
            order.append("first has ended")
        second.join(60)
    assert order == ["first has ended", "second", "published"]
    assert f"study {plan.study.key}: held by" in caplog.text
