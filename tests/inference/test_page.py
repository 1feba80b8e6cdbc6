"""The page that one can listen to: complete in itself, safe from names, and true to its notes. No browser is needed."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from midibert_ray.inference.page import CATEGORIES, ORDER, Roll, RollPiece, assets, bar_lines, document, player, render
from tests.report.pages import Elements, check

CLASSES = ("melody", "bridge", "accompaniment")
HOSTILE = "</script><script>alert(1)</script> & \"quoted\" 'name' \u2028"


def piece(name: str = "song", **changes: Any) -> RollPiece:
    """Four notes, the third of them first, the last without a label; one of three known labels is wrong."""
    made = RollPiece(
        name=name,
        onset_s=np.array([0.5, 1.0, 0.0, 1.0]),
        offset_s=np.array([1.0, 1.25, 0.5, 3.0]),
        pitch=np.array([60, 64, 67, 48]),
        velocity=np.array([80, 90, 100, 10]),
        label=np.array([0, 2, 0, -1]),
        probability=np.array([0.9, 0.504, 0.6, np.nan]),
        truth=np.array([0, 2, 1, -1]),
    )
    return replace(made, **changes)


def roll(*pieces: RollPiece, classes: tuple[str, ...] = CLASSES, **settings: Any) -> Roll:
    return Roll(title="A title", classes=classes, pieces=pieces or (piece(),), **settings)


def embedded(content: str) -> dict[str, Any]:
    """The data of the only player of a page, as its script reads it."""
    (found,) = re.findall(r'<script type="application/json">(.*?)</script>', content, flags=re.DOTALL)
    return dict(json.loads(found))


def test_a_page_is_complete_in_itself() -> None:
    content = document(roll(), ["A sentence."])
    assert content.startswith("<!doctype html>")
    assert check(content).startswith("A title A title A sentence. ")
    elements = Elements()
    elements.feed(content)
    assert elements.fetched == []
    assert not re.search(r"https?:|//\w|@import|url\(|fetch\(|XMLHttpRequest|WebSocket|import\(", content)
    assert not re.search(r"localStorage|sessionStorage|document\.cookie|window\.(top|parent)", content), "in a sandbox"


def test_names_are_text_wherever_they_stand() -> None:
    content = document(roll(piece(HOSTILE), piece("other"), classes=(HOSTILE, *CLASSES[1:])), [HOSTILE])
    assert "<script>alert" not in content and "alert(1)</script>" not in content
    data = embedded(content)
    assert data["classes"][0] == data["pieces"][0]["name"] == HOSTILE
    check(content)


def test_notes_come_back_in_the_order_of_their_onsets() -> None:
    bars = np.array([0.0, 2.0])
    (found,) = embedded(document(roll(piece(bars_s=bars))))["pieces"]
    assert (np.cumsum(found["onset"]) / 1000).tolist() == [0, 0.5, 1, 1]
    assert found["length"] == [500, 500, 2000, 250]
    assert (found["pitch"], found["velocity"]) == ([67, 60, 48, 64], [100, 80, 10, 90])
    assert (found["label"], found["truth"]) == ([0, 0, -1, 2], [1, 0, -1, 2])
    assert found["probability"] == [60, 90, 0, 50]
    assert found["bars"] == [0, 2000]


def test_the_summary_counts_labels() -> None:
    whole = piece()
    assert whole.counts(3) == [(2, 1), (0, 1), (1, 1)]
    assert (whole.accuracy, whole.sure, whole.unlabelled) == (2 / 3, pytest.approx(0.668), 1)
    text = check(document(roll(whole)))
    assert "song 0:03 4 2 true 1 0 true 1 1 true 1 1 66.8 % 66.7 %" in text
    alone = piece(truth=None)
    assert alone.accuracy is None and alone.counts(3) == [(2, None), (0, None), (1, None)]
    text = check(document(roll(alone)))
    assert "song 0:03 4 2 0 1 1 66.8 %" in text and "Next mistake" not in text
    unknown = piece(truth=np.full(4, -1), label=np.full(4, -1))
    assert unknown.accuracy is None and unknown.sure is None


def test_pieces_are_chosen_by_name_in_the_order_given() -> None:
    content = document(roll(piece("worst"), piece("best", truth=np.array([0, 2, 0, 1]))))
    assert re.findall(r"<option value=\"(\d)\">([^<]+ right)<", content) == [
        ("0", "worst · 66.7 % right"),
        ("1", "best · 75.0 % right"),
    ]
    assert 'aria-label="Piece"' not in document(roll())


def test_every_control_can_be_named_and_reached() -> None:
    content = document(roll(piece("a"), piece("b")))
    buttons = re.findall(r"<button ([^>]*)>", content)
    assert len(buttons) > 15 and all(
        'type="button"' in each and re.search(r'aria-label="[^"]+"', each) for each in buttons
    )
    assert all('aria-label="' in each for each in re.findall(r"<select ([^>]*)>", content))
    assert re.search(r'class="roll-scroll" tabindex="0"', content) and 'aria-live="polite"' in content
    for name in CLASSES:
        assert f'aria-label="Solo {name}"' in content and f'aria-label="Mute {name}"' in content
    script = str(assets())
    asked = set(re.findall(r'data-do="(\w+)"', content))
    assert [name for name in asked if not re.search(rf"^    {name}\(", script, flags=re.MULTILINE)] == []


def test_several_players_share_a_page() -> None:
    one, other = player(roll()), player(roll(classes=("pp", "p", "mp"), ordered=True))
    assert f"--label-0:{CATEGORIES[0]};--label-1:{CATEGORIES[1]}" in one
    assert f"--label-0:{ORDER[0]};" in other and f"--label-2:{ORDER[-1]}" in other
    assert "AudioContext" not in one and str(assets()).count("new AudioContext") == 1


def test_a_page_stays_small() -> None:
    random = np.random.default_rng(0)
    onset = np.sort(random.uniform(0, 900, 10_000))
    length, pitch, label = (
        random.uniform(0.1, 2, 10_000),
        random.integers(21, 109, 10_000),
        random.integers(0, 3, 10_000),
    )
    whole = RollPiece(
        name="long",
        onset_s=onset,
        offset_s=onset + length,
        pitch=pitch,
        velocity=pitch,
        label=label,
        probability=length / 2,
    )
    assert len(document(roll(replace(whole, truth=label)))) < 300_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pitch": np.arange(3)}, r"piece 'song': pitch has shape \(3,\), onset_s \(4,\)"),
        ({"offset_s": np.zeros(4)}, "piece 'song': a note ends before it begins"),
    ],
)
def test_columns_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        piece(**changes)


def test_a_label_that_is_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match="piece 'song' has label 2, but there are 2 classes, from 0: a, b"):
        roll(classes=("a", "b"))


def test_a_piece_without_notes_has_a_page() -> None:
    none, floats = np.zeros(0, dtype=int), np.zeros(0)
    empty = RollPiece(
        name="", onset_s=floats, offset_s=floats, pitch=none, velocity=none, label=none, probability=floats
    )
    check(document(roll(empty)))


def test_bars_are_told_by_the_notes_that_stand_at_their_beginning() -> None:
    bar, position = (pd.array(values, dtype="Int64") for values in ([2, 2, 4, 5, None], [0, 8, 0, 3, None]))
    onset = pd.Series([3.0, 4.0, 7.0, 9.6, 9.9])
    lines = bar_lines(pd.Series(bar), pd.Series(position), onset)
    assert lines is not None and lines.tolist() == [1, 3, 5, 7], "bar 1 as long as those after it, bar 3 in between"
    assert bar_lines(pd.Series(bar), pd.Series(position) + 1, onset) is None


def annotation(level: str) -> Any:
    """The fields of an `Annotation` that the page reads."""
    notes = pd.DataFrame(
        {
            "onset_s": [0.0, 1.0, 2.0],
            "offset_s": [0.5, 1.5, 2.5],
            "pitch": [60, 62, 64],
            "velocity": [70, 80, 90],
            "bar": pd.array([1, 1, None], dtype="Int64"),
            "position": pd.array([0, 8, None], dtype="Int64"),
            **({"label": ["a", "b", ""], "probability": [0.7, 0.8, np.nan]} if level == "note" else {}),
        }
    )
    return SimpleNamespace(
        notes=notes,
        level=level,
        classes=("a", "b"),
        probabilities=pd.Series([0.25, 0.75], index=["a", "b"]),
        song=SimpleNamespace(name="a song"),
        unfamiliar="",
        remarks=("Read with care.",),
    )


def test_an_annotation_has_a_page() -> None:
    content = render(annotation("note"))
    (found,) = embedded(content)["pieces"]
    assert (found["label"], found["probability"], found["truth"]) == ([0, 1, -1], [70, 80, 0], None)
    assert "Read with care." in check(content)


def test_a_piece_with_one_label_says_it_in_words() -> None:
    text = check(render(annotation("sequence")))
    assert text.startswith("a song a song The piece: b 75.0 %, a 25.0 %. Read with care. ")
    assert not any(words in text for words in ("no label", "unsure", "Notes by label"))  # notes have none here
    number = annotation("sequence")
    number.classes, number.probabilities, number.label = (), pd.Series([], dtype=float), "1998.23"
    assert check(render(number)).startswith("a song a song The piece: 1998.23. Read with care. ")
