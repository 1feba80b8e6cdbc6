"""Tokenize pieces in a child process, because a reader written in C++ may crash, hang or take all memory.

A `Sandbox` owns one child (`python -m midibert_ray.tokenizing.sandbox`), sends it the bytes of one piece at a time
and takes token columns, or a reason, back. A child that a bad file kills is replaced, and the file gets a reason.
Other rooms read files in it too: `Sandbox.ask` sends whatever their own handler understands.

The wire, both ways: a message with a JSON header, then as many messages of bytes as it says. No pickles: what a
malformed file makes of the child must not reach further than the child, which is also given nothing of this process's
environment that might be a secret.

The child dies with its parent: it ends when the wire is closed, and one that hangs in C++, where Python
cannot look after itself, is ended by the kernel's alarm clock.
"""

import contextlib
import dataclasses
import functools
import importlib
import json
import logging
import math
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import IO, Any, TypeVar

import numpy as np

from midibert_ray.corpora.catalogue import Corpus, corpus
from midibert_ray.corpora.labels import Piece
from midibert_ray.data.format import COLUMNS
from midibert_ray.music.midi import MidiError
from midibert_ray.music.protocol import PROTOCOLS, Protocol
from midibert_ray.music.smf import NoNotesError
from midibert_ray.music.tokens import Tokens

logger = logging.getLogger(__name__)

MEMORY_LIMIT = 4 << 30
"""Address space of a child, bytes."""
TIME_LIMIT_S = 20.0
"""Wall time for one piece, seconds."""
HANDLER = "midibert_ray.corpora.tokens:tokenize_piece"
"""The function that the child calls for a piece, as module:function."""

Handler = Callable[[Corpus, Piece, Sequence[bytes], Protocol], Tokens]
Message = tuple[dict[str, Any], Sequence[bytes]]
"""A JSON header, and blobs. A handler that is asked by `Sandbox.ask` takes both, and gives a message."""
Value = TypeVar("Value")

_START_LIMIT_S = 120.0  # importing the readers on a busy machine
_ALARM_MARGIN_S = 1  # the child's own alarm is for a child whose parent is gone
_OUT_OF_MEMORY = f"out of memory (limit {MEMORY_LIMIT / 2**30:g} GiB)"
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A piece to tokenize."""

    corpus: str
    piece: Piece
    protocol: Protocol
    contents: tuple[bytes, ...] = field(repr=False)
    """The bytes of `piece.files`."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The result of a piece: its columns, or the reason why there are none."""

    reason: str | None
    may_pass: bool = False
    """True where the reason lies with the storage: the next run tries again."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Notes left out, by reason."""
    remarks: dict[str, int] = field(default_factory=dict)
    """Remarks, counted; see `Tokens.remarks`."""
    columns: dict[str, bytes] = field(default_factory=dict, repr=False)
    """The bytes of the arrays in `format.COLUMNS`; empty where there is a reason."""


