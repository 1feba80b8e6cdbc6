"""Tokenize pieces in a child process, because a reader written in C++ may crash, hang or take all memory.

A `Sandbox` owns one child (`python -m midibert_ray.tokenizing.sandbox`), sends it the bytes of piece after piece
and takes token columns, or a reason, back. A child that a bad file kills is replaced, and the file gets a
reason.

The wire, both ways: 4 bytes length of a JSON header, the header, then the blobs whose sizes it names. No
pickles: what a malformed file makes of the child must not reach further than the child.

The child dies with its parent: it ends at the end of its input, and one that hangs in C++, where Python
cannot look after itself, is ended by the kernel's alarm clock.
"""

import argparse
import dataclasses
import functools
import importlib
import itertools
import json
import logging
import math
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

from midibert_ray.corpora.catalogue import Corpus, Piece, corpus
from midibert_ray.data.columns import COLUMNS
from midibert_ray.music.midi import MidiError
from midibert_ray.music.protocol import PROTOCOLS, Protocol
from midibert_ray.music.tokens import Tokens

logger = logging.getLogger(__name__)

MEMORY_LIMIT = 4 << 30
"""Address space of a child, bytes."""

TIME_LIMIT_S = 20.0
"""Wall time for one piece, seconds."""

HANDLER = "midibert_ray.corpora.catalogue:tokenize_piece"
"""What the child calls for a piece, as module:function."""

Handler = Callable[[Corpus, Piece, Sequence[bytes], Protocol], Tokens]

_START_LIMIT_S = 120.0  # importing the readers on a busy machine
_ALARM_MARGIN_S = 1  # the child's own alarm is for a child whose parent is gone
_AHEAD = 16  # pieces on their way to the child while it works on the first
_CHUNK = 1 << 18
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One piece to tokenize."""

    corpus: str
    piece: Piece
    protocol: Protocol
    contents: tuple[bytes, ...] = field(repr=False)
    """The bytes of `piece.files`."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of a piece: its columns, or the reason why there are none."""

    reason: str | None
    dropped: dict[str, int]
    """Notes left out, by reason."""

    columns: dict[str, bytes] = field(repr=False)
    """The bytes of the arrays in `columns.COLUMNS`; empty where there is a reason."""


