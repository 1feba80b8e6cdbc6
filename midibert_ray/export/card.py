"""The model card of an export: a README.md with a YAML head, as model hubs read it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from midibert_ray.corpora.catalogue import Corpus, corpus
from midibert_ray.model.heads import MidiBertForNotes, MidiBertForSequences
from midibert_ray.model.midibert import MidiBertForMaskedLM, MidiBertPreTrainedModel
from midibert_ray.music.protocol import ProtocolName
from midibert_ray.music.tasks import TASKS, Task
from midibert_ray.music.vocabulary import DURATIONS, PITCH_HIGH, PITCH_LOW, POSITIONS

CARD = "README.md"

HUB_LICENCES = {"MIT": "mit", "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0"}
"""Licences that model hubs have an id for, mildest first."""

PROTOCOLS: dict[ProtocolName, str] = {
    "paper": """\
`paper`: what the authors' code does, so that figures stand beside the paper's. Its flaws make figures look better
than they are, and stay in the weights:

- Notes of one onset stand track by track (melody, bridge, accompaniment), which gives the melody away. A MIDI file
  with a single track has no such order: accuracies of the melody task do not carry over to it.
- Padding is masked, predicted and scored in pre-training; sequence-level tasks attend to it.
- Pre-training saw the validation and test pieces of the downstream tasks.
- The validation part was drawn by segment: pieces stand on both sides.
- EMOPIA is split by clip: most test clips come from a song that also has clips in training.
- With REMI, note-level tasks attend to Pitch tokens alone.
- 480 ticks per beat are assumed, whatever a file says.""",
    "clean": """\
`clean`: the authors' method without what makes a score look better than it is. Notes of one onset stand by pitch,
padding is never masked, attended to or scored, the test pieces of the downstream tasks are left out of pre-training,
validation is by piece, EMOPIA is split by song. Its figures are not comparable with the paper's.""",
}
UNKNOWN_PROTOCOL = "Not known: nothing was recorded about the training of these weights."

CLASSIFIERS = (MidiBertForNotes, MidiBertForSequences)
"""Models with a fine-tuning head."""

CITATION = """\
@article{midibertpiano,
  title   = {{MidiBERT-Piano}: Large-scale Pre-training for Symbolic Music Understanding},
  author  = {Yi-Hui Chou and I-Chun Chen and Chin-Jui Chang and Joann Ching and Yi-Hsuan Yang},
  journal = {arXiv preprint arXiv:2107.05223},
  year    = {2021}
}"""


@dataclass(frozen=True, kw_only=True)
class About:
    """What weights do not say of themselves."""

    origin: str
    """Where they come from, as Markdown."""

    protocol: ProtocolName | None
    """None: not known."""

    corpora: tuple[Corpus, ...]
    """What the encoder was pre-trained on; empty: not known, or nothing where `labelled` is known."""

    labelled: tuple[Corpus, ...] = ()
    """What it was fine-tuned on; empty: told by the head's outputs, if at all."""

    task: Task | None = None
    """What it was fine-tuned for; None: told by the head's outputs, if at all."""

    classes: tuple[str, ...] = ()
    """Names of the head's outputs, in order; empty: told by their number, if at all."""

    corpora_note: str = ""
    """What there is to say about how the corpora are known."""

    figures: Mapping[str, float] = field(default_factory=dict)
    """Metric -> value, in the spelling of MLflow."""

    measured_on: str = ""
    """What the figures were measured on, as Markdown."""

    settings: Mapping[str, object] = field(default_factory=dict)
    """Dotted settings of the run, those that change its result."""


