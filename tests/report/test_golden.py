"""Tables, findings and the report of a study small enough to work out by hand; how is said beside each number.

Four test pieces of ten notes each, so that every resample of the bootstrap can be listed (4^4 = 256), and every
exchange of the paired test (2^4 = 16). Of the 40 notes 10 are melody, 10 bridge, 20 accompaniment.

| right in piece  | a | b |  c | d | accuracy | mean over seeds |
|-----------------|---|---|----|---|----------|-----------------|
| pretrained, 1   | 9 | 8 |  7 | 8 | 32 / 40  |                 |
| pretrained, 2   | 9 | 10|  9 | 8 | 36 / 40  | 9, 9, 8, 8: 34 / 40 = 85 % |
| scratch, 1      | 5 | 6 |  4 | 6 | 21 / 40  | 52.5 % |
| rnn, 1          | 9 | 7 |  8 | 4 | 28 / 40  | 70 % |
"""

import csv
import io
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from midibert_ray.report import findings, formats, load, page, plots, report, statistics, table, table_one
from midibert_ray.report.baselines import TRAINING, Baseline
from midibert_ray.report.table import Key, ResultTable
from midibert_ray.studies.plan import make
from midibert_ray.studies.recorder import StudyLog
from midibert_ray.studies.result import PREDICTIONS, TrialResult
from midibert_ray.studies.trials import Trial
from tests.report.pages import check
from tests.report.test_report import ASAP, locate, predictions
from tests.tiny import tiny_study

CLASSES = ["melody", "bridge", "accompaniment"]


def trial(
    variant: str,
    right: tuple[int, ...],
    *,
    seed: int = 1,
    task: str = "melody",
    protocol: str = "clean",
    confusion: tuple[list[int], ...] = ([10, 0, 0], [0, 10, 0], [0, 0, 20]),
    f1: float = 0.5,
) -> TrialResult:
    """A trial with so many notes right in each piece of ten; half an hour on two devices."""
    return TrialResult(
        trial=f"{task}-{variant}-{protocol}-seed{seed}",
        task=task,
        variant=variant,
        protocol=protocol,
        seed=seed,
        epoch=3,
        metrics={"test/accuracy": sum(right) / (10 * len(right)), "test/f1": f1, "test/loss": 1.0, "valid/best": 0.5},
        classes=CLASSES,
        confusion=list(confusion),
        pieces={name: [count, 10, int(count > 5)] for name, count in zip("abcd", right, strict=True)},
        seconds=1800.0,
        devices=2.0,
    )


# Macro-F1 is the mean over classes of 2 × hits / (notes of the class + notes taken for it):
# pretrained, 1: 16/20, 14/20, 34/40: 2.35 / 3; pretrained, 2: 20/20, 16/20, 36/40: 2.7 / 3; their mean is 5.05 / 6;
# scratch: 8/21, 10/22, 24/37: 0.4947; rnn: 12/20, 12/20, 32/40: 2 / 3.
OUTCOMES = [
    trial("pretrained", (9, 8, 7, 8), confusion=([8, 1, 1], [1, 7, 2], [1, 2, 17]), f1=2.35 / 3),
    trial("pretrained", (9, 10, 9, 8), seed=2, confusion=([10, 0, 0], [0, 8, 2], [0, 2, 18]), f1=2.7 / 3),
    trial("scratch", (5, 6, 4, 6), confusion=([4, 3, 3], [3, 5, 2], [4, 4, 12]), f1=(8 / 21 + 10 / 22 + 24 / 37) / 3),
    trial("rnn", (9, 7, 8, 4), confusion=([6, 2, 2], [2, 6, 2], [2, 2, 16]), f1=2 / 3),
]
FAILED = {
    Trial(task="melody", variant="freeze-backbone", protocol="clean", seed=1): "out of memory",
    Trial(task="melody", variant="scratch", protocol="clean", seed=2): "loss is not finite",
}
SKYLINE = Baseline(
    protocol="clean",
    task="melody",
    name="skyline",
    correct=30,
    scored=40,
    detail={"TP": 5, "FP": 5, "FN": 5, "TN": 25},
    note="the highest",
)


@pytest.fixture
def third() -> ResultTable:
    (only,) = table.build(OUTCOMES, FAILED, [SKYLINE], ("3",))
    return only


# ------------------------------------------------------------------------------------ statistics


def tally(*pieces: tuple[float, float]) -> statistics.Floats:
    return np.array(pieces, dtype=float)


