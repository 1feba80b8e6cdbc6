"""MusicXML: real songs of OpenScore Lieder (CC0), and small scores that say what a note and a bar is."""

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from midibert_ray.corpora.catalogue import corpus
from midibert_ray.corpora.labels import list_pieces
from midibert_ray.corpora.tokens import tokenize_piece
from midibert_ray.music.grid import quantize
from midibert_ray.music.midi import MidiError
from midibert_ray.music.protocol import CLEAN
from midibert_ray.music.score import is_score, read_score

pytest.importorskip("partitura", reason="MusicXML needs partitura: pip install '.[scores]'")

PART = '<score-part id="P1"><part-name>Right hand</part-name></score-part>'
HEAD = f'<score-partwise version="4.0"><part-list>{PART}</part-list><part id="P1">'
METRE = "<attributes><divisions>4</divisions><time><beats>3</beats><beat-type>4</beat-type></time></attributes>"


def note(step: str, length: int, *, chord: bool = False, tie: str = "", grace: bool = False) -> str:
    pitch = f"<pitch><step>{step}</step><octave>4</octave></pitch>"
    ties = "".join(f'<tie type="{kind}"/>' for kind in tie.split())
    if grace:
        return f"<note><grace/>{pitch}<voice>1</voice></note>"
    return f"<note>{'<chord/>' * chord}{pitch}<duration>{length}</duration>{ties}<voice>1</voice></note>"


def score(*bars: str, metre: str = METRE) -> bytes:
    measures = [f'<measure number="{n}">{metre * (n == 0)}{bar}</measure>' for n, bar in enumerate(bars)]
    return f"{HEAD}{''.join(measures)}</part></score-partwise>".encode()


def archive(content: bytes, *, names: str = "song.xml", member: str = "song.xml") -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(
            "META-INF/container.xml", f'<container><rootfiles><rootfile full-path="{names}"/></rootfiles></container>'
        )
        packed.writestr(member, content)
    return sink.getvalue()


WALTZ = score(
    note("G", 4),
    note("C", 12, tie="start") + note("E", 12, chord=True),
    note("D", 0, grace=True) + note("C", 8, tie="stop") + note("A", 4),
)


def test_a_waltz_with_a_pickup_keeps_its_bars() -> None:
    notes = read_score(WALTZ)
    assert notes.start.tolist() == [0, 480, 480, 2880]
    assert notes.end.tolist() == [480, 480 + 5 * 480, 480 + 1440, 3360]
    assert notes.pitch.tolist() == [67, 60, 64, 69]
    assert [track.name for track in notes.tracks] == ["Right hand"]
    assert dict(notes.dropped) == {"zero duration": 1}
    grid = quantize(notes, CLEAN)
    # The pickup stands on the third beat of a bar of three.
    assert (grid.onset - grid.bar).tolist() == [8, 0, 0, 8]


def test_a_compressed_score_reads_the_same() -> None:
    plain, packed = read_score(WALTZ), read_score(archive(WALTZ))
    for name in ("start", "end", "pitch", "track", "metre"):
        assert np.array_equal(getattr(plain, name), getattr(packed, name))
    assert is_score(WALTZ)
    assert is_score(archive(WALTZ))
    assert not is_score(b"MThd")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (score(note("C", 16), metre="<attributes><divisions>4</divisions></attributes>"), "without a time signature"),
        (score("<note><rest/><duration>12</duration></note>"), "no notes"),
        (WALTZ[:-40], "unreadable MusicXML"),
        (b"<html></html>", "unreadable MusicXML"),
        (archive(WALTZ, names="other.xml"), "archive is damaged or no score"),
        (archive(WALTZ, names=""), "names no score"),
        (archive(WALTZ)[:200], "archive is damaged or no score"),
        (archive(b" " * (70 << 20)), "unpacks to more than 64 MiB"),
    ],
)
def test_what_is_no_score_is_refused_with_a_reason(content: bytes, reason: str) -> None:
    with pytest.raises(MidiError, match=reason):
        read_score(content)


@pytest.mark.corpora
def test_lieder_have_the_notes_that_partitura_counts(corpora_root: Path) -> None:
    """Of every 40th song; all 1,322 take a quarter of an hour, and agree."""
    with (corpora_root / "golden/lieder_notes.csv").open() as file:
        golden = {row["score"]: row for row in csv.DictReader(file)}
    lieder = corpus("lieder")
    pieces = sorted(list_pieces(lieder, {}, CLEAN), key=lambda piece: piece.piece)
    assert {piece.piece.rpartition("/")[2] for piece in pieces} == golden.keys()
    for piece in pieces[::40]:
        data = (corpora_root / lieder.folder / piece.files[0]).read_bytes()
        notes, row = read_score(data), golden[piece.piece.rpartition("/")[2]]
        assert np.bincount(notes.track).tolist() == [int(row["voice_notes"]), int(row["piano_notes"])], piece.piece
        tokens = tokenize_piece(lieder, piece, [data], CLEAN)
        kept = np.bincount(tokens.part, minlength=4)
        assert kept[0] == kept[2] == 0
        assert len(tokens.part) + sum(tokens.dropped.values()) == len(notes) + sum(notes.dropped.values())


@pytest.mark.corpora
def test_solo_pieces_have_a_soloist_and_accompaniment(corpora_root: Path) -> None:
    solo = corpus("solo")
    files = {path.name: 1 for path in (corpora_root / solo.folder).glob("*.mid")}
    pieces = list_pieces(solo, files, CLEAN)
    assert len(pieces) == 234
    for piece in pieces[::20]:
        tokens = tokenize_piece(solo, piece, [(corpora_root / solo.folder / piece.files[0]).read_bytes()], CLEAN)
        assert set(np.unique(tokens.part).tolist()) == {1, 3}, piece.piece