class Sandbox:
    """Tokenizes pieces in a child process of its own, which is started on first use and then kept."""

    def __init__(self, *, handler: str = HANDLER, time_limit_s: float = TIME_LIMIT_S) -> None:
        """A sandbox whose child calls `handler`, with a limit for one piece (seconds)."""
        self._handler, self._time_limit_s = handler, time_limit_s
        self._child: _Child | None = None

    def start(self) -> "_Child":
        """Start the child if there is none, without waiting until it is ready."""
        if self._child is None:
            self._child = _Child(self._handler, self._time_limit_s)
        return self._child

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def tokenize(self, request: Request) -> Answer:
        """The answer to a request; raises what `ask` raises."""
        answer = self.ask(_pack_request(request), _unpack_answer)
        return Answer(reason=answer) if isinstance(answer, str) else answer

    def ask(self, message: Message, unpack: Callable[[dict[str, Any], list[bytes]], Value]) -> Value | str:
        """The child's answer to a message as `unpack` reads it, or the reason why it has none.

        A child that fails to give an answer is buried, and so is one of whose answer `unpack` raises a ValueError, a
        KeyError or a TypeError. The header of an answer has the handler's own `reason`, None for none.

        Raises:
            RuntimeError: if a child cannot be started at all. No file is to blame for that.
        """
        child = self.start()
        try:
            child.wait_until_ready()
            child.send(_pack(*message))
            return unpack(*child.receive(self._time_limit_s))
        except (EOFError, OSError, ValueError, KeyError, TypeError) as error:  # it is dead, late, or talks nonsense
            status, stderr = child.kill()
            self._child = None
            if not child.ready:
                raise RuntimeError(f"the reader's process does not start ({status}): {stderr}") from error
            reason = self._reason(status, stderr, timed_out=isinstance(error, TimeoutError | BlockingIOError))
            logger.warning("%s %s", reason, stderr[-500:])
            return reason

    def _reason(self, status: int, stderr: str, *, timed_out: bool) -> str:
        """Why a child ended, from its exit status and what it wrote to stderr."""
        if timed_out or -status == signal.SIGALRM:
            return f"timed out after {self._time_limit_s:g} s"
        if "bad_alloc" in stderr or "MemoryError" in stderr:
            return _OUT_OF_MEMORY
        if status < 0:
            return f"reader crashed: signal {-status}"
        return f"reader crashed: exit status {status}"


@functools.cache
def process_sandbox() -> Sandbox:
    """The one sandbox of this process: a Ray worker keeps its child over all of its tasks."""
    return Sandbox()


class _Child:
    """The parent's end of one child."""

    def __init__(self, handler: str, time_limit_s: float) -> None:
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        ours, theirs = socket.socketpair()
        # A child that stops in the middle of a message keeps its parent for no longer than one that sends none.
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", math.ceil(time_limit_s), 0))
        words = [str(theirs.fileno()), handler, str(time_limit_s)]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "midibert_ray.tokenizing.sandbox", *words],
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,
                stderr=self._stderr,
                pass_fds=[theirs.fileno()],
                env=_environment(),
            )
        self._wire = Connection(ours.detach())
        self.ready = False

    def send(self, messages: Sequence[bytes]) -> None:
        for message in messages:
            self._wire.send_bytes(message)

    def wait_until_ready(self) -> None:
        """Wait for the child's first word, once: starting up is not the first piece's time."""
        if not self.ready:
            self.receive(_START_LIMIT_S)
            self.ready = True

    def receive(self, limit_s: float) -> tuple[dict[str, Any], list[bytes]]:
        """The next answer, header and blobs, within so many seconds.

        Raises:
            TimeoutError, BlockingIOError: if it takes longer.
            EOFError, OSError: if the child ended before it was complete.
            ValueError, KeyError, TypeError: if it is no answer.
        """
        deadline = time.monotonic() + limit_s

        def message() -> bytes:
            # looks at the wire first: an answer that came while the parent was away is in time
            if not self._wire.poll(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            return self._wire.recv_bytes(MEMORY_LIMIT)

        return _receive(message)

    def kill(self) -> tuple[int, str]:
        """End the child; its exit status (negative: the signal that ended it) and its last words."""
        try:
            self._process.wait(timeout=0.2)  # one that is dying by itself keeps its own status
        except subprocess.TimeoutExpired:
            self._process.kill()
        status = self._process.wait()
        self._wire.close()
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - 2000))
        stderr = self._stderr.read().decode(errors="replace").strip()
        self._stderr.close()
        return status, stderr