def test_wilsons_interval() -> None:
    # z² = 3.841459; centre (0.85 + z²/80) / (1 + z²/40) = 0.898018 / 1.096036 = 0.819332;
    # half z / 1.096036 × √(0.85 × 0.15 / 40 + z²/6400) = 1.788229 × √0.003787728 = 0.110056.
    assert statistics.wilson(34, 40) == pytest.approx((0.709276, 0.929388), abs=2e-6)


def test_students_interval() -> None:
    # Deviation 0.05; t of 2 degrees of freedom 4.302653; half 4.302653 × 0.05 / √3 = 0.124207.
    assert statistics.over_seeds([0.8, 0.85, 0.9]) == pytest.approx((0.725793, 0.974207), abs=1e-6)


@pytest.mark.parametrize(
    ("pieces", "low", "high"),
    [
        # Both from one piece in 1 of 4 draws each: 9/10 and 30/60; one of each, 39/70, in between.
        ([(9, 10), (30, 60)], 0.5, 0.9),
        # The same piece three times in 1 of 27 draws, 3.7 %, which is more than 2.5 %: 1/8 and 3/4 are the ends.
        ([(2, 4), (3, 4), (1, 8)], 0.125, 0.75),
        # Of sums of four, 16 comes in 1 of 256 draws and 17 in 4, 2.0 % together; 18 in 14 more: 18/40.
        # 24 is four of the two pieces with 6 in 16 draws, 6.3 %: 24/40.
        ([(5, 10), (6, 10), (4, 10), (6, 10)], 0.45, 0.6),
    ],
)
def test_the_bootstrap_over_pieces(pieces: list[tuple[float, float]], low: float, high: float) -> None:
    assert statistics.over_pieces(tally(*pieces)) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        # +3 +1 -1 +2 is 5; the fifth piece has no part in it. Of 16 exchanges 7, 5 and 5 are as far, and -7, -5, -5.
        ((8, 6, 4, 7, 5), (5, 5, 5, 5, 5), 6 / 16),
        # +4 +3 +4 +2: only all of them, or none, exchanged is as far as 13.
        ((9, 9, 8, 8), (5, 6, 4, 6), 2 / 16),
        # +2 +1 -2 is 1, and no exchange is nearer to 0.
        ((7, 6, 3), (5, 5, 5), 1.0),
    ],
)
def test_the_exact_test(first: tuple[int, ...], second: tuple[int, ...], p: float) -> None:
    one, other = (tally(*((right, 10) for right in each)) for each in (first, second))
    assert statistics.paired_p(one, other) == statistics.paired_p(other, one) == p


def test_holms_correction() -> None:
    # In order 5 × 0.005, 4 × 0.01, 3 × 0.03 and 2 × 0.04, which may not be less than the 0.09 before it, 1 × 0.5.
    assert statistics.holm([0.04, 0.01, 0.03, 0.005, 0.5]) == pytest.approx([0.09, 0.04, 0.09, 0.025, 0.5])


# ------------------------------------------------------------------------------------ tables

# Intervals: pretrained (9, 9, 8, 8) has 80 and 90 % in 1 of 16 draws each. Scratch: above. rnn (9, 7, 8, 4): sums of
# four of at most 19 in 5 of 256 draws (2.0 %) and of 20 in 4 more, so 20/40; 36 and 35 in 5, and 34 in 10 more: 34/40.
# p: scratch loses 4, 3, 4 and 2 notes: 2/16; rnn 2 and 4, and in two pieces nothing: 2/4. Holm: 2 × 2/16, and 1/2.
TEXT = """\
Table III: without pre-training, or partly frozen, protocol clean. \
Accuracy on the test split in %; p against MidiBERT + CP.
                              melody
RNN + CP                      70.00 [50.0, 85.0] (paper 88.66) p 0.500
MidiBERT + CP                 85.00 [80.0, 90.0] (paper 96.37)
without pre-training          52.50 [45.0, 60.0] (paper 83.38) p 0.250 1 failed
freeze BERT                   failed
freeze self-attention layers  –
majority class                50.00"""

