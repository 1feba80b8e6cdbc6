from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from midibert_ray.corpora import catalogue as corpora
from midibert_ray.corpora.catalogue import CORPORA, corpus
from midibert_ray.corpora.labels import list_pieces
from midibert_ray.corpora.tokens import tokenize_piece
from midibert_ray.music.midi import MidiError
from midibert_ray.music.protocol import CLEAN, PAPER, PROTOCOLS
from midibert_ray.music.tokens import Tokens


def split_sizes(name: str, protocol: str) -> dict[str, int]:
    return dict(Counter(piece.split for piece in list_pieces(corpus(name), {}, protocol)))


def test_split_sizes():
    for protocol in PROTOCOLS.values():
        assert split_sizes("pop909", protocol) == {"train": 693, "valid": 86, "test": 86}
        assert split_sizes("pianist8", protocol) == {"train": 337, "valid": 37, "test": 37}
        assert split_sizes("asap", protocol) == {"pretrain": 65}
        assert split_sizes("sample", protocol) == {"train": 22, "valid": 5, "test": 5}
    assert split_sizes("emopia", PAPER) == {"train": 864, "valid": 107, "test": 107}
    assert split_sizes("emopia", CLEAN) == {"train": 863, "valid": 108, "test": 107}


def test_clean_emopia_has_no_song_in_two_splits():
    song_splits: dict[str, set[str]] = {}
    for piece in list_pieces(corpus("emopia"), {}, CLEAN):
        song_splits.setdefault(piece.piece[3:14], set()).add(piece.split)
    assert len(song_splits) == 387
    assert all(len(splits) == 1 for splits in song_splits.values())


def test_pieces_and_their_files():
    first = {name: list_pieces(corpus(name), {}, PAPER)[0] for name in ("pop909", "asap", "pianist8", "emopia")}
    assert first["pop909"].files == ("073/073.mid", "073/beat_audio.txt")
    assert (first["pop909"].piece, first["pop909"].label) == ("073", None)
    assert first["asap"].files == ("Bach/Fugue/bwv_846/midi_score.mid",)
    assert first["pianist8"].label == "Clayderman"
    assert first["emopia"].piece == "Q1_1Qc15G0ZHIg_3.mid"
    assert first["emopia"].label == "Q1"


def test_pieces_stand_in_the_order_of_the_lists():
    lists = json.loads((Path(corpora.__file__).parent / "splits" / "pop909.json").read_text())
    expected = [piece for split in ("train", "valid", "test") for piece in lists[split]]
    assert [piece.piece for piece in list_pieces(corpus("pop909"), {}, CLEAN)] == expected


def test_corpora_without_lists_take_what_is_there():
    files = {"src_001/1.mid": 5, "src_001/0.mid": 5, "src_001/readme.txt": 5}
    pieces = list_pieces(corpus("pop1k7"), files, PAPER)
    assert [(piece.piece, piece.split) for piece in pieces] == [
        ("src_001/0.mid", "pretrain"),
        ("src_001/1.mid", "pretrain"),
    ]


def test_any_folder():
    mine = corpus("folder:/music/my scans/")
    names = ["b/Ünï côdé.MID", "a b.midi", "c/d/e.Midi", "{0}%s.mid", "x.mid.txt", "y.wav"]
    pieces = list_pieces(mine, dict.fromkeys(names, 1), CLEAN)
    assert [piece.piece for piece in pieces] == sorted(names[:4])
    assert all(piece.files == (piece.piece,) and piece.label is None for piece in pieces)
    assert mine.location("/ignored") == "/music/my scans"
    assert mine.slug == "folder-my-scans"
    assert corpus("folder:s3://bucket/midi").location("/ignored") == "s3://bucket/midi"


@pytest.mark.parametrize("name", ["folder:", "folder:/"])
def test_the_root_folder_is_a_folder_and_none_is_not(name):
    if name == "folder:/":
        assert corpus(name).location("x") == "/"
    else:
        with pytest.raises(ValueError, match="names no folder"):
            corpus(name)


def test_unknown_names_give_the_nearest():
    with pytest.raises(ValueError, match=r"'pop909'.*folder:"):
        corpus("POP990")


def test_locations_and_terms():
    assert corpus("pop909").location("s3://data/") == "s3://data/POP909"
    assert [name for name, entry in CORPORA.items() if entry.redistribute] == [
        "pop909",
        "lieder",
        "lieder_composers",
        "sample",
    ]
    for entry in CORPORA.values():
        assert entry.title and entry.licence and entry.citation and entry.url.startswith("https://")
        assert entry.slug == entry.name


