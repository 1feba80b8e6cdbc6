"""Model cards: what the head says to a hub, what the text says to a reader, and the code in it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from midibert_ray.corpora.catalogue import corpus
from midibert_ray.data.format import FORMAT_VERSION, MANIFEST, write_manifest
from midibert_ray.export.about import About, of_trial, remarks_on
from midibert_ray.export.card import hub_licence, render, told_by_head
from midibert_ray.model.calibration import Calibration, Favour, Reliability
from midibert_ray.model.folder import save_export
from midibert_ray.model.heads import MidiBertForNotes, MidiBertForSequences
from midibert_ray.model.midibert import MidiBertConfig, MidiBertForMaskedLM, MidiBertModel, MidiBertPreTrainedModel
from midibert_ray.music.protocol import CLEAN, PAPER
from midibert_ray.music.tasks import PAPER_TASKS, TASKS, Task
from midibert_ray.studies.result import TrialResult

FIVE = ("pop909", "pop1k7", "asap", "pianist8", "emopia")
KINDS = (MidiBertModel, MidiBertForMaskedLM, MidiBertForNotes, MidiBertForSequences)


def model(kind: type[MidiBertPreTrainedModel] = MidiBertModel, **other: Any) -> MidiBertPreTrainedModel:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return kind(MidiBertConfig(**sizes, max_length=64, **other))


def about(*names: str, **other: Any) -> About:
    return About(**{"origin": "Made here.", "protocol": CLEAN, "corpora": tuple(map(corpus, names))} | other)


def finished(task: str, **other: Any) -> TrialResult:
    where = {"trial": f"{task}-x", "task": task, "variant": "x", "protocol": "clean", "seed": 1, "epoch": 1}
    return TrialResult(**{**where, "pieces": {}, "seconds": 1.0, "devices": 1} | other)


def head(card: str) -> dict[str, Any]:
    _, text, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


@pytest.mark.parametrize(
    ("names", "licence", "word"),
    [
        (("sample",), "mit", "No corpus restricts"),
        (("lieder",), "cc0-1.0", "No corpus restricts"),
        (("pop909", "lieder"), "mit", "they are under the licence that the head of this card names (`mit`)"),
        (("pop909", "asap"), "cc-by-nc-sa-4.0", "**The use of these weights is restricted**"),
        (FIVE, "other", "Pianist8: not stated"),
        (("folder:/music/mine",), "other", "the user's own files"),
        ((), "other", "**Not known.**"),
    ],
)
def test_licence_is_the_strictest_of_the_corpora(names: tuple[str, ...], licence: str, word: str) -> None:
    card = render(model(), about(*names))
    assert head(card)["license"] == licence == hub_licence(tuple(map(corpus, names)))
    assert word in card
    assert ("research and other non-commercial purposes" in card) == (licence not in ("mit", "cc0-1.0") and bool(names))


def test_every_corpus_stands_with_licence_citation_and_source() -> None:
    card = render(model(), about(*FIVE))
    assert head(card)["datasets"] == list(FIVE)
    assert set(head(card)) == {"license", "license_name", "tags", "datasets", "metrics"}
    for name in FIVE:
        known = corpus(name)
        assert f"| {known.title} | {known.licence} | {known.citation} | {known.url} |" in card


def test_a_folder_of_the_users_is_not_given_away() -> None:
    card = render(model(), about('folder:/home/ann/secret/"my: midi"'))
    assert "secret" not in card and "/home" not in card
    assert head(card)["datasets"] == ["folder-my-midi"]


def test_figures_settings_and_limits_are_told() -> None:
    metrics = {"valid/loss": 1.23456, "valid/accuracy/pitch": 0.5}
    card = render(
        model(), about("sample", metrics=metrics, measured_on="On these.", settings={"seed": 7, "tokens.segment": 64})
    )
    assert "| `valid/loss` | 1.2346 |" in card and "| `valid/accuracy/pitch` | 0.5000 |" in card
    assert "On these." in card and "seed=7\ntokens.segment=64" in card
    assert all(words in card for words in ("MIDI 22 to 107", "4/4", "at most 64 time steps", "arXiv:2107.05223"))
    assert "None were recorded" in render(model(), about("sample"))


def test_protocols_are_named_with_their_flaws() -> None:
    paper, clean, unknown = (render(model(), about("sample", protocol=name)) for name in (PAPER, CLEAN, None))
    assert "gives the melody away" in paper and "test pieces" in paper and "by clip" in paper
    assert "not comparable with the paper's" in clean and "gives the melody away" not in clean
    assert "Not known: nothing was recorded" in unknown


@pytest.mark.parametrize("task", PAPER_TASKS, ids=lambda task: task.name)
def test_a_task_is_told_by_head_and_outputs(task: Task) -> None:
    kind = MidiBertForNotes if task.level == "note" else MidiBertForSequences
    assert told_by_head(model(kind, num_classes=len(task.classes)))[1] == task.classes
    card = render(model(kind, num_classes=len(task.classes)), about("sample"))
    assert f"fine-tuned for {task.name}" in card and head(card)["datasets"] == ["sample", task.corpus]
    if task.level == "note":
        assert told_by_head(model(kind, num_classes=len(task.classes) + 1))[1] == ("padding", *task.classes)


def test_what_is_known_of_a_fine_tuning_goes_before_what_the_head_lets_guess() -> None:
    velocity = {"task": TASKS["velocity"], "classes": ("padding", *TASKS["velocity"].classes)}
    card = render(model(MidiBertForNotes, num_classes=7), about(labelled=(corpus("sample"),), **velocity))
    assert "fine-tuned for velocity" in card and "told by the number of outputs" not in card and "| 6 | ff |" in card
    assert head(card)["datasets"] == ["sample"] and head(card)["license"] == "mit", (
        "no pre-training: known, not missing"
    )
    assert "| fine-tuning | " in card and "pre-training |" not in card and "Not known" not in card
    both = render(model(MidiBertForNotes, num_classes=7), about("asap", "sample", labelled=(corpus("sample"),)))
    assert "| pre-training | ASAP" in both and "| pre-training and fine-tuning | " in both


@pytest.mark.parametrize(
    ("kind", "classes", "told", "metric"),
    [
        ("classes", ["a", "b", "c", "d"], ("One class a segment (task mine):", "| 3 | d |"), "accuracy"),
        (
            "tags",
            ["a", "b", "c", "d"],
            ("Any number of tags a segment (task mine), each by", "| 3 | d |"),
            "average_precision",
        ),
        (
            "number",
            [],
            ("One number a segment, in the units of the labels (task mine)", "comes without a probability"),
            "r_squared",
        ),
    ],
)
def test_a_task_of_ones_own_is_no_task_of_the_paper(
    kind: str, classes: list[str], told: tuple[str, ...], metric: str
) -> None:
    """Four outputs of a sequence are emotions only where nothing else is known."""
    metrics = {"test/loss": 1.0, "test/r2": 0.5, "test/accuracy": 0.5, "test/piece_accuracy": 0.5, "valid/best": 0.5}
    confusion = [[1] * 4] * 4 if kind == "classes" else []
    result = finished("mine", kind=kind, classes=classes, confusion=confusion, metrics=metrics)
    written = model(MidiBertForSequences, num_classes=len(classes) or 1)
    found = of_trial(result, None)
    assert found.task and (found.task.name, found.task.kind, list(found.task.classes)) == ("mine", kind, classes)
    card = render(written, found)
    assert all(words in card for words in ("fine-tuned for mine", *told)) and "emotion" not in card
    assert head(card)["metrics"] == [metric]
    written.config.task = "mine"
    assert told_by_head(written) == (None, ())


def test_a_card_tells_of_corpora_that_were_tested_besides() -> None:
    metrics = {"test/accuracy": 0.5, "test/f1": 0.25}
    besides = {"folder:/home/me/solo": {"metrics": {"test/accuracy": 0.75}}}
    classes = ["melody", "accompaniment"]
    result = finished("line", classes=classes, confusion=[[1, 1], [1, 1]], metrics=metrics, besides=besides)
    found = of_trial(result, None)
    card = render(model(MidiBertForNotes, num_classes=2), found)
    assert found.task is TASKS["line"]
    assert "| `test/folder-solo/accuracy` | 0.7500 |" in card and "`test/NAME/`" in card
    assert "`valid/best` is the mean of F1 over classes" in card


def test_other_outputs_belong_to_no_task() -> None:
    stranger = model(MidiBertForSequences, num_classes=5)
    assert told_by_head(stranger)[1] == () == told_by_head(model())[1]
    assert "5 classes, whose names are not known" in render(stranger, about("sample"))


@pytest.mark.parametrize("representation", ["cp", "remi"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_code_in_the_card_runs(
    kind: type[MidiBertPreTrainedModel], representation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = model(kind, representation=representation, num_classes=4)
    card = render(written, about("sample"))
    save_export(written, tmp_path / "model")
    song = corpus("sample").folder + "/042/042.mid"
    (tmp_path / "song.mid").write_bytes(Path(song).read_bytes())
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("path/to/this/folder", "model"), names)
    output, time = names["output"], 64
    told = re.findall(r"# float32 (\[.*?\])", code)[0].replace("time", str(time))
    assert isinstance(output, Tensor) and output.dtype == torch.float32
    assert str(list(output.shape)) == told


def test_metre_and_pieces_off_the_grid_are_told() -> None:
    paper, clean = (render(model(), about("sample", protocol=name)) for name in (PAPER, CLEAN))
    assert "Bars are those of 4/4 from the first tick" in paper and "Bars follow a file's time signatures" in clean
    assert "off the grid" not in clean
    many, one = (render(model(), about("sample", remarks={"pieces off the grid": n, "x": 3})) for n in (1234, 1))
    assert '- 1,234 pieces of the pre-training keep to no beat of their files ("off the grid")' in many
    assert "- 1 piece of the pre-training keeps to no beat of its file" in one


def test_remarks_come_from_the_stores_of_the_run(tmp_path: Path) -> None:
    for store, count in (("a-1", 2), ("b-2", 3), ("other-3", 50)):
        write_manifest(
            str(tmp_path / "tokens" / store),
            {"settings": {"format_version": FORMAT_VERSION}, "remarks": {"pieces off the grid": count}},
        )
    (tmp_path / "runs" / "pretrain-1").mkdir(parents=True)
    inputs = dict.fromkeys(("a-1", "b-2", "removed-4"), "digest")
    (tmp_path / "runs" / "pretrain-1" / "inputs.json").write_text(json.dumps(inputs))
    assert remarks_on(str(tmp_path), "pretrain-1") == {"pieces off the grid": 5}
    assert remarks_on(str(tmp_path), "pretrain-2") == {}
    (tmp_path / "tokens" / "a-1" / MANIFEST).write_text("")
    assert remarks_on(str(tmp_path), "pretrain-1") == {"pieces off the grid": 3}
    (tmp_path / "runs" / "pretrain-1" / "inputs.json").write_text("")
    assert remarks_on(str(tmp_path), "pretrain-1") == {}


def test_a_card_says_from_which_probability_on_a_melody_is_answered() -> None:
    favour = Favour(name="melody", least=0.375, f1=0.8125, f1_of_most_probable=0.75)
    logits, labels = np.array([[1.0, 0], [0, 2]]), np.array([0, 1])
    calibration = Calibration(temperature=1.0, valid=Reliability.measure(logits, labels, 1.0), favour=favour)
    found = about("pop909", calibration=calibration)
    card = render(model(MidiBertForNotes, num_classes=2), found)
    assert "A note is called melody from a probability of 0.3750 on" in card and "0.8125" in card and "0.7500" in card
    plain = replace(found, calibration=replace(calibration, favour=None))
    assert "is called" not in render(model(MidiBertForNotes, num_classes=2), plain)