# Melody or not: TP is the first number on the diagonal, FP the rest of its column, FN the rest of its row.
# rnn 6, 4, 4: 32 of 40, F1 12/20; pretrained, means of 8, 2, 2 and 10, 0, 0: 38 of 40, F1 18/20; no melody: 30 of 40.
MARKDOWN = f"""\
The first sentence.

### Table III: without pre-training, or partly frozen, protocol clean

Accuracy on the test split in %; p against MidiBERT + CP.

|  | melody |
|---|---|
| RNN + CP | 70.00 [50.0, 85.0] (paper 88.66) p 0.500 |
| MidiBERT + CP | 85.00 [80.0, 90.0] (paper 96.37) |
| without pre-training | 52.50 [45.0, 60.0] (paper 83.38) p 0.250 1 failed |
| freeze BERT | failed |
| freeze self-attention layers | – |
| majority class | 50.00 |

### Melody or not

|  | protocol | accuracy | paper | F1 of melody | TP | FP | FN | TN |
|---|---|---|---|---|---|---|---|---|
| no melody at all | clean | 75.00 |  | 0.00 | 0 | 0 | 10 | 30 |
| skyline | clean | 75.00 | 78.54 | 50.00 | 5 | 5 | 5 | 25 |
| MidiBERT + CP | clean | 95.00 | 97.09 | 90.00 | 9 | 1 | 1 | 29 |
| RNN + CP | clean | 80.00 |  | 60.00 | 6 | 4 | 4 | 26 |

{table.STATISTICS}

- failed: melody-scratch-clean-seed2: loss is not finite
- failed: melody-freeze-backbone-clean-seed1: out of memory
"""


def test_the_cells_of_a_table(third: ResultTable) -> None:
    assert third.tasks == ("melody",) and third.protocols == ("clean",) and third.baseline == "pretrained"
    full = third.cells[Key("clean", "melody", "pretrained")]
    score = full.score
    assert score and (score.accuracy, score.seeds, score.scored) == (pytest.approx(0.85), 2, 40)
    assert dict(score.tally) == {"a": (9, 10), "b": (9, 10), "c": (8, 10), "d": (8, 10)}
    assert dict(score.support) == {"melody": 10, "bridge": 10, "accompaniment": 20}
    assert score.interval == score.over_pieces == pytest.approx((0.8, 0.9))
    assert score.wilson == pytest.approx((0.709276, 0.929388), abs=2e-6)
    assert score.over_seeds == pytest.approx((0.85 - 12.706205 * 0.05, 1.0), abs=1e-6)  # t of 1 degree of freedom
    assert (score.f1, score.piece_accuracy) == (pytest.approx(5.05 / 6), None)
    assert (score.seconds, score.device_hours) == (3600, 2)
    assert (full.printed, full.difference, full.p) == (96.37, pytest.approx(-11.37), None)
    p = {key.variant: cell.p for key, cell in third.cells.items()}
    assert p == {"pretrained": None, "scratch": 0.25, "rnn": 0.5, "freeze-backbone": None}
    assert third.best("clean", "melody") == score.accuracy
    (majority,) = third.baselines
    assert (majority.correct, majority.scored, table.majority_f1(majority)) == (20, 40, pytest.approx(2 / 9))


def test_a_table_as_text(third: ResultTable) -> None:
    assert formats.to_text([third]) == TEXT


def test_a_table_as_markdown(third: ResultTable) -> None:
    melody = findings.melody_or_not(OUTCOMES, [SKYLINE], [third])
    assert formats.to_markdown([third], ["The first sentence."], melody) == MARKDOWN


def test_a_table_as_csv(third: ResultTable) -> None:
    head, *rows = csv.reader(io.StringIO(formats.to_csv([third])))
    assert head == list(formats.FIELDS)
    rnn, full, scratch, frozen, majority = (dict(zip(head, row, strict=True)) for row in rows)
    place = {"table": "3", "protocol": "clean", "task": "melody"}
    assert frozen == dict.fromkeys(head, "") | place | {
        "variant": "freeze-backbone",
        "row": "freeze BERT",
        "printed": "92.5",
        "failed": "melody-freeze-backbone-clean-seed1: out of memory",
    }
    assert majority == dict.fromkeys(head, "") | place | {
        "row": "majority class",
        "accuracy": "0.5",
        "f1": majority["f1"],
        "scored": "40",
    }
    assert float(majority["f1"]) == pytest.approx(2 / 9)
    names = ("variant", "row", "piece_accuracy", "scored", "seeds", "seconds", "device_hours", "printed", "p", "failed")
    assert [full[name] for name in names] == [
        *("pretrained", "MidiBERT + CP", "", "40", "2", "3600.0", "2.0", "96.37", "", "")
    ]
    assert [rnn[name] for name in names] == ["rnn", "RNN + CP", "", "40", "1", "1800.0", "1.0", "88.66", "0.5", ""]
    assert (scratch["p"], scratch["failed"]) == ("0.25", "melody-scratch-clean-seed2: loss is not finite")
    assert (scratch["seeds_low"], scratch["seeds_high"]) == ("", ""), "one seed has no spread"
    numbers = ("accuracy", "low", "high", "pieces_low", "pieces_high", "difference")
    assert [float(scratch[name]) for name in numbers] == pytest.approx([0.525, 0.45, 0.6, 0.45, 0.6, 52.5 - 83.38])


