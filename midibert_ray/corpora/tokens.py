"""Tokens of a piece: the readers and the grid of `music`, as the piece's corpus needs them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from midibert_ray.corpora.catalogue import Corpus
from midibert_ray.corpora.labels import Piece
from midibert_ray.corpora.note_labels import label_notes
from midibert_ray.music.grid import align_to_beats, quantize, read_beats
from midibert_ray.music.midi import MidiError, Notes, read_notes
from midibert_ray.music.protocol import Protocol
from midibert_ray.music.score import is_score, read_score
from midibert_ray.music.tokens import Tokens, encode


def tokenize_piece(corpus: Corpus, piece: Piece, contents: Sequence[bytes], protocol: Protocol) -> Tokens:
    """A piece's files -> its CP rows.

    Args:
        corpus: the piece's corpus.
        piece: as `list_pieces` gives it.
        contents: the bytes of ``piece.files``, in that order.
        protocol: its fields of `tokens` are used.

    Raises:
        MidiError: the piece cannot be used; ``str(error)`` is the reason.
    """
    notes, lost = read_piece(corpus, contents, protocol)
    labelled: dict[str, int] = {}
    if piece.notes and len(contents) > 1:
        labels, labelled = label_notes(notes, contents[1], piece.notes)
        notes = replace(notes, label=labels)
    if corpus.four_four and protocol.bars == "corpus":
        notes = replace(notes, metre=notes.metre[:0])
    grid = quantize(notes, protocol, merged=corpus.merged, parts=corpus.parts or piece.notes)
    ignored = {f"{kind} ignored": count for kind, count in notes.ignored.items()}
    return encode(
        replace(grid, dropped=dict(lost + Counter(grid.dropped)), remarks=ignored | labelled | dict(grid.remarks))
    )


def read_piece(corpus: Corpus, contents: Sequence[bytes], protocol: Protocol) -> tuple[Notes, Counter[str]]:
    """A piece's files -> its notes, aligned to beats where its corpus annotates them, and what was lost, by reason.

    Raises:
        MidiError: the piece cannot be used; ``str(error)`` is the reason.
    """
    notes = _read(corpus, contents[0], protocol)
    lost = Counter(notes.dropped)
    if corpus.beats is not None:
        notes, unaligned = align_to_beats(notes, read_beats(contents[1]))
        lost += Counter(unaligned)
    return notes, lost


def _read(corpus: Corpus, data: bytes, protocol: Protocol) -> Notes:
    if not is_score(data):
        return read_notes(data, keep_unreleased=protocol.keeps_unreleased)
    notes = read_score(data)
    if names := corpus.score_parts:
        if len(notes.tracks) != len(names):
            raise MidiError(f"a score of {len(notes.tracks)} parts; expected {len(names)}")
        tracks = tuple(replace(track, name=name) for track, name in zip(notes.tracks, names, strict=True))
        notes = replace(notes, tracks=tracks)
    return notes
