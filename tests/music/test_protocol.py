"""The two protocols: README's table, one place for every comparison, and switching one field alone."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from midibert_ray.corpora.catalogue import corpus
from midibert_ray.corpora.labels import list_pieces
from midibert_ray.corpora.tokens import tokenize_piece
from midibert_ray.music.protocol import CHOICES, CLEAN, PAPER, PROTOCOLS

ROOT = Path(__file__).parents[2]
ASKERS = {Path("midibert_ray/music/protocol.py"), Path("midibert_ray/settings")}
"""Where a protocol may be told by its name."""


def spelled(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_the_table_of_readme_is_that_of_the_two_values() -> None:
    section = (ROOT / "README.md").read_text().partition("## Two protocols, always named")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] == "| `"]
    head, *rows = rows
    assert head == ["`protocol.`", "what", "paper", "clean"]
    told = {name.strip("`"): [re.search(r"`(.*?)`", cell)[1] for cell in cells] for name, _, *cells in rows}
    values = {name: [spelled(getattr(protocol, name)) for protocol in (PAPER, CLEAN)] for name in CHOICES}
    assert told == values
    assert list(told) == list(CHOICES)


def test_no_branch_asks_for_a_name() -> None:
    places = sorted(path.relative_to(ROOT) for path in (ROOT / "midibert_ray").rglob("*.py"))
    asked = [
        f"{place}:{node.lineno}"
        for place in places
        if not {place, place.parent} & ASKERS
        for node in ast.walk(ast.parse((ROOT / place).read_text()))
        if isinstance(node, ast.Compare | ast.match_case)
        and any(isinstance(part, ast.Constant) and part.value in PROTOCOLS for part in ast.walk(node))
    ]
    assert not asked, "ask a field of `music.protocol.Protocol` instead"


def test_every_field_tells_the_two_apart() -> None:
    assert {item.name for item in dataclasses.fields(PAPER)} == {"name", "named", *CHOICES}
    for name in CHOICES:
        assert getattr(PAPER, name) != getattr(CLEAN, name), name


def test_a_switch_is_known_by_name() -> None:
    switched = PAPER.switch(order="pitch", masks_padding=False)
    assert (switched.order, switched.masks_padding, switched.random_ids) == ("pitch", False, "all")
    assert switched.describe() == "paper, masks_padding=False, order=pitch"
    assert switched.switched("mask") == {"masks_padding": False}
    assert switched.switched("tokens", "finetune") == {"order": "pitch"}
    assert CLEAN.switch(order="pitch").switched() == {"order": "pitch"}, "named, although it says what clean says"
    assert PAPER.switch() == PAPER


def test_wrong_switches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"odrer is no field of a protocol; allowed: order, one_onset"):
        PAPER.switch(odrer="pitch")
    with pytest.raises(ValueError, match=r"order='merged' is not possible; allowed: corpus, track, pitch"):
        PAPER.switch(order="merged")
    with pytest.raises(ValueError, match=r"masks_padding='yes' is not possible; allowed: True, False"):
        PAPER.switch(masks_padding="yes")
    with pytest.raises(ValueError, match=r"one_onset='tick' is not possible with order='pitch'"):
        CLEAN.switch(one_onset="tick")
    assert CLEAN.switch(one_onset="tick", order="track").one_onset == "tick"


def tokens_of(sample, protocol) -> list[np.ndarray]:
    """[n, 4] onset, pitch, duration, part of some pieces."""
    made = (tokenize_piece(corpus("sample"), piece, contents, protocol) for piece, contents in sample[:4])
    return [np.column_stack([each.onset, each.tokens[:, 2:], each.part]).astype(int) for each in made]


def test_one_repair_of_the_tokens_changes_nothing_else(sample) -> None:
    paper = tokens_of(sample, PAPER)
    by_pitch = tokens_of(sample, PAPER.switch(order="pitch"))
    unshifted = tokens_of(sample, PAPER.switch(shifts_last_onset=False))
    for before, pitch, late in zip(paper, by_pitch, unshifted, strict=True):
        assert before.tolist() != pitch.tolist()
        assert sorted(before.tolist()) == sorted(pitch.tolist())
        moved = (before != late).any(axis=1)
        assert moved.any()
        assert (late[moved, 0] == late[:, 0].max()).all()
        assert np.array_equal(late[moved, 0] - 1, before[moved, 0])
        assert np.array_equal(late[:, 1:], before[:, 1:])
    # The pieces are aligned, at 480 ticks per beat and without drums: these repairs have nothing to do.
    idle = PAPER.switch(ticks_per_beat="file", drops_drums=True, one_onset="sub-beat", masks_padding=False)
    for before, after in zip(paper, tokens_of(sample, idle), strict=True):
        assert np.array_equal(before, after)


def test_all_repairs_of_the_tokens_together_are_clean(sample) -> None:
    repairs = {name: getattr(CLEAN, name) for name in ("order", "ticks_per_beat", "drops_drums", "shifts_last_onset")}
    for one, other in zip(tokens_of(sample, PAPER.switch(**repairs)), tokens_of(sample, CLEAN), strict=True):
        assert np.array_equal(one, other)


def test_emopia_is_split_as_the_field_says() -> None:
    def splits(protocol) -> dict[str, str]:
        return {piece.piece: piece.split for piece in list_pieces(corpus("emopia"), {}, protocol)}

    assert splits(PAPER.switch(emopia_split="song")) == splits(CLEAN) != splits(PAPER)
    assert splits(CLEAN.switch(emopia_split="clip")) == splits(PAPER)