def test_a_table_as_html(third: ResultTable) -> None:
    content = page.to_html([third], ["The first sentence."])
    assert check(content).startswith(
        "Results Results The first sentence. Table III: without pre-training, or partly frozen How to read them "
        "Table III: without pre-training, or partly frozen Accuracy on the test split in %; p against MidiBERT + CP. "
        "melody printed clean "
        "RNN + CP 88.66 70.00 50.0 – 85.0 p 0.500 "
        "MidiBERT + CP 96.37 85.00 80.0 – 90.0 "
        "without pre-training 83.38 52.50 45.0 – 60.0 p 0.250 1 failed "
        "freeze BERT 92.50 failed "
        "freeze self-attention layers 92.93 – "
        "majority class 50.00 How to read them Mean over seeds"
    )
    best = (
        "Wilson 70.9 – 92.9; over pieces 80.0 – 90.0; over 2 seeds 21.5 – 100.0; macro-F1 84.2; -11.37 points to the "
        "paper; 40 scored in 4 pieces"
    )
    assert content.count(" best") == content.count(f'<td class="inner best" title="{best}">') == 1


def test_nothing_is_best_that_a_trivial_answer_equals() -> None:
    for correct, best in ((33, 0.85), (36, None)):
        line = replace(SKYLINE, name=TRAINING, correct=correct, detail={"melody": 10})
        (only,) = table.build(OUTCOMES, {}, [line], ("3",))
        assert only.best("clean", "melody") == (best and pytest.approx(best))
        assert page.to_html([only]).count(" best") == (best is not None)
        assert TRAINING in formats.to_text([only])


# ------------------------------------------------------------------------------------ findings


def test_the_verdict(third: ResultTable) -> None:
    # Scratch loses 4, 3, 4 and 2 notes by piece, 13 of 40. Sums of four draws: 8 or 9 in 5 of 256 (2.0 %), 10 in 14
    # more; 16 in 16 of 256. p is the table's.
    assert findings.verdict([third]) == [
        "Under protocol clean pre-training is worth 32.5 points [25.0, 40.0] of accuracy on melody "
        "(beyond chance, p 0.250 over 4 pieces).",
        "On melody the best row, MidiBERT + CP, has 85.0 % [80.0, 90.0]: above the highest trivial line "
        "(majority class, 50.0 %).",
    ]
    (first, _) = findings.verdict([third], "melody")
    assert first.startswith("Under protocol clean pre-training, that of the weights melody included, is worth 32.5 ")
    line = replace(SKYLINE, name=TRAINING, correct=37, detail={"melody": 10})
    first, second = findings.verdict(table.build(OUTCOMES[3:], {}, [line], ("3",)))
    assert first == "No task was learnt both with and without pre-training: this study does not say what it is worth."
    assert second.endswith(
        "RNN + CP, has 70.0 % [50.0, 85.0]: below the highest trivial line (majority class of training, 92.5 %)."
    )
    tasks = [*OUTCOMES, trial("scratch", (5, 5, 5, 5), task="velocity")]
    assert "; and on velocity the best row, scratch, has 50.0 % [" in findings.verdict(table.build(tasks, {}))[1]


def test_a_sweep_and_an_empty_study_have_no_verdict() -> None:
    draws = [replace(OUTCOMES[0], split="valid", metrics={"valid/accuracy": 0.8, "valid/f1": 0.5})]
    assert findings.verdict(table.build(draws, {})) == findings.verdict([]) == []


def test_what_the_order_of_notes_is_worth() -> None:
    # By piece MidiBERT loses 2, 2, 1 and 1 notes of 10: 6 of 40, and 4 or 8 in 1 of 16 draws each. The RNN loses none.
    outcomes = [
        trial("pretrained", (9, 9, 8, 8), protocol="paper"),
        trial("pretrained-by-pitch", (7, 7, 7, 7), protocol="paper"),
        trial("rnn", (6, 7, 8, 4), protocol="paper"),
        trial("rnn-by-pitch", (6, 7, 8, 4), protocol="paper"),
    ]
    assert findings.leaks(table.build(outcomes, {}, (), ("leak",))) == [
        "Under protocol paper the order of notes gives the melody away: MidiBERT scores 85.0 % with notes track by "
        "track and 70.0 % with notes by pitch, all else equal: the leak is worth 15.0 points [10.0, 20.0]; "
        "0.0 points [0.0, 0.0] for the RNN."
    ]