def test_the_sample_carries_its_licence_and_every_file():
    folder = Path(corpus("sample").location(""))
    assert "MIT License" in (folder / "LICENSE").read_text()
    for piece in list_pieces(corpus("sample"), {}, PAPER):
        assert all((folder / file).is_file() for file in piece.files)
        assert (folder / piece.piece / "beat_midi.txt").is_file()


def test_dropped_notes_of_alignment_are_reported(sample):
    piece, contents = sample[0]
    tokens = tokenize_piece(corpus("sample"), piece, contents, CLEAN)
    assert set(tokens.dropped) <= {"zero duration", "before first beat", "after last beat"}
    assert sum(tokens.dropped.values()) > 0
    assert set(tokens.part.tolist()) == {1, 2, 3}


def columns(tokens: Tokens) -> np.ndarray:
    """[n, 5] onset, pitch, duration, velocity, part, in token order."""
    _, _, pitch, duration = tokens.tokens.T.astype(int)
    return np.stack([tokens.onset, pitch, duration, tokens.velocity, tokens.part], axis=1)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_the_order_changes_nothing_but_the_order(sample, protocol):
    differing = 0
    for piece, contents in sample:
        own, track, pitch = (
            columns(tokenize_piece(corpus("sample"), piece, contents, switched))
            for switched in (protocol, protocol.switch(order="track"), protocol.switch(order="pitch"))
        )
        assert np.array_equal(own, track if protocol is PAPER else pitch)
        assert sorted(track.tolist()) == sorted(pitch.tolist())
        assert pitch[:, :3].tolist() == sorted(pitch[:, :3].tolist())
        differing += not np.array_equal(track, pitch)
        if protocol is CLEAN:
            by_track = track[:, [0, 4, 1]].tolist()  # the parts are the tracks, in this order
            assert by_track == sorted(by_track)
    assert differing == len(sample)


def test_an_order_asked_for_goes_before_that_of_the_corpus(sample):
    """Under paper, ASAP's tracks are merged."""
    piece, contents = sample[0]
    merged = dataclasses.replace(corpus("sample"), merged=True)
    found = {
        order: columns(tokenize_piece(merged, piece, contents, PAPER.switch(order=order))).tolist()
        for order in ("corpus", "track", "pitch")
    }
    assert found["track"] == columns(tokenize_piece(corpus("sample"), piece, contents, PAPER)).tolist()
    assert found["corpus"] not in (found["track"], found["pitch"])


def test_a_bad_piece_is_an_error_with_a_reason(sample):
    piece, contents = sample[0]
    with pytest.raises(MidiError, match="truncated"):
        tokenize_piece(corpus("sample"), piece, [contents[0][:-9], contents[1]], PAPER)
    with pytest.raises(MidiError, match="beat annotation"):
        tokenize_piece(corpus("sample"), piece, [contents[0], b""], PAPER)


def _songs(name):
    return {
        split: {piece.piece for piece in list_pieces(corpus(name), {}, CLEAN) if piece.split == split}
        for split in ("train", "valid", "test")
    }


def test_lieder_are_divided_by_composer_and_for_composers_by_cycle():
    for name, depth, sizes in (("lieder", 1, (1058, 132, 132)), ("lieder_composers", 2, (548, 97, 83))):
        songs = _songs(name)
        assert tuple(map(len, songs.values())) == sizes
        groups = [{tuple(song.split("/")[:depth]) for song in split} for split in songs.values()]
        assert sum(map(len, groups)) == len(set.union(*groups))
    composers = [
        {piece.label for piece in list_pieces(corpus("lieder_composers"), {}, CLEAN) if piece.split == split}
        for split in ("train", "valid", "test")
    ]
    assert composers[0] == composers[1] == composers[2]
    assert len(composers[0]) == 17


def test_scores_and_midi_files_of_a_folder_are_pieces():
    files = dict.fromkeys(["a/b.mxl", "c.MusicXML", "d.mid", "e.txt", "f.xml"], 1)
    assert [piece.piece for piece in list_pieces(corpus("folder:/x"), files, CLEAN)] == [
        "a/b.mxl",
        "c.MusicXML",
        "d.mid",
    ]
    assert {piece.split for piece in list_pieces(corpus("solo"), files, CLEAN)} == {"test"}