def render(model: MidiBertPreTrainedModel, about: About) -> str:
    """The card of a model: Markdown below a YAML head.

    It names no address of the machine that wrote it: a corpus that is a folder appears under its last name.
    """
    task = about.task or head_task(model)
    labelled = about.labelled or ((corpus(task.corpus),) if task else ())
    corpora = tuple({entry.name: entry for entry in (*about.corpora, *labelled)}.values())
    known = corpora if about.corpora or about.labelled else ()
    sections = {
        "Use": _use(model),
        "Outputs": _outputs(model, task, about),
        "Figures": _figures(about),
        "Protocol": PROTOCOLS[about.protocol] if about.protocol else UNKNOWN_PROTOCOL,
        "Corpora": _corpora(about, labelled),
        "Licence": _terms(known),
        "Limits": _limits(model.config.max_length),
        "Settings": _settings(about.settings),
        "Citation": f"```bibtex\n{CITATION}\n```",
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    head = "\n".join(_yaml(known, [entry.slug for entry in corpora]))
    return f"---\n{head}\n---\n\n# {_title(model, task)}\n\n{about.origin}\n\n{body}\n"


def head_task(model: MidiBertPreTrainedModel) -> Task | None:
    """The downstream task of a fine-tuned model, told by its head and number of outputs; else None."""
    if not isinstance(model, CLASSIFIERS):
        return None
    level = "note" if isinstance(model, MidiBertForNotes) else "sequence"
    found = [task for task in TASKS.values() if task.level == level and _classes(task, model)]
    return found[0] if found else None


def output_names(model: MidiBertPreTrainedModel) -> tuple[str, ...]:
    """Names of a fine-tuned model's outputs, in order; empty where its task is not known."""
    task = head_task(model)
    return _classes(task, model) if task else ()


def _classes(task: Task, model: MidiBertPreTrainedModel) -> tuple[str, ...]:
    """Names of a model's outputs if they are those of a task, else nothing."""
    # Under protocol paper a note-level head has an output for padding, the first.
    surplus = (model.config.num_classes or 0) - len(task.classes)
    if surplus not in ((0, 1) if task.level == "note" else (0,)):
        return ()
    return ("padding",) * surplus + task.classes


def hub_licence(corpora: Sequence[Corpus]) -> str:
    """The licence of the YAML head: the strictest of the corpora's, or `other` where a hub has no word for it."""
    terms = {entry.licence for entry in corpora}
    if not terms or not terms <= HUB_LICENCES.keys():
        return "other"
    return [word for licence, word in HUB_LICENCES.items() if licence in terms][-1]


def _yaml(corpora: Sequence[Corpus], datasets: Sequence[str]) -> Iterator[str]:
    """JSON strings are YAML strings, whatever they hold."""
    licence = hub_licence(corpora)
    yield f"license: {licence}"
    if licence == "other":
        yield "license_name: see-the-corpora"
    yield "tags: [midi, symbolic-music, piano, music-information-retrieval, midibert]"
    yield f"datasets: {json.dumps(list(datasets))}"
    yield "metrics: [accuracy]"


def _title(model: MidiBertPreTrainedModel, task: Task | None) -> str:
    config = model.config
    what = "fine-tuned" if isinstance(model, CLASSIFIERS) else "encoder"
    what += f" for {task.name}" if task else ""
    plural = "s" if config.num_hidden_layers > 1 else ""
    sizes = f"{config.num_hidden_layers} layer{plural} of {config.hidden_size}"
    return f"MidiBERT-Piano, {what} ({config.representation.upper()}, {sizes})"


def _use(model: MidiBertPreTrainedModel) -> str:
    """Code from a MIDI file to the model's outputs; it runs as it stands."""
    config, remi = model.config, model.config.representation == "remi"
    name, module, call, shape = "MidiBertModel", "midibert", ".last_hidden_state", f"[1, time, {config.hidden_size}]"
    if isinstance(model, CLASSIFIERS):
        name, module, call, shape = type(model).__name__, "heads", "", f"[1, time, {config.num_classes}]"
    if isinstance(model, MidiBertForSequences):
        shape = f"[1, {config.num_classes}]"
    code = f"""\
from pathlib import Path

import torch
from midibert_ray.model.{module} import {name}
from midibert_ray.music.grid import quantize
from midibert_ray.music.midi import read_notes
from midibert_ray.music.protocol import CLEAN
from midibert_ray.music.tokens import encode{", remi_from_cp" if remi else ""}

notes = encode(quantize(read_notes(Path("song.mid").read_bytes()), CLEAN))
ids = {"remi_from_cp(notes.tokens).ids" if remi else "notes.tokens"}
tokens = torch.from_numpy(ids).long()[None, :{config.max_length}]  # int64 [1, time{"" if remi else ", 4"}]
mask = torch.ones(tokens.shape[:2], dtype=torch.bool)  # false where a batch is padded
model = {name}.from_pretrained("path/to/this/folder").eval()
with torch.no_grad():
    output = model(tokens=tokens, attention_mask=mask){call}  # float32 {shape}"""
    return (
        "Needs the package `midibert_ray`, torch and transformers; neither Ray nor DeepSpeed.\n\n"
        f"```python\n{code}\n```\n\n"
        "After `import midibert_ray.model`, transformers' `AutoModel.from_pretrained` opens the encoder as well. "
        "`vocabulary.json` names every id."
    )


def _outputs(model: MidiBertPreTrainedModel, task: Task | None, about: About) -> str:
    if isinstance(model, MidiBertForMaskedLM):
        return (
            "Hidden states of the encoder. The folder holds the heads of pre-training too: `MidiBertForMaskedLM` "
            "recovers masked tokens, one set of logits a token type."
        )
    if not isinstance(model, CLASSIFIERS):
        return "Hidden states of the encoder; the folder holds no heads."
    if task is None:
        return f"{model.config.num_classes} classes, whose names are not known."
    unit = "note" if task.level == "note" else "segment"
    names = about.classes or _classes(task, model)
    rows = "\n".join(f"| {number} | {name} |" for number, name in enumerate(names))
    told = f"One class a {unit} (task {task.name}{'' if about.classes else ', told by the number of outputs'}):"
    return f"{told}\n\n| output | class |\n|---|---|\n{rows}"


def _figures(about: About) -> str:
    if not about.figures:
        return "None were recorded with these weights."
    rows = "\n".join(f"| `{name}` | {value:.4f} |" for name, value in about.figures.items())
    return f"{about.measured_on}\n\n| metric | value |\n|---|---|\n{rows}"


def _corpora(about: About, labelled: Sequence[Corpus]) -> str:
    entries = {entry.name: entry for entry in (*about.corpora, *labelled)}
    if not entries:
        return "Not known: nothing was recorded about the training of these weights."
    stages = {"pre-training": about.corpora, "fine-tuning": labelled}
    rows = "\n".join(
        f"| {' and '.join(stage for stage, used in stages.items() if name in [one.name for one in used])} "
        f"| {_name(entry)} | {entry.licence} | {entry.citation or '–'} | {entry.url or '–'} |"
        for name, entry in entries.items()
    )
    note = f"{about.corpora_note}\n\n" if about.corpora_note else ""
    return f"{note}| used in | corpus | licence | please cite | source |\n|---|---|---|---|---|\n{rows}"


def _terms(corpora: Sequence[Corpus]) -> str:
    if not corpora:
        return (
            "**Not known.** As the corpora are not known, neither is what these weights may be used for. Ask "
            "whoever trained them."
        )
    limited = [f"{_name(entry)}: {entry.licence}" for entry in corpora if not entry.redistribute]
    if not limited:
        return "No corpus restricts what these weights may be used for; keep the corpora's notices."
    return (
        f"**The use of these weights is restricted** by the terms of what they were trained on ({'; '.join(limited)}). "
        "Unless the owners of those files allow more, use the weights for research and other non-commercial purposes "
        "only, pass them on under the same terms, and do not pass on the files."
    )


def _limits(max_length: int) -> str:
    return f"""\
- Piano music. Notes outside MIDI {PITCH_LOW} to {PITCH_HIGH} have no token: the tokenizer drops and counts them.
- One grid for everything: bars of 4/4 in {POSITIONS} sixteenths. Other metres run across its bar lines, triplets and
  expressive timing are rounded, and a performance must be aligned to its beats first.
- Durations end at {DURATIONS} thirty-seconds (two bars); tempo, velocity and pedal are no input.
- A segment has at most {max_length} time steps, and the model sees nothing beyond it.
- Music unlike the corpora above was not measured."""


def _settings(settings: Mapping[str, object]) -> str:
    if not settings:
        return ""
    lines = "\n".join(f"{key}={_value(value)}" for key, value in settings.items())
    return f"```\n{lines}\n```"


def _value(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _name(entry: Corpus) -> str:
    """A corpus's title; for a folder of the user's not the address, which is nobody else's business."""
    if not entry.name.startswith("folder:"):
        return entry.title
    return f"a folder of MIDI files ({re.sub('^folder-', '', entry.slug)})"
