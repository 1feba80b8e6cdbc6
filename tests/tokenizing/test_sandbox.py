"""A bad file costs a reason, never the process, its memory or its time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from midibert_ray.corpora import catalogue as corpora
from midibert_ray.corpora.labels import Piece, list_pieces
from midibert_ray.corpora.tokens import tokenize_piece
from midibert_ray.data.format import COLUMNS
from midibert_ray.music.protocol import CLEAN, PROTOCOLS, Protocol
from midibert_ray.tokenizing.sandbox import Request, Sandbox
from tests.tokenizing.malformed import BAD, GOOD, STRANGE, mutated

ROOT = Path(__file__).parents[2]
HANDLERS = '''
import ctypes, os, signal, sys, time
import numpy as np
from midibert_ray.corpora.tokens import tokenize_piece

def act(corpus, piece, contents, protocol):
    """What the file says, for example b"segfault"."""
    word = contents[0][:9].rstrip()
    if word == b"segfault":
        ctypes.string_at(0)
    if word == b"kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == b"exit":
        os._exit(3)
    if word == b"hang":
        time.sleep(60)
    if word == b"spin":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        while True:
            pass
    if word == b"allocate":
        np.ones(1 << 34, np.uint8)
    if word == b"bad_alloc":
        print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr, flush=True)
        os.abort()
    if word == b"half":
        header = len(b'{"reason": null, "dropped": {}, "blobs": 4}') + 9
        os.write(int(sys.argv[1]), header.to_bytes(4, "big") + b'{"reason"')
        time.sleep(60)
    if word == b"nonsense":
        os.write(int(sys.argv[1]), (9).to_bytes(4, "big") + b"nonsense!")
        time.sleep(60)
    if word == b"environ":
        raise KeyError(sorted(os.environ))
    if word == b"raise":
        raise KeyError("no such\\nthing")
    if word == b"print":
        print("noise " * 100_000)
        os.write(1, b"more noise")
        return tokenize_piece(corpus, piece, contents[1:], protocol)
    return tokenize_piece(corpus, piece, contents, protocol)
'''


def request(content: bytes, *more: bytes, corpus: str = "folder:/nowhere") -> Request:
    piece = Piece(piece="x.mid", files=("x.mid",), split="pretrain", label=None)
    return Request(corpus=corpus, piece=piece, protocol=CLEAN, contents=(content, *more))


@pytest.fixture
def act(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox in which a file's words become deeds."""
    (tmp_path / "deeds.py").write_text(HANDLERS)
    monkeypatch.syspath_prepend(tmp_path)
    sandbox = Sandbox(handler="deeds:act", time_limit_s=1.5)
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox()
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="module")
def sample() -> list[tuple[Piece, tuple[bytes, ...]]]:
    corpus = corpora.corpus("sample")
    folder = Path(corpus.location(""))
    return [
        (piece, tuple((folder / file).read_bytes() for file in piece.files)) for piece in list_pieces(corpus, {}, CLEAN)
    ]


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_the_child_gives_what_the_parent_would(sandbox: Sandbox, sample: list, protocol: Protocol) -> None:
    for piece, contents in sample:
        answer = sandbox.tokenize(Request(corpus="sample", piece=piece, protocol=protocol, contents=contents))
        tokens = tokenize_piece(corpora.corpus("sample"), piece, contents, protocol)
        assert answer.reason is None
        assert answer.dropped == {reason: count for reason, count in tokens.dropped.items() if count}
        for name, (dtype, width) in COLUMNS.items():
            values = np.frombuffer(answer.columns[name], dtype).reshape((-1, width) if width > 1 else -1)
            np.testing.assert_array_equal(values, getattr(tokens, name))


@pytest.mark.slow
def test_what_kills_a_child_is_the_reason_and_the_rest_goes_on(act: Sandbox) -> None:
    good = GOOD["upper.MID"]
    deeds = {
        b"segfault": "reader crashed: signal 11",
        b"kill": "reader crashed: signal 9",
        b"exit": "reader crashed: exit status 3",
        b"hang": "timed out after 1.5 s",
        b"spin": "timed out after 1.5 s",
        b"allocate": "out of memory (limit 4 GiB)",
        b"bad_alloc": "out of memory (limit 4 GiB)",
        b"raise": "the reader fails on it; please report this file (KeyError: 'no such\\nthing')",
    }
    requests = [request(content) for deed in deeds for content in (deed, good)]
    answers = [act.tokenize(request).reason for request in requests]
    assert answers[0::2] == list(deeds.values())
    assert answers[1::2] == [None] * len(deeds)


@pytest.mark.parametrize(
    ("word", "reason"),
    [pytest.param(b"half", "timed out after 1.5 s", marks=pytest.mark.slow), (b"nonsense", "signal 9")],
)
def test_a_child_that_garbles_its_answer_does_not_reach_further(act: Sandbox, word: bytes, reason: str) -> None:
    bad, good = act.tokenize(request(word)), act.tokenize(request(GOOD["upper.MID"]))
    assert bad.reason and reason in bad.reason
    assert good.reason is None