def test_what_songs_in_train_and_test_are_worth() -> None:
    # Whatever is drawn of the paper's split, 90 % are right; of the clean one 20, 22, ... 28 of 40, the ends in 1 of 16
    # draws each: 36 less 24, at least 36 less 28 and at most 36 less 20.
    outcomes = [
        trial("pretrained", (9, 9, 9, 9), task="emotion", protocol="paper"),
        trial("pretrained", (5, 7, 7, 5), task="emotion"),
    ]
    song = Baseline(
        protocol="paper", task="emotion", name="label of the song", correct=79, scored=107, detail={}, note="by clip"
    )
    assert findings.leaks(table.build(outcomes, {}, [song])) == [
        "Under protocol paper clips of one song stand in train and test: MidiBERT tells the emotion of 90.0 % of the "
        "test segments, and of 60.0 % where no song is in both (protocol clean, which repairs padding too): "
        "a difference of 30.0 points [20.0, 40.0]. Without any model: label of the song, 73.8 %."
    ]


def test_a_confusion_matrix_in_percent() -> None:
    # Means of the two seeds: 9, 0.5, 0.5 of 10; 0.5, 7.5, 2 of 10; 0.5, 2, 17.5 of 20.
    true, predicted, shares = plots.in_percent(OUTCOMES[:2])
    assert true == predicted == CLASSES
    assert shares.tolist() == [[90, 5, 5], [5, 75, 20], [2.5, 10, 87.5]]


# ------------------------------------------------------------------------------------ the page


@pytest.mark.slow
def test_the_report_of_a_study(tmp_path: Path) -> None:
    variants = ("pretrained", "scratch", "rnn", "freeze-backbone")
    config = tiny_study(
        tmp_path, study__tables=("1", "3"), study__variants=variants, study__protocols=("clean",), study__seeds=2
    )
    plan = make(config, locate)
    log = StudyLog(plan)
    done = {(item.variant, item.seed): item for item in OUTCOMES}
    for name, entry in plan.trials.items():
        trial, number = entry.trial, entry.trial.seed - 2020
        if known := done.get((trial.variant, number)):
            mine = replace(known, trial=trial.name, seed=trial.seed)
            log.complete(log.trial(name), mine, {PREDICTIONS: predictions(CLASSES)})
        elif reason := FAILED.get(replace(trial, seed=number)):
            run = log.trial(name)
            run.tag(failure=reason)
            run.finish("FAILED")
    log.parent.json([asdict(SKYLINE)], load.BASELINES)
    log.parent.json(table_one.table([ASAP, ASAP]), load.CORPORA)
    text = check(report.render(load.load(config, plan.key)))
    rows = [
        # 4 trials of half an hour on 2 devices
        "trials 4 finished, 2 failed device-hours 4.00",
        "RNN + CP 88.66 70.00 50.0 – 85.0 p 0.500 MidiBERT + CP 96.37 85.00 80.0 – 90.0 without pre-training 83.38",
        "MidiBERT + CP 3 clean melody 85.00 80.0 – 90.0 70.9 – 92.9 21.5 – 100.0 2 40 4 without pre-training",
        "RNN + CP 66.7 MidiBERT + CP 84.2 without pre-training 49.5 majority class 22.2",
        "no melody at all clean 75.00 0.00 0 0 10 30 skyline clean 75.00 78.54 50.00 5 5 5 25",
        "MidiBERT + CP clean 95.00 97.09 90.00 9 1 1 29",
        "MidiBERT + CP, clean melody bridge accompaniment melody 90 5 5 bridge 5 75 20 accompaniment 2 10 88",
        "asap paper 65 (65) 95.9 (95.9) 23.1 (23.0) 63 (63) 2.9 (2.9) 3.9",
        "4.000 h in all.",
        "RNN + CP 1.000 1,800 s MidiBERT + CP 2.000 3,600 s without pre-training 1.000 1,800 s all 4.000",
        "melody-scratch-clean-seed2022 loss is not finite",
    ]
    assert [row for row in rows if row not in text] == []
    assert text.count(f"asap: {table_one.NOTES['asap']}") == 1, "once for all rows of a corpus"
