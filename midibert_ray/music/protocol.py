"""All that the authors' code and ours do differently, as two values: `PAPER` repeats theirs, `CLEAN` repairs it.

Every branch on a protocol asks one field of a `Protocol`, so that each difference can be measured alone:
`PAPER.switch(order="pitch")` is the paper with one repair.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_origin

ProtocolName = Literal["paper", "clean"]


def _read_by(section: str) -> Any:
    """A field without a default; the section of the settings beside which it counts as part of a result's identity."""
    return field(metadata={"section": section})


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One answer to every question on which the two protocols differ."""

    name: ProtocolName
    """The protocol that it is, or is made from by `switch`."""

    order: Literal["corpus", "track", "pitch"] = _read_by("tokens")
    """Order of the notes of one onset: `corpus`, as its published arrays have it (track by track, which gives the
    melody away; ASAP with all tracks merged); `track`, whatever the corpus; `pitch`, which tells nothing of tracks."""

    one_onset: Literal["tick", "sub-beat"] = _read_by("tokens")
    """What counts as one onset where notes are ordered by track: one tick of the file, or one sub-beat of the grid."""

    ticks_per_beat: Literal["480", "file"] = _read_by("tokens")
    """Ticks of a beat: 480 whatever the file says, or what it says."""

    drops_drums: bool = _read_by("tokens")
    """Whether drums are dropped and counted; else they are notes like others."""

    shifts_last_onset: bool = _read_by("tokens")
    """Whether the grid ends before a piece's last onset, so that its notes move one sub-beat early if they lie on the
    grid."""

    emopia_split: Literal["clip", "song"] = _read_by("tokens")
    """What is divided over EMOPIA's splits: clips, so that one song is in several of them, or songs."""

    masks_padding: bool = _read_by("mask")
    """Whether padding is masked and scored in pre-training: positions are then chosen from the whole segment."""

    mask_shares: Literal["exact", "drawn"] = _read_by("mask")
    """Chosen positions that become MASK, random or stay: exact shares of each segment, or drawn one by one."""

    random_ids: Literal["all", "real"] = _read_by("mask")
    """What random ids are drawn from: all of a token type, PAD and MASK included, or all but these two."""

    attends_masked_padding: bool = _read_by("mask")
    """Whether CP is attended to in pre-training wherever the masked Bar id is not PAD: to padding that was masked, and
    not to a note whose Bar became PAD at random. Else, and in REMI either way, to the real tokens and nothing else."""

    validates_by: Literal["segment", "piece"] = _read_by("pretrain")
    """What is held out from pre-training: segments, so that a piece may stand on both sides, or pieces."""

    pretrains_on_test: bool = _read_by("pretrain")
    """Whether the test pieces of the downstream tasks are in pre-training."""

    redraws_valid_masks: bool = _read_by("pretrain")
    """Whether every validation of pre-training has new masks; else all have the same, and epochs can be compared."""

    judged_by: Literal["accuracy", "loss"] = _read_by("pretrain")
    """What a validation of pre-training is judged by: accuracy, as in the authors' code, or loss, as in the paper."""

    adamw: Literal["authors", "torch"] = _read_by("optimizer")
    """AdamW as the authors' library computed it, or as torch does."""

    padding_class: bool = _read_by("finetune")
    """Whether note-level tasks have padding as a class of its own, which a model may choose, and then is wrong."""

    attends_labelled: bool = _read_by("finetune")
    """Whether note-level tasks attend to labelled positions alone (REMI: Pitch tokens); else to all real tokens."""

    attends_padding: bool = _read_by("finetune")
    """Whether sequence-level tasks attend to padding, and pool over it."""

    drops_short_rows: bool = _read_by("finetune")
    """Whether the composer task leaves out a piece's last segment where it is less than half full."""

    rnn_reads_padding: bool = _read_by("rnn")
    """Whether the recurrent baselines read padding like notes."""

    rnn_returns_to_best: bool = _read_by("rnn")
    """Whether a recurrent baseline goes back to its best weights when its rate falls."""

    named: tuple[str, ...] = ()
    """Fields that `switch` has set; they stand in the names of results, even where the value is the protocol's own."""

    def switch(self, **changes: object) -> "Protocol":
        """The protocol with some fields set.

        Raises:
            ValueError: an unknown field, a value that it cannot have, or one that contradicts another field.
        """
        for name, value in changes.items():
            if name not in CHOICES:
                raise ValueError(f"{name} is no field of a protocol; allowed: {', '.join(CHOICES)}")
            if value not in CHOICES[name]:
                raise ValueError(f"{name}={value!r} is not possible; allowed: {', '.join(map(str, CHOICES[name]))}")
        made: Protocol = replace(self, named=tuple(sorted({*self.named, *changes})), **changes)  # type: ignore[arg-type]
        if "one_onset" in made.named and (made.order, made.one_onset) == ("pitch", "tick"):
            raise ValueError("one_onset='tick' is not possible with order='pitch', as notes are ordered on the grid")
        return made

    def switched(self, *sections: str) -> dict[str, Any]:
        """Fields that `switch` has set, with their values; with sections, those that these read."""
        known = {item.name: item.metadata.get("section") for item in fields(self)}
        return {name: getattr(self, name) for name in self.named if not sections or known[name] in sections}

    def describe(self) -> str:
        """The name, and what was switched: `paper, order=pitch`."""
        return ", ".join([self.name, *(f"{name}={value}" for name, value in self.switched().items())])

    @property
    def packs_pretraining(self) -> bool:
        """Whether segments may share rows in pre-training: only where nothing is asked of padding."""
        return not (self.masks_padding or self.attends_masked_padding)

    def packs_task(self, level: str) -> bool:
        """Whether segments may share rows in tasks of a level: where real tokens alone are attended, and all of them."""
        return not (self.attends_labelled if level == "note" else self.attends_padding)


CHOICES: Mapping[str, tuple[object, ...]] = {
    item.name: get_args(item.type) if get_origin(item.type) is Literal else (True, False)
    for item in fields(Protocol)
    if item.metadata
}
"""Fields that can be switched, and their values."""

PAPER = Protocol(
    name="paper",
    order="corpus",
    one_onset="tick",
    ticks_per_beat="480",
    drops_drums=False,
    shifts_last_onset=True,
    emopia_split="clip",
    masks_padding=True,
    mask_shares="exact",
    random_ids="all",
    attends_masked_padding=True,
    validates_by="segment",
    pretrains_on_test=True,
    redraws_valid_masks=True,
    judged_by="accuracy",
    adamw="authors",
    padding_class=True,
    attends_labelled=True,
    attends_padding=True,
    drops_short_rows=True,
    rnn_reads_padding=True,
    rnn_returns_to_best=False,
)
"""The authors' code."""

CLEAN = Protocol(
    name="clean",
    order="pitch",
    one_onset="sub-beat",
    ticks_per_beat="file",
    drops_drums=True,
    shifts_last_onset=False,
    emopia_split="song",
    masks_padding=False,
    mask_shares="drawn",
    random_ids="real",
    attends_masked_padding=False,
    validates_by="piece",
    pretrains_on_test=False,
    redraws_valid_masks=False,
    judged_by="loss",
    adamw="torch",
    padding_class=False,
    attends_labelled=False,
    attends_padding=False,
    drops_short_rows=False,
    rnn_reads_padding=False,
    rnn_returns_to_best=True,
)
"""Each of these repaired; the default for a user's own work."""

PROTOCOLS: Mapping[str, Protocol] = {protocol.name: protocol for protocol in (PAPER, CLEAN)}
