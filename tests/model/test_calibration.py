"""Calibration against values computed by hand, by scipy, and on answers whose probabilities are known."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from midibert_ray.model.calibration import (
    THRESHOLDS,
    Abstention,
    Bin,
    Calibration,
    Familiarity,
    Favour,
    Reliability,
    fit_temperature,
    softmax,
)


def answers(temperature: float, count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Logits of three classes that are too large by a factor, and labels drawn from the true probabilities."""
    random = np.random.default_rng(3)
    true = random.normal(scale=2.0, size=(count, 3))
    labels = (softmax(true).cumsum(axis=-1) > random.random((count, 1))).argmax(axis=-1)
    return true * temperature, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_temperature_is_that_of_the_lowest_cross_entropy(temperature: float) -> None:
    logits, labels = answers(temperature)

    def loss(log: float) -> float:
        return -log_softmax(logits / np.exp(log), axis=-1)[np.arange(len(labels)), labels].mean()

    found = fit_temperature(logits, labels)
    assert found == pytest.approx(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x), rel=1e-3)
    assert found == pytest.approx(temperature, rel=0.06)


@pytest.mark.parametrize(("logits", "expected"), [([[0.0, 0.0]], 1.0), ([[2.0, 0.0]], 0.05), ([[0.0, 2.0]], 20.0)])
def test_a_split_that_asks_for_too_much_gets_a_temperature_all_the_same(
    logits: list[list[float]], expected: float
) -> None:
    assert fit_temperature(logits, [0]) == pytest.approx(expected)


def test_figures_by_hand() -> None:
    """Four answers of two classes with probabilities .91, .91, .61 and .61; three are right."""
    odds = np.log(np.divide([0.91, 0.91, 0.61, 0.61], [0.09, 0.09, 0.39, 0.39]))
    found = Reliability.measure(np.stack([odds, np.zeros(4)], axis=1), [0, 1, 0, 0], 1.0)
    low, high = found.bins
    assert (low.count, low.accuracy, high.count, high.accuracy) == (2, 1.0, 2, 0.5)
    assert (low.confidence, high.confidence) == (pytest.approx(0.61), pytest.approx(0.91))
    assert found.ece == found.ece_before == pytest.approx((0.39 + 0.41) / 2)
    table = {row.threshold: (row.coverage, row.accuracy) for row in found.abstention}
    assert table == {0.5: (1, 0.75), 0.6: (1, 0.75), 0.7: (0.5, 0.5), 0.8: (0.5, 0.5), 0.9: (0.5, 0.5), 0.95: (0, None)}
    assert tuple(table) == THRESHOLDS and found.scored == 4


def test_a_temperature_makes_probabilities_that_hold() -> None:
    logits, labels = answers(5.0)
    found = Reliability.measure(logits, labels, fit_temperature(logits, labels))
    assert found.ece_before > 0.1 and found.ece < 0.03
    shares, right = zip(*((row.coverage, row.accuracy) for row in found.abstention), strict=True)
    assert sorted(shares, reverse=True) == list(shares) and sorted(right) == list(right)


def test_a_rare_class_is_answered_where_its_f1_is_highest() -> None:
    probability, truth = np.array([0.9, 0.6, 0.4, 0.4, 0.3, 0.1]), np.array([1, 1, 1, 0, 1, 0], bool)
    # answered from 0.9, 0.6, 0.4 and 0.3 on: F1 2/5, 4/6, 6/8 and 8/9
    found = Favour.fit("melody", probability, truth, probability > 0.5)
    assert found and (found.name, found.least) == ("melody", 0.3)
    assert found.f1 == pytest.approx(8 / 9) and found.f1_of_most_probable == pytest.approx(4 / 6)
    # one of two that are equally probable cannot be had alone
    tied = Favour.fit("melody", [0.8, 0.8, 0.5], np.array([1, 0, 1], bool), np.array([1, 1, 0], bool))
    assert tied and tied.least == 0.5
    assert Favour.fit("melody", [0.8, 0.2], np.array([0, 0], bool), np.array([1, 0], bool)) is None


def test_it_comes_back_from_its_file(tmp_path: Path) -> None:
    logits, labels = answers(2.0, 50)
    known = Familiarity.fit(np.eye(8), np.ones((4, 8)))
    one = Reliability.measure(logits, labels, 2.0)
    made = Calibration(
        temperature=2.0,
        valid=one,
        familiarity=known,
        favour=Favour(name="a", least=0.3, f1=0.5, f1_of_most_probable=0.4),
    )
    assert Calibration.from_json(made.to_json()) == made
    older = {name: value for name, value in json.loads(made.to_json()).items() if name != "favour"}
    assert Calibration.from_json(json.dumps(older)) == replace(made, favour=None)
    assert made.valid and isinstance(made.valid.bins[0], Bin) and isinstance(made.valid.abstention[0], Abstention)
    assert np.allclose(made.probabilities([[0.0, 2 * np.log(3.0)]]), [[0.25, 0.75]])
    assert Calibration.find(tmp_path) is None
    (tmp_path / "calibration.json").write_text(made.to_json()[:-9])
    with pytest.raises(ValueError, match=r"calibration\.json is damaged"):
        Calibration.find(tmp_path)
    with pytest.raises(ValueError, match=r"calibration\.json is damaged.*valid"):
        Calibration.from_json(json.dumps({"temperature": 1.0, "test": None, "familiarity": None}))


def test_distances_are_those_of_the_covariance() -> None:
    """A cloud with two wide axes, the rest alike: all of them are found, and what lies along a narrow one is far."""
    random = np.random.default_rng(5)
    turned = np.linalg.qr(random.normal(size=(40, 40)))[0]
    spread = np.r_[10.0, 3.0, np.ones(38)]
    pieces = (random.normal(size=(3, 4000, 40)) * spread) @ turned + 7
    found = Familiarity.fit(pieces[0], pieces[1])
    expected = np.sqrt((((pieces[2] - 7) @ turned.T / spread) ** 2).mean(axis=-1))
    np.testing.assert_allclose(found.distance(pieces[2]), expected, rtol=0.1)
    assert found.knows(pieces[2]).mean() == pytest.approx(0.95, abs=0.015)
    wide, narrow = 8 * turned[[0]] + 7, 8 * turned[[30]] + 7
    assert found.knows(wide).all() and not found.knows(narrow).any()


def test_a_handful_of_pieces_makes_a_cloud_as_well() -> None:
    for pieces in (np.zeros((1, 4)), np.eye(4)[:2], np.ones((5, 4))):
        found = Familiarity.fit(pieces, pieces)
        assert np.isfinite(found.distance(np.eye(4))).all() and np.isfinite(found.threshold)


def test_no_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels of shape \(0,\)"):
        fit_temperature(np.zeros((0, 3)), [])
