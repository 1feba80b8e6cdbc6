"""The model card of an export: a README.md with a YAML head, as model hubs read it, from the template `card.md`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from midibert_ray.corpora.catalogue import Corpus, corpus
from midibert_ray.export.about import About
from midibert_ray.model.calibration import FAMILIAR
from midibert_ray.model.heads import MidiBertForNotes, MidiBertForSequences
from midibert_ray.model.midibert import MidiBertForMaskedLM, MidiBertModel, MidiBertPreTrainedModel
from midibert_ray.music.grid import OFF_GRID
from midibert_ray.music.protocol import CLEAN
from midibert_ray.music.tasks import PAPER_TASKS, Task
from midibert_ray.music.vocabulary import DURATIONS, PITCH_HIGH, PITCH_LOW, POSITIONS

CARD = "README.md"

HUB_LICENCES = {"CC0 1.0": "cc0-1.0", "MIT": "mit", "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0"}
"""Licences that model hubs have an id for, mildest first."""

_GRID: dict[str, Any] = {
    "PITCH_LOW": PITCH_LOW,
    "PITCH_HIGH": PITCH_HIGH,
    "POSITIONS": POSITIONS,
    "DURATIONS": DURATIONS,
}

FLAWS = {
    "order": "Notes of one onset stand track by track (melody, bridge, accompaniment), which gives the melody away. A "
    "MIDI file with a single track has no such order: accuracies of the melody task do not carry over to it.",
    "masks_padding": "Padding is masked, predicted and scored in pre-training.",
    "attends_padding": "Sequence-level tasks attend to padding.",
    "pretrains_on_test": "Pre-training saw the validation and test pieces of the downstream tasks.",
    "validates_by": "The validation part was drawn by segment: pieces stand on both sides.",
    "emopia_split": "EMOPIA is split by clip: most test clips come from a song that also has clips in training.",
    "attends_labelled": "With REMI, note-level tasks attend to Pitch tokens alone.",
    "ticks_per_beat": "480 ticks per beat are assumed, whatever a file says.",
}
"""Field of a protocol -> what is wrong where it is not as in `CLEAN`."""


def render(model: MidiBertPreTrainedModel, about: About) -> str:
    """The card of a model, Markdown below a YAML head; it names no address of the machine that wrote it."""
    config, classifier = model.config, isinstance(model, MidiBertForNotes | MidiBertForSequences)
    task, names = told_by_head(model)
    task = about.task or task
    labelled = about.labelled or ((corpus(task.corpus),) if task and task.corpus else ())
    earlier = about.earlier
    corpora = list({entry.name: entry for entry in (*(earlier or ()), *about.corpora, *labelled)}.values())
    known = corpora if (about.corpora or about.labelled) and earlier is not None else []
    stages = {"earlier stages": earlier or (), "pre-training": about.corpora, "fine-tuning": labelled}
    shape = ["1", *(["time"] * (not isinstance(model, MidiBertForSequences)))]
    shape.append(str(config.num_classes if classifier else config.hidden_size))
    card = ModelCard.from_template(
        _head(known, corpora, task),
        template_str=Path(__file__).with_name("card.md").read_text(encoding="utf-8"),
        about=about,
        config=config,
        classifier=classifier,
        note_level=isinstance(model, MidiBertForNotes),
        masked_lm=isinstance(model, MidiBertForMaskedLM),
        kind=type(model) if classifier else MidiBertModel,
        remi=config.representation == "remi",
        shape=", ".join(shape),
        task=task,
        names=about.classes or names,
        flaws=[text for name, text in FLAWS.items() if getattr(about.protocol or CLEAN, name) != getattr(CLEAN, name)],
        corpora=corpora,
        known=known,
        licence=hub_licence(known),
        limited=[entry for entry in known if not entry.redistribute],
        stages={entry.name: " and ".join(s for s, used in stages.items() if entry in used) for entry in corpora},
        titles={entry.name: _title(entry) for entry in corpora},
        **_GRID,
        off_grid=about.remarks.get(OFF_GRID, 0),
        four_four=about.protocol is not None and about.protocol.bars == "4/4",
        reliability=about.calibration and (about.calibration.test or about.calibration.valid),
        familiar=FAMILIAR,
    )
    return f"{card}\n"


def told_by_head(model: MidiBertPreTrainedModel) -> tuple[Task | None, tuple[str, ...]]:
    """The paper's task of a fine-tuned model and the names of its outputs; None and () where the head fits none, or the
    model knows its task.

    Note-level heads may have an output for padding, which comes first.
    """
    heads = {"note": MidiBertForNotes, "sequence": MidiBertForSequences}
    for task in () if model.config.task else PAPER_TASKS:
        surplus = (model.config.num_classes or 0) - len(task.classes)
        if isinstance(model, heads[task.level]) and (surplus == 0 or (surplus == 1 and task.level == "note")):
            return task, ("padding",) * surplus + task.classes
    return None, ()


def hub_licence(corpora: Sequence[Corpus]) -> str:
    """The licence of the YAML head: the strictest of the corpora's, or `other` where a hub has no word for it."""
    terms = {entry.licence for entry in corpora}
    if not terms or not terms <= HUB_LICENCES.keys():
        return "other"
    return [word for licence, word in HUB_LICENCES.items() if licence in terms][-1]


def _head(known: Sequence[Corpus], corpora: Sequence[Corpus], task: Task | None) -> ModelCardData:
    licence = hub_licence(known)
    return ModelCardData(
        license=licence,
        license_name="see-the-corpora" if licence == "other" else None,
        tags=["midi", "symbolic-music", "piano", "music-information-retrieval", "midibert"],
        datasets=[entry.slug for entry in corpora],
        metrics=[{"number": "r_squared", "tags": "average_precision"}.get(task.kind if task else "", "accuracy")],
    )


def _title(entry: Corpus) -> str:
    """A corpus's title; for a folder of the user's not the address, which is nobody else's business."""
    if not entry.name.startswith("folder:"):
        return entry.title
    return f"a folder of MIDI files ({re.sub('^folder-', '', entry.slug)})"
