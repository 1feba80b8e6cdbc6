"""Tables as text."""

from midibert_ray.settings.text import aligned, counted, piped

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


def test_one_thing_is_not_called_by_its_plural() -> None:
    said = [counted(number, "pieces off the grid") for number in (0, 1, 1200)]
    assert said == ["0 pieces off the grid", "1 piece off the grid", "1,200 pieces off the grid"]
    assert counted(1, "files") == "1 file"
