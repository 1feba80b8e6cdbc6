"""The report is made from MLflow alone: real trials, recorded as a study records them, without Ray."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from midibert_ray import tracking
from midibert_ray.config import Config
from midibert_ray.data.store import TokenStore
from midibert_ray.studies import outcome, report
from midibert_ray.studies.outcome import Outcome
from midibert_ray.studies.recorder import StudyLog
from midibert_ray.studies.trials import grid
from tests.tiny import tiny_study


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return tiny_study(tmp_path_factory.mktemp("root"), study__variants=("scratch",))


@pytest.fixture(scope="module")
def recorded(config: Config, sample_store: TokenStore) -> str:
    """A study of one real trial in MLflow; returns its key."""
    import torch

    from midibert_ray.training.finetune import Finetuning, TaskData, finetune, new_model

    log = StudyLog(config, "ablation-0123456789", "pretrain-none")
    (trial,) = grid(config)
    mine = trial.config(config)
    data = TaskData(mine, sample_store)
    run = log.trial(trial)
    job = Finetuning(mine, data, new_model(mine, data, ""), torch.device("cpu"))
    predictions = finetune(job, lambda figures, save: run.log({"valid/accuracy": figures["valid/accuracy"]}, 1))
    result = Outcome(
        trial=trial.name,
        task=trial.task,
        variant=trial.variant,
        seed=trial.seed,
        epoch=1,
        figures=predictions.figures("test") | {"valid/best": job.progress.best},
        classes=list(data.classes),
        confusion=predictions.matrix().tolist(),
    )
    log.complete(run, result, outcome.predictions_table(data, sample_store, predictions))
    log.parent.finish()
    return log.key


class Elements(HTMLParser):
    """Collects what a browser would have to fetch, and checks that elements nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", ["ablation", "ablation-0123456789"])
def test_a_report_is_whole_and_carries_everything_with_it(config: Config, recorded: str, name: str) -> None:
    page = Path(report.write(config, name)).read_text()
    elements = Elements()
    elements.feed(page)
    assert not elements.open
    assert all(source.startswith("data:image/png;base64,") for source in elements.fetched)
    assert len(elements.fetched) == 4  # bars, curve, piano roll, confusion matrix
    text = re.sub(r"<[^>]+>", " ", page)
    assert all(
        word in text for word in ("scratch", "majority class", "test piece", "model.hidden = 16", "protocol clean")
    )
    tracker = tracking.Tracker(tracking.address(config))
    (parent,) = tracker.parents(tracking.study_experiment("ablation"))
    assert tracker.artifact(parent.info.run_id, "report.html") == page.encode()


def test_an_unknown_study_names_those_there_are(config: Config, recorded: str) -> None:
    with pytest.raises(LookupError, match=r"no study 'ablatoin'.*there are: ablation"):
        report.write(config, "ablatoin")


def test_a_study_without_a_finished_trial_says_so(config: Config, recorded: str) -> None:
    page = report.render(replace(report.load(config, recorded), outcomes=[]))
    assert "No trial has finished." in page
    assert "data:image/png" not in page


def test_names_are_escaped(config: Config, recorded: str) -> None:
    source = report.load(config, recorded)
    source.parent.data.params["corpora.names"] = "<script>alert(1)</script>"
    assert "<script>" not in report.render(source)