def test_the_child_has_nothing_of_the_environment_that_may_be_a_secret(
    act: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "PASSWORD_OF_MY_OWN"):
        monkeypatch.setenv(name, "planted")
    answer = act.tokenize(request(b"environ"))
    assert answer.reason and "'PATH'" in answer.reason and "'PYTHONPATH'" in answer.reason
    assert not [
        word for word in ("AWS", "MLFLOW", "PASSWORD", "HOME") if word in answer.reason.replace("PYTHONHOME", "")
    ]


@pytest.mark.slow
def test_two_crashes_in_a_row_are_blamed_on_the_right_files(act: Sandbox) -> None:
    words = [b"segfault", b"segfault", GOOD["upper.MID"], b"exit", b"kill", b"kill"]
    reasons = [act.tokenize(request(word)).reason for word in words]
    assert [reason and reason.rpartition(" ")[2] for reason in reasons] == ["11", "11", None, "3", "9", "9"]


def test_a_library_that_prints_does_not_garble_the_answers(act: Sandbox) -> None:
    good = GOOD["upper.MID"]
    assert [act.tokenize(asked).reason for asked in (request(b"print", good), request(good))] == [None, None]


def test_large_questions_and_answers_do_not_block(sandbox: Sandbox) -> None:
    """A megabyte each: more than the wire holds."""
    note = b"\x00\x90\x3c\x40\x01\x80\x3c\x00"
    track = note * 120_000 + b"\x00\xff\x2f\x00"
    big = GOOD["format 0.mid"][:14] + b"MTrk" + len(track).to_bytes(4, "big") + track
    assert {len(sandbox.tokenize(request(big)).columns["velocity"]) for _ in range(2)} == {120_000}


def test_a_child_that_cannot_start_is_no_fault_of_a_file() -> None:
    with pytest.raises(RuntimeError, match=r"does not start[\s\S]*no_such_module"):
        Sandbox(handler="no_such_module:f").tokenize(request(b""))


@pytest.mark.slow
@pytest.mark.parametrize("word", ["idle", "spin"])
def test_the_child_dies_with_its_parent(tmp_path: Path, word: str) -> None:
    """An idle one sees the end of its input; one that hangs is ended by its alarm."""
    (tmp_path / "deeds.py").write_text(HANDLERS)
    parent = f"""
import os, sys, threading
sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]
from midibert_ray.tokenizing.sandbox import Sandbox
from tests.tokenizing.test_sandbox import request
sandbox = Sandbox(handler="deeds:act", time_limit_s=1)
sandbox.tokenize(request(b"idle"))
print(sandbox._child._process.pid, flush=True)
threading.Timer(0.3, lambda: os.kill(os.getpid(), 9)).start()
sandbox.tokenize(request({word.encode()!r}))
threading.Event().wait()
"""
    result = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert _ends(int(result.stdout))


def _ends(pid: int, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_files_made_by_hand(sandbox: Sandbox) -> None:
    def reasons(files: dict[str, bytes]) -> dict[str, str | None]:
        return {name: sandbox.tokenize(request(content)).reason for name, content in files.items()}

    assert reasons(GOOD) == dict.fromkeys(GOOD)
    assert [name for name, reason in reasons(BAD).items() if not reason] == []
    assert len(reasons(STRANGE)) == len(STRANGE)


@pytest.mark.slow
def test_mutated_files(sandbox: Sandbox, sample: list) -> None:
    """500 damaged files: each has tokens or a reason, and good ones in between come out as they should."""
    originals = [contents[0] for _, contents in sample]
    expected = [sandbox.tokenize(request(original)).columns for original in originals]
    files = list(mutated(originals, 500, seed=1))
    requests = [request(content) for i, content in enumerate(files) for content in (content, originals[i % 32])]
    answers = [sandbox.tokenize(request) for request in requests]
    assert all((answer.reason is None) == bool(answer.columns) for answer in answers)
    assert all(answer.columns == expected[i % 32] for i, answer in enumerate(answers[1::2]))
    assert sum(answer.reason is not None for answer in answers[0::2]) > 50


@pytest.mark.slow
@pytest.mark.parametrize(
    "notes",
    [b"\x00\x90\x3c\x40\x01\x3c\x00" + b"\x00\x3c\x40\x01\x3c\x00" * 5_000_000, b"\x00\x90\x3c\x40" * 7_500_000],
    ids=["one after the other", "never released"],
)
def test_a_file_with_millions_of_notes_is_refused_while_it_is_read(sandbox: Sandbox, notes: bytes) -> None:
    """31 MB: well before the limits of time and memory."""
    assert sandbox.tokenize(request(GOOD["upper.MID"])).reason is None
    status = Path(f"/proc/{sandbox.start()._process.pid}/status")
    answer = sandbox.tokenize(request(GOOD["format 0.mid"][:14] + b"MTrk" + len(notes).to_bytes(4, "big") + notes))
    assert answer.reason == "more than 1,000,000 notes: no piece of music has so many"
    (peak,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 700 << 10, "KiB"


def test_remarks_come_back_with_the_tokens(sandbox: Sandbox) -> None:
    note = b"\x00\x90\x3c\x40\x3c\x80\x3c\x00\x4f\xff\x01\x00"
    track = note * 80 + b"\x00\xff\x2f\x00"
    answer = sandbox.tokenize(request(GOOD["upper.MID"][:14] + b"MTrk" + len(track).to_bytes(4, "big") + track))
    assert (answer.reason, answer.remarks) == (None, {"pieces off the grid": 1})
