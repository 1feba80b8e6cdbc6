"""The ids of the two token representations (paper §III-A), with the numbers of the authors' dictionaries.

CP (compound words): a super token is four ids, one of each token type. REMI: one flat table. Both count
pitches from MIDI 22 to 107 and durations in thirty-seconds, 1 to 64. PAD and MASK are the last two ids of a
table.

`vocabulary.json` beside this file holds both for other tools, with the digest that token stores name;
`vocabularies_json` makes it, and a test keeps it so.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

FAMILIES = ("Bar", "Position", "Pitch", "Duration")
"""The token types, in the order of a super token's columns."""

PITCH_LOW, PITCH_HIGH = 22, 107
"""The lowest and highest MIDI pitch that has an id."""

POSITIONS = 16
"""Sub-beats (sixteenths) in a bar."""

DURATIONS = 64
"""Duration index d stands for d + 1 thirty-seconds: 0 is a 32nd, 63 two bars."""

PITCHES = PITCH_HIGH - PITCH_LOW + 1

BAR_NEW, BAR_CONTINUE = 0, 1
"""Bar ids of CP: a bar's first note, and every other."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Names of ids."""

    name: str
    families: dict[str, tuple[str, ...]]
    """Token type -> names of its ids, in their order. CP has those of `FAMILIES`, REMI a single one, "Token"."""
    pad: tuple[int, ...]
    """Id of PAD in every family."""
    mask: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Ids in each family, PAD and MASK included."""
        return tuple(len(names) for names in self.families.values())

    def to_json(self) -> str:
        """The vocabulary as JSON text, stable to the byte."""
        return json.dumps(asdict(self), indent=1)

    def digest(self) -> str:
        """sha256 (hex) of `to_json`: two vocabularies with one digest give every id the same meaning."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


_POSITION = tuple(f"Position {k}/{POSITIONS}" for k in range(1, POSITIONS + 1))
_PITCH = tuple(f"Pitch {value}" for value in range(PITCH_LOW, PITCH_HIGH + 1))
_DURATION = tuple(f"Duration {value}" for value in range(DURATIONS))

CP = Vocabulary(
    name="cp",
    families={
        "Bar": ("Bar New", "Bar Continue", "Bar PAD", "Bar MASK"),
        "Position": (*_POSITION, "Position PAD", "Position MASK"),
        "Pitch": (*_PITCH, "Pitch PAD", "Pitch MASK"),
        "Duration": (*_DURATION, "Duration PAD", "Duration MASK"),
    },
    pad=(2, 16, 86, 64),
    mask=(3, 17, 87, 65),
)
"""Compound words: ids of a super token (Bar, Position, Pitch, Duration)."""

REMI = Vocabulary(
    name="remi",
    families={"Token": ("Bar", *_POSITION, *_PITCH, *_DURATION, "PAD", "MASK")},
    pad=(167,),
    mask=(168,),
)
"""REMI: a bar's Bar token, then Position, Pitch and Duration of every note."""

CP_PAD = CP.pad

REMI_BAR = 0
REMI_POSITION = 1
"""Id of sub-beat 0; the ids of the others follow."""
REMI_PITCH = REMI_POSITION + POSITIONS
"""Id of pitch `PITCH_LOW`."""
REMI_DURATION = REMI_PITCH + PITCHES
"""Id of duration index 0."""
REMI_PAD = REMI.pad[0]


def vocabulary_digest() -> str:
    """sha256 (hex) over both vocabularies; token stores and checkpoints hold it beside their ids."""
    return hashlib.sha256((CP.digest() + REMI.digest()).encode()).hexdigest()


def vocabularies_json() -> str:
    """Both vocabularies and `vocabulary_digest` as JSON text, stable to the byte."""
    tables = {vocabulary.name: json.loads(vocabulary.to_json()) for vocabulary in (CP, REMI)}
    return json.dumps({"digest": vocabulary_digest(), **tables}, indent=1) + "\n"
