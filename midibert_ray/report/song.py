"""A piece that no model of a study has seen, as its best one labels it: a page to look at and to listen to."""

import logging
from collections.abc import Mapping, Sequence

from midibert_ray import storage
from midibert_ray.inference.load import load
from midibert_ray.inference.page import render
from midibert_ray.inference.sources import read_song
from midibert_ray.music.midi import MidiError, notes_to_pretty_midi
from midibert_ray.report import kinds
from midibert_ray.report.formats import percent
from midibert_ray.studies import result as results
from midibert_ray.studies.plan import StudyPlan
from midibert_ray.studies.result import TrialResult
from midibert_ray.tokenizing.plan import CorpusPlan

logger = logging.getLogger(__name__)


def write(plan: StudyPlan, corpora: Mapping[str, CorpusPlan], outcomes: Sequence[TrialResult]) -> str:
    """Write the page and return its address, `{root}/reports/<study>/song.html`; nothing where there is no such model.

    The model is the pre-trained one of the first note-level task, else that task's best; the piece is the one in the
    middle of its test pieces by accuracy.

    Args:
        plan: of the study.
        corpora: by the address of their token stores.
        outcomes: of the trials that have finished.
    """
    tasks = kinds.in_order(item.task for item in outcomes)
    found = [item for item in outcomes if item.kind == "classes" and item.split == "test"]
    for item in sorted(found, key=lambda item: (tasks.index(item.task), item.variant != "pretrained", -item.accuracy)):
        key, spec = next((key, spec) for key, spec in plan.trials.items() if spec.trial.name == item.trial)
        if spec.task.level != "note":
            continue
        done = results.find(plan.uri(key))
        if done is None or len(spec.stores) > 1 or spec.stores[0] not in corpora:
            continue
        ranked = sorted(item.pieces, key=lambda piece: item.pieces[piece][0] / max(item.pieces[piece][1], 1))
        piece, source = ranked[len(ranked) // 2], corpora[spec.stores[0]]
        try:
            notes = source.read(piece)
        except (OSError, MidiError) as error:
            logger.warning("no song is annotated: %s cannot be read any more: %s", piece, error)
            return ""
        song = read_song(notes_to_pretty_midi(notes), f"{piece}: {item.task}")
        page = render(
            load(done[1]).annotate(song),
            f"A test piece of {source.corpus.name}, whose labels no model of the study has learnt, as "
            f"{item.trial} hears it; on the test split {percent(item.accuracy)} % of its labels are right.",
        )
        uri = storage.root.song(plan.config.storage.root, plan.key)
        storage.write_bytes(uri, page.encode())
        return uri
    return ""
