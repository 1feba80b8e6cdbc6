"""Malformed MIDI files: seeded mutations of good ones, and some made by hand."""

import struct
from collections.abc import Iterator, Sequence
from random import Random

LIMIT = 32 << 20


def mutated(originals: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Damage to a publisher's files: flipped bits, cuts, foreign bytes, repeated bytes, absurd numbers."""
    random = Random(seed)
    for _ in range(count):
        data = bytearray(random.choice(originals))
        for _ in range(random.randint(1, 4)):
            _damage(data, originals, random)
        yield bytes(data)


def _damage(data: bytearray, originals: Sequence[bytes], random: Random) -> None:
    at, size = random.randrange(len(data) + 1), random.choice((1, 1, 2, 4, 16, 200))
    match random.randrange(7):
        case 0:
            for _ in range(size):
                if data:
                    data[random.randrange(len(data))] = random.randrange(256)
        case 1:
            del data[at:]
        case 2:
            del data[at : at + size]
        case 3:
            data[at:at] = random.randbytes(size)
        case 4:
            other = random.choice(originals)
            data[at:at] = other[random.randrange(len(other)) :]
        case 5:
            data[at : at + size] = random.choice((b"\x00", b"\xff", b"\x80", b"\x7f")) * size
        case 6:
            head = random.randrange(min(len(data), 30) + 1)  # format, tracks, division, length of the first track
            data[head : head + 4] = struct.pack(">I", random.choice((0, 1, 2**31, 2**32 - 1, random.getrandbits(32))))


def _midi(*tracks: bytes, kind: int = 1, count: int | None = None, division: int = 480) -> bytes:
    header = struct.pack(">4sIHHH", b"MThd", 6, kind, len(tracks) if count is None else count, division)
    return header + b"".join(struct.pack(">4sI", b"MTrk", len(track)) + track for track in tracks)


_NOTE = b"\x00\x90\x3c\x40\x83\x60\x80\x3c\x00"
_END = b"\x00\xff\x2f\x00"

GOOD = {
    "upper.MID": _midi(_NOTE + _END),
    "Ünïcødé 音楽 🎹.mid": _midi(_NOTE + _END),
    "with space/deep/er.midi": _midi(_NOTE + _END),
    "format 0.mid": _midi(_NOTE + _END, kind=0),
    "pitches beyond the piano.mid": _midi(_NOTE + b"\x00\x90\x05\x40\x60\x80\x05\x00" + _END),
    "drums and three tempi.mid": _midi(
        b"\x00\xff\x51\x03\x07\xa1\x20\x60\xff\x51\x03\x03\x00\x00" + _END,
        b"\x00\x99\x26\x40\x60\x89\x26\x00" + _NOTE + _END,
    ),
}
"""Odd but readable: tokens come out."""

BAD = {
    "empty.mid": b"",
    "one byte.mid": b"M",
    "text.mid": b"this is no MIDI file\n" * 40,
    "picture.mid": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8,
    "header only.mid": _midi(count=1),
    "no tracks.mid": _midi(),
    "zeros.mid": bytes(100_000),
    "no notes.mid": _midi(_END),
    "all pitches beyond the piano.mid": _midi(b"\x00\x90\x05\x40\x60\x80\x05\x00" + _END),
    "division zero.mid": _midi(_NOTE + _END, division=0),
    "promises 4 GiB.mid": _midi() + b"MTrk\xff\xff\xff\xff" + _NOTE,
    "endless number.mid": _midi(b"\xff" * 5000),
    "data without status.mid": _midi(b"\x00\x3c\x40" * 100),
}
"""Nothing can be read from them: quarantined, with a reason."""

STRANGE = {
    "65535 tracks promised.mid": _midi(_NOTE + _END, count=65535),
    "one track cut.mid": _midi(_NOTE + _END)[:-3],
    "smpte.mid": _midi(_NOTE + _END, division=0xE728),
    "format 2.mid": _midi(_NOTE + _END, kind=2),
    "far apart.mid": _midi((b"\xff\xff\xff\x7f\x90\x3c\x40\xff\xff\xff\x7f\x80\x3c\x00") * 30 + _END),
    "tempo zero.mid": _midi(b"\x00\xff\x51\x03\x00\x00\x00" + _NOTE + _END),
    "no end of track.mid": _midi(_NOTE),
    "note never ends.mid": _midi(b"\x00\x90\x3c\x40" + _END),
    "ten thousand notes at once.mid": _midi(b"\x00\x90\x3c\x40" * 10_000 + _NOTE + _END),
    "riff.mid": b"RIFF\x40\x00\x00\x00RMIDdata\x30\x00\x00\x00" + _midi(_NOTE + _END),
}
"""Read or quarantined, as the reader sees fit; but never more than that."""