class Sandbox:
    """Tokenizes pieces in a child process of its own, which is started on first use and then kept."""

    def __init__(
        self,
        *,
        handler: str = HANDLER,
        time_limit_s: float = TIME_LIMIT_S,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        """A sandbox whose child calls `handler`, with limits for one piece (seconds, bytes)."""
        self._arguments = [handler, str(time_limit_s), str(memory_limit)]
        self._time_limit_s, self._memory_limit = time_limit_s, memory_limit
        self._child: _Child | None = None

    def start(self) -> None:
        """Start the child if there is none, without waiting until it is ready."""
        if self._child is None:
            self._child = _Child(self._arguments)

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def tokenize(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """The answers to requests, in their order; requests are taken a few ahead of the answers.

        Raises:
            RuntimeError: if a child cannot be started at all. No file is to blame for that.
        """
        source = iter(requests)
        waiting: deque[bytes] = deque()
        try:
            while True:
                self.start()
                while len(waiting) < _AHEAD and (request := next(source, None)) is not None:
                    waiting.append(_pack_request(request))
                    self._living.send(waiting[-1])
                if not waiting:
                    return
                answer = self._answer()
                waiting.popleft()
                if self._child is None:
                    self.start()
                    for frame in waiting:
                        self._living.send(frame)
                yield answer
        finally:
            if waiting:  # left before its end: nobody must mistake these answers for others
                self.close()

    @property
    def _living(self) -> "_Child":
        if self._child is None:
            raise RuntimeError("the sandbox has no child")
        return self._child

    def _answer(self) -> Answer:
        """The answer to the oldest request; a child that fails to give one is buried."""
        child = self._living
        try:
            child.wait_until_ready()
            return _unpack_answer(*child.receive(self._time_limit_s))
        except (_ChildDiedError, TimeoutError) as error:
            status, complaint = child.kill()
            self._child = None
            if not child.ready:
                raise RuntimeError(f"the reader's process does not start ({status}): {complaint}") from error
            reason = self._reason(status, complaint, timed_out=isinstance(error, TimeoutError))
            logger.warning("%s %s", reason, complaint[-500:])
            return Answer(reason=reason, dropped={}, columns={})

    def _reason(self, status: int, complaint: str, *, timed_out: bool) -> str:
        """Why a child ended, from its exit status and what it wrote to stderr."""
        if timed_out or -status == signal.SIGALRM:
            return f"timed out after {self._time_limit_s:g} s"
        if "bad_alloc" in complaint or "MemoryError" in complaint:
            return _out_of_memory(self._memory_limit)
        if status < 0:
            return f"reader crashed: signal {-status}"
        return f"reader crashed: exit status {status}"


@functools.cache
def process_sandbox() -> Sandbox:
    """The one sandbox of this process: a Ray worker keeps its child over all of its tasks."""
    return Sandbox()


class _ChildDiedError(Exception):
    pass


class _Child:
    """The parent's end of one child: frames out, frames in, never blocked by both pipes being full."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "midibert_ray.tokenizing.sandbox", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            # the package may lie where only this process looks: Ray adds a job's folder to sys.path
            env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert self._process.stdin and self._process.stdout
        self._input, self._output = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._input, False)
        self._outgoing: deque[memoryview] = deque()
        self._incoming = bytearray()
        self.ready = False

    def send(self, frame: bytes) -> None:
        """Put a frame in the queue; it leaves while answers are awaited."""
        self._outgoing.append(memoryview(frame))

    def wait_until_ready(self) -> None:
        """Wait for the child's first frame, once: starting up is not the first piece's time."""
        if not self.ready:
            self.receive(_START_LIMIT_S)
            self.ready = True

    def receive(self, limit_s: float) -> tuple[dict[str, Any], list[bytes]]:
        """The next frame: header and blobs.

        Raises:
            TimeoutError: if it takes longer than `limit_s` seconds.
            _ChildDiedError: if the child ended before it was complete.
        """
        deadline = time.monotonic() + limit_s
        while (frame := self._take_frame()) is None:
            writing = [self._input] if self._outgoing else []
            # answers first: one that came while the parent was away is in time
            readable, writable, _ = select.select([self._output], writing, [], max(0.0, deadline - time.monotonic()))
            if readable:
                self._read()
            elif time.monotonic() >= deadline:
                raise TimeoutError
            if writable:
                self._write()
        return frame

    def kill(self) -> tuple[int, str]:
        """End the child; its exit status (negative: the signal that ended it) and its last words."""
        try:
            self._process.wait(timeout=0.2)  # one that is dying by itself keeps its own status
        except subprocess.TimeoutExpired:
            self._process.kill()
        status = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - 2000))
        complaint = self._stderr.read().decode(errors="replace").strip()
        self._stderr.close()
        return status, complaint

    def _read(self) -> None:
        chunk = os.read(self._output, _CHUNK)
        if not chunk:
            raise _ChildDiedError
        self._incoming += chunk

    def _write(self) -> None:
        try:
            written = os.write(self._input, self._outgoing[0][:_CHUNK])
        except BrokenPipeError:
            self._outgoing.clear()  # the child is dead, but what it answered before may still be read
            return
        rest = self._outgoing.popleft()[written:]
        if rest:
            self._outgoing.appendleft(rest)

    def _take_frame(self) -> tuple[dict[str, Any], list[bytes]] | None:
        if len(self._incoming) < _LENGTH.size:
            return None
        start = _LENGTH.size + _LENGTH.unpack_from(self._incoming)[0]
        if len(self._incoming) < start:
            return None
        header = json.loads(self._incoming[_LENGTH.size : start])
        end = start + sum(header["sizes"])
        if len(self._incoming) < end:
            return None
        blobs = _cut(bytes(self._incoming[start:end]), header["sizes"])
        del self._incoming[:end]
        return header, blobs


def _pack(header: dict[str, Any], blobs: Sequence[bytes]) -> bytes:
    head = json.dumps({**header, "sizes": [len(blob) for blob in blobs]}).encode()
    return b"".join((_LENGTH.pack(len(head)), head, *blobs))


def _cut(joined: bytes, sizes: Sequence[int]) -> list[bytes]:
    ends = np.cumsum([0, *sizes])
    return [joined[start:end] for start, end in itertools.pairwise(ends)]


def _pack_request(request: Request) -> bytes:
    piece = dataclasses.asdict(request.piece)
    protocol = {"name": request.protocol.name, "switched": request.protocol.switched()}
    header = {"corpus": request.corpus, "protocol": protocol, "piece": piece}
    return _pack(header, request.contents)


def _unpack_answer(header: dict[str, Any], blobs: Sequence[bytes]) -> Answer:
    columns = dict(zip(COLUMNS, blobs, strict=True)) if header["reason"] is None else {}
    return Answer(reason=header["reason"], dropped=header["dropped"], columns=columns)


def _out_of_memory(limit: int) -> str:
    return f"out of memory (limit {limit / 2**30:g} GiB)"


# ------------------------------------------------------------------------------------------- in the child


def main() -> None:
    """Answer requests from stdin until it ends."""
    parser = argparse.ArgumentParser(description="The child of a Sandbox; it is not for use by hand.")
    parser.add_argument("handler")
    parser.add_argument("time_limit_s", type=float)
    parser.add_argument("memory_limit", type=int)
    options = parser.parse_args()
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library that prints must not garble a frame
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
        module, _, function = options.handler.partition(":")
        handler: Handler = getattr(importlib.import_module(module), function)
        _limit(resource.RLIMIT_AS, options.memory_limit)
        _limit(resource.RLIMIT_CORE, 0)
        answers.write(_pack({}, []))
        answers.flush()
        while (request := _read_request(sys.stdin.buffer)) is not None:
            signal.alarm(math.ceil(options.time_limit_s) + _ALARM_MARGIN_S)
            frame = _respond(handler, request, options.memory_limit)
            signal.alarm(0)
            answers.write(frame)
            answers.flush()


def _limit(what: int, value: int) -> None:
    hard = resource.getrlimit(what)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


def _read_request(stream: IO[bytes]) -> Request | None:
    prefix = stream.read(_LENGTH.size)
    if len(prefix) < _LENGTH.size:
        return None
    header = json.loads(stream.read(_LENGTH.unpack(prefix)[0]))
    contents = [stream.read(size) for size in header["sizes"]]
    piece = Piece(**{**header["piece"], "files": tuple(header["piece"]["files"])})
    return Request(
        corpus=header["corpus"],
        piece=piece,
        protocol=PROTOCOLS[header["protocol"]["name"]].switch(**header["protocol"]["switched"]),
        contents=tuple(contents),
    )


def _respond(handler: Handler, request: Request, memory_limit: int) -> bytes:
    """The answer to one request; whatever goes wrong with a file is its reason."""
    dropped: dict[str, int] = {}
    try:
        tokens = handler(corpus(request.corpus), request.piece, request.contents, request.protocol)
        dropped = {reason: int(count) for reason, count in tokens.dropped.items() if count}
        if len(tokens.velocity):
            return _pack({"reason": None, "dropped": dropped}, _columns(tokens))
        reason = f"no notes left, dropped {dropped}" if dropped else "no notes"
    except MidiError as error:
        reason = str(error)
    except MemoryError:
        reason = _out_of_memory(memory_limit)
    except Exception as error:  # noqa: BLE001 - a reader may raise anything; the file is named beside it
        reason = f"{type(error).__name__}: {error}"
    return _pack({"reason": reason[:500], "dropped": {}}, [])


def _columns(tokens: Tokens) -> list[bytes]:
    arrays = {name: np.asarray(getattr(tokens, name)) for name in COLUMNS}
    notes = len(arrays["velocity"])
    for name, (_, width) in COLUMNS.items():
        if arrays[name].size != notes * width:
            raise ValueError(f"column {name} has {arrays[name].size} values for {notes} notes")
    return [arrays[name].astype(dtype, copy=False).tobytes() for name, (dtype, _) in COLUMNS.items()]


if __name__ == "__main__":
    main()
