"""The benchmark scripts can be started, and RESULTS.md has a place for what they find; nothing is measured."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import harness

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "benchmarks"
BENCHMARKS = (
    *("pretrain_step", "packing", "overhead", "scaling", "study", "start", "tokenizing", "scale", "annotate", "gpu"),
    *("gpu_study", "melody", "roofline"),
)
PEERS = ("peer_authors", "peer_melody", "peer_miditok")
HELPERS = ("__init__", "harness", "overhead_sides", "plain", "products", "stages", "steps")
SECTIONS = (
    *("pretrain_step 4x256", "pretrain_step 4x256 memory", "pretrain_step 12x768", "packing", "overhead", "scaling"),
    *("scaling nodes", "study"),
    *("start demo", "start trial", "start processes", "start driver", "tokenize", "scale"),
    *("annotate 4x256", "annotate 4x256 kernels", "annotate 12x768", "annotate 12x768 kernels", "gpu", "roofline"),
    *("gpu study", "melody", "melody precisions"),
)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_imports_and_explains_itself(name: str) -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"python benchmarks/{name}.py" in done.stdout
    assert "--write" in done.stdout


def test_every_file_is_a_benchmark_or_helps_one() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*BENCHMARKS, *PEERS, *HELPERS}


@pytest.mark.parametrize("name", (*BENCHMARKS, *PEERS))
def test_results_name_every_script(name: str) -> None:
    assert f"[`{name}.py`]({name}.py)" in harness.RESULTS.read_text(encoding="utf-8")


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_is_replaced_and_nothing_else(section: str, tmp_path: Path) -> None:
    before = harness.RESULTS.read_text(encoding="utf-8")
    copy = tmp_path / "RESULTS.md"
    copy.write_text(before, encoding="utf-8")
    harness.write_section(copy, section, "new")
    begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    head, tail = before.split(begin)[0], before.split(end)[1]
    assert copy.read_text(encoding="utf-8") == f"{head}{begin}\nnew\n{end}{tail}"
    assert list(tmp_path.iterdir()) == [copy]


def test_a_file_without_the_section_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.md"
    other.write_text("nothing", encoding="utf-8")
    with pytest.raises(ValueError, match="no section gpu"):
        harness.write_section(other, "gpu", "new")
    assert other.read_text(encoding="utf-8") == "nothing"


def test_published_rows_carry_machine_versions_and_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "RESULTS.md"
    copy.write_text(harness.RESULTS.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [str(FOLDER / "gpu.py"), "--write", "--results", str(copy)])
    rows = harness.table(("what", "value"), [("rate", "1"), ("longer name", "20")])
    options = argparse.Namespace(write=True, results=copy)
    harness.publish("gpu", rows, options, hardware="one chip", software="torch 1")
    written = copy.read_text(encoding="utf-8")
    assert ", on one chip\n* torch 1\n* `python benchmarks/gpu.py --write --results PATH`\n\n" + rows in written
    assert capsys.readouterr().out.endswith(rows + "\n")
    with pytest.raises(ValueError, match="no section another"):
        harness.publish("another", rows, options, hardware="one chip", software="torch 1")
    assert capsys.readouterr().out.endswith(rows + "\n")  # what took its time is not lost


def test_tables_are_aligned() -> None:
    assert harness.table(("what", "value"), [("rate", "1"), ("longer name", "20")]).splitlines() == [
        "| what        | value |",
        "| ----------- | ----: |",
        "| rate        |     1 |",
        "| longer name |    20 |",
    ]


def test_a_worker_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)ended with 1:.*ValueError: broken"):
        harness.measure([sys.executable, "-c", "raise ValueError('broken')"])
    assert harness.measure([sys.executable, "-c", "print('progress'); print([1.5])"]) == [1.5]


def test_half_an_hour_of_a_gpu_is_rehearsed_and_not_done_twice(tmp_path: Path) -> None:
    out, work = tmp_path / "study", tmp_path / "study.work"

    def rehearsed() -> dict[str, int]:
        command = [sys.executable, FOLDER / "gpu_study.py", "--out", out, "--rehearse", "--minutes", "0.1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        results = (out / "results.md").read_text(encoding="utf-8")
        assert "| masks, GPU = CPU " in results and "| MidiBERT + CP " in results and "(paper 96.37)" in results
        assert len(list(out.glob("*.npz"))) == 16
        return {path.stem: path.stat().st_mtime_ns for path in work.glob("*.json")}

    first = rehearsed()
    assert len(first) == 4 + 16, "parity, speed, epochs and pre-training; four tasks by four variants"
    (work / "emotion-scratch.json").unlink()
    second = rehearsed()
    assert {name for name, when in second.items() if when != first[name]} == {"emotion-scratch"}
