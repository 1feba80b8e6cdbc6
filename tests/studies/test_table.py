import csv
import io

import pytest

from midibert_ray.studies import figures, table
from midibert_ray.studies.outcome import Outcome


def outcome(variant: str, seed: int, accuracy: float) -> Outcome:
    """Two classes, 60 and 40 of 100 scored."""
    right = round(100 * accuracy)
    confusion = [[60, 0], [100 - right, right - 60]]
    scores = {"test/accuracy": accuracy, "test/f1": 0.5, "test/loss": 1.0, "valid/best": accuracy}
    return Outcome(
        trial=f"melody-{variant}-seed{seed}",
        task="melody",
        variant=variant,
        seed=seed,
        epoch=1,
        figures=scores,
        classes=["a", "b"],
        confusion=confusion,
    )


OUTCOMES = [outcome("pretrained", 1, 0.9), outcome("pretrained", 2, 0.8), outcome("scratch", 1, 0.7)]


def test_cells_are_means_over_seeds_and_the_majority_class_stands_beside_them() -> None:
    cells = {cell.variant: cell for cell in table.cells(OUTCOMES)}
    assert cells["pretrained"].accuracy == pytest.approx(0.85)
    assert cells["pretrained"].seeds == 2
    assert cells["scratch"].accuracy == pytest.approx(0.7)
    trivial = cells[table.MAJORITY]
    assert (trivial.accuracy, trivial.scored) == (0.6, 100)
    assert trivial.f1 == pytest.approx(0.5 * 2 * 0.6 / 1.6)


def test_intervals() -> None:
    # Agresti and Coull (1998), and a textbook t interval.
    assert table.wilson(0.7, 100) == pytest.approx((0.6042, 0.7811), abs=1e-4)
    assert table.wilson(0.0, 10)[0] == 0
    assert table.wilson(0.5, 0) == (0, 1)
    low, high = table.seed_interval([0.8, 0.9])
    assert (low, high) == pytest.approx((0.85 - 12.706 * 0.05, 0.85 + 12.706 * 0.05), abs=1e-6)


def test_texts() -> None:
    rows = list(csv.DictReader(io.StringIO(table.to_csv(OUTCOMES))))
    assert [row["variant"] for row in rows] == ["pretrained", "scratch", table.MAJORITY]
    markdown = table.to_markdown(OUTCOMES, {"melody-x": "out of memory"})
    assert "| scratch | 70.00 [60.4, 78.1] |" in markdown
    assert "failed: melody-x: out of memory" in markdown
    assert table.to_text(OUTCOMES).splitlines()[2].split()[0] == "scratch"
    assert table.to_markdown([], {"melody-x": "lost"}).rstrip().endswith("failed: melody-x: lost")


def test_outcomes_survive_json() -> None:
    assert Outcome.from_json(OUTCOMES[0].to_json()) == OUTCOMES[0]


def test_pictures_are_drawn_without_a_display() -> None:
    for picture in (figures.confusion(OUTCOMES[0]), figures.bars(table.cells(OUTCOMES))):
        buffer = io.BytesIO()
        picture.savefig(buffer, format="png")
        assert buffer.getvalue().startswith(b"\x89PNG")