def _environment() -> dict[str, str]:
    """The part of this process's environment that a child needs; the rest may be keys and passwords."""
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    # the package may lie where only this process looks: Ray adds a job's folder to sys.path
    return {**kept, **threads, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _pack(header: dict[str, Any], blobs: Sequence[bytes]) -> list[bytes]:
    return [json.dumps({**header, "blobs": len(blobs)}).encode(), *blobs]


def _receive(message: Callable[[], bytes]) -> tuple[dict[str, Any], list[bytes]]:
    header = json.loads(message())
    return header, [message() for _ in range(header["blobs"])]


def _pack_request(request: Request) -> Message:
    protocol = {"name": request.protocol.name, "switched": request.protocol.switched()}
    header = {"corpus": request.corpus, "protocol": protocol, "piece": dataclasses.asdict(request.piece)}
    return header, request.contents


def _unpack_answer(header: dict[str, Any], blobs: Sequence[bytes]) -> Answer:
    columns = dict(zip(COLUMNS, blobs, strict=True)) if header["reason"] is None else {}
    return Answer(reason=header["reason"], dropped=header["dropped"], remarks=header["remarks"], columns=columns)


# ------------------------------------------------------------------------------------------- in the child


def main() -> None:
    """Answer requests until the parent's end of the wire is closed."""
    wire_number, handler_name, time_limit_s = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    module, _, function = handler_name.partition(":")
    handler = getattr(importlib.import_module(module), function)
    _limit(resource.RLIMIT_AS, MEMORY_LIMIT)
    _limit(resource.RLIMIT_CORE, 0)
    with Connection(int(wire_number)) as wire, contextlib.suppress(EOFError, ConnectionError):
        answer = _pack({}, [])
        while True:
            for message in answer:
                wire.send_bytes(message)
            header, blobs = _receive(wire.recv_bytes)
            signal.alarm(math.ceil(float(time_limit_s)) + _ALARM_MARGIN_S)
            answer = _respond(handler, header, blobs)
            signal.alarm(0)


def _limit(what: int, value: int) -> None:
    hard = resource.getrlimit(what)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


def _unpack_request(header: dict[str, Any], blobs: Sequence[bytes]) -> Request:
    lists = {name: tuple(header["piece"][name]) for name in ("files", "notes")}
    piece = Piece(**header["piece"] | lists)
    protocol = PROTOCOLS[header["protocol"]["name"]].switch(**header["protocol"]["switched"])
    return Request(corpus=header["corpus"], piece=piece, protocol=protocol, contents=tuple(blobs))


def _respond(handler: Callable[..., Any], header: dict[str, Any], blobs: list[bytes]) -> list[bytes]:
    """The answer to one message; whatever goes wrong with a file is its reason."""
    try:
        if "piece" in header:
            return _pack(*_tokenized(handler, _unpack_request(header, blobs)))
        answer, found = handler(header, blobs)
        return _pack({"reason": None, **answer}, found)
    except MidiError as error:
        reason = str(error)
    except MemoryError:
        reason = _OUT_OF_MEMORY
    except Exception as error:  # noqa: BLE001 - a reader may raise anything; the file is named beside it
        reason = f"the reader fails on it; please report this file ({type(error).__name__}: {error})"
    return _pack({"reason": reason[:500], "dropped": {}, "remarks": {}}, [])


def _tokenized(handler: Handler, request: Request) -> Message:
    tokens = handler(corpus(request.corpus), request.piece, request.contents, request.protocol)
    dropped = {reason: int(count) for reason, count in tokens.dropped.items() if count}
    remarks = {remark: int(count) for remark, count in tokens.remarks.items() if count}
    if not len(tokens.velocity):
        raise NoNotesError(dropped)
    return {"reason": None, "dropped": dropped, "remarks": remarks}, _columns(tokens)


def _columns(tokens: Tokens) -> list[bytes]:
    arrays = {name: np.asarray(getattr(tokens, name)) for name in COLUMNS}
    notes = len(arrays["velocity"])
    for name, (_, width) in COLUMNS.items():
        if arrays[name].size != notes * width:
            raise ValueError(f"column {name} has {arrays[name].size} values for {notes} notes")
    return [arrays[name].astype(dtype, copy=False).tobytes() for name, (dtype, _) in COLUMNS.items()]


if __name__ == "__main__":
    main()
