"""Tables as text."""

from midibert_ray.settings.text import aligned, piped

ROWS = [["corpus", "pieces", "notes"], ["asap", "65", "144,198"], ["emopia", "1,078", "–"]]


def test_columns_are_aligned() -> None:
    assert aligned(ROWS).splitlines() == [
        "corpus  pieces  notes",
        "asap    65      144,198",
        "emopia  1,078   –",
    ]
    assert aligned(ROWS, numbers=True).splitlines() == [
        "corpus  pieces    notes",
        "asap        65  144,198",
        "emopia   1,078        –",
    ]


def test_markdown_has_a_rule_below_its_head() -> None:
    assert piped(ROWS[:2]) == "| corpus | pieces | notes |\n|---|---|---|\n| asap | 65 | 144,198 |"
