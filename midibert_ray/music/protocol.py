"""All that the authors' code and ours do differently, as two values: `PAPER` repeats theirs, `CLEAN` repairs it.

Every branch on a protocol asks one field of a `Protocol`, so that each difference can be measured alone:
`PAPER.switch(order="pitch")` is the paper with one repair.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_origin

ProtocolName = Literal["paper", "clean"]


def _differs(section: str, *, paper: object, clean: object) -> Any:
    """A field with its two values, and the section of the settings that reads it: results are named by both."""
    return field(metadata={"section": section, "paper": paper, "clean": clean})


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A value for each difference between the two protocols. A flag's docstring tells its meaning where it is true."""

    name: ProtocolName
    """The protocol that it is, or is made from by `switch`."""
    order: Literal["corpus", "track", "pitch"] = _differs("tokens", paper="corpus", clean="pitch")
    """Order of the notes of one onset: `corpus`, as its published arrays have it (track by track, which gives the
    melody away; ASAP with all tracks merged); `track`, whatever the corpus; `pitch`, which tells nothing of tracks."""
    one_onset: Literal["tick", "sub-beat"] = _differs("tokens", paper="tick", clean="sub-beat")
    """Notes ordered by track have one onset if they share a tick of the file, or a sub-beat of the grid."""
    ticks_per_beat: Literal["480", "file"] = _differs("tokens", paper="480", clean="file")
    """Ticks of a beat: 480 in any file, or the number in its header."""
    bars: Literal["4/4", "corpus", "file"] = _differs("tokens", paper="4/4", clean="corpus")
    """Where bars begin: `4/4`, at every whole note from tick 0; `file`, as the file's time signatures say (see
    `music.metre`); `corpus`, likewise but for the paper's five, which were chosen as 4/4 and are read so."""
    keeps_unreleased: bool = _differs("tokens", paper=False, clean=True)
    """Notes that are never ended last to the end of their track; else they are dropped and counted."""
    drops_drums: bool = _differs("tokens", paper=False, clean=True)
    """Drums are dropped and counted; else they are notes like others."""
    shifts_last_onset: bool = _differs("tokens", paper=True, clean=False)
    """The grid ends before a piece's last onset, so that notes there move a sub-beat early if they lie on the grid."""
    emopia_split: Literal["clip", "song"] = _differs("tokens", paper="clip", clean="song")
    """EMOPIA's splits divide clips, so that one song is in several of them, or songs."""
    masks_padding: bool = _differs("mask", paper=True, clean=False)
    """Padding is masked and scored in pre-training, as positions are chosen from the whole segment."""
    mask_shares: Literal["exact", "drawn"] = _differs("mask", paper="exact", clean="drawn")
    """Chosen positions that become MASK, random or stay: exact shares of each segment, or drawn one by one."""
    random_ids: Literal["all", "real"] = _differs("mask", paper="all", clean="real")
    """Random ids are drawn from all of a token type, PAD and MASK included, or from all but these two."""
    attends_masked_padding: bool = _differs("mask", paper=True, clean=False)
    """Pre-training on CP attends wherever the masked Bar id is not PAD: to padding that was masked, and not to a note
    whose Bar became PAD at random. Else, and on REMI either way, it attends to the real tokens and nothing else."""
    validates_by: Literal["segment", "piece"] = _differs("pretrain", paper="segment", clean="piece")
    """Segments are held out from pre-training, so that a piece may stand on both sides, or pieces."""
    pretrains_on_test: bool = _differs("pretrain", paper=True, clean=False)
    """Pre-training sees the test pieces of the downstream tasks."""
    redraws_valid_masks: bool = _differs("pretrain", paper=True, clean=False)
    """Every validation of pre-training has new masks; else all have the same, and epochs can be compared."""
    judged_by: Literal["accuracy", "loss"] = _differs("pretrain", paper="accuracy", clean="loss")
    """The best epoch of pre-training has the highest accuracy, as in the authors' code, or the lowest loss, as in the
    paper."""
    adamw: Literal["authors", "torch"] = _differs("optimizer", paper="authors", clean="torch")
    """AdamW as the authors' library computed it, or as torch does."""
    padding_class: bool = _differs("finetune", paper=True, clean=False)
    """Note-level tasks have padding as a class of its own, which a model may choose, and then is wrong."""
    attends_labelled: bool = _differs("finetune", paper=True, clean=False)
    """Note-level tasks attend to labelled positions alone (REMI: Pitch tokens); else to all real tokens."""
    attends_padding: bool = _differs("finetune", paper=True, clean=False)
    """Sequence-level tasks attend to padding, and pool over it."""
    drops_short_rows: bool = _differs("finetune", paper=True, clean=False)
    """The composer task leaves out a piece's last segment if it is less than half full."""
    rnn_reads_padding: bool = _differs("rnn", paper=True, clean=False)
    """The recurrent baselines read padding like notes."""
    rnn_returns_to_best: bool = _differs("rnn", paper=False, clean=True)
    """A recurrent baseline goes back to its best weights when its rate falls."""
    named: tuple[str, ...] = ()
    """Fields set by `switch`; results are named by them, even where the value is the protocol's own."""

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
        """The fields set by `switch`, with their values; of some sections alone, if any are given."""
        known = {item.name: item.metadata.get("section") for item in fields(self)}
        return {name: getattr(self, name) for name in self.named if not sections or known[name] in sections}

    def describe(self) -> str:
        """The name and the switched fields: `paper, order=pitch`."""
        return ", ".join([self.name, *(f"{name}={value}" for name, value in self.switched().items())])

    def to_dict(self) -> dict[str, Any]:
        """The name and the switched fields, as a model's config.json holds them."""
        return {"name": self.name, **self.switched()}

    @classmethod
    def from_dict(cls, stated: Mapping[str, Any]) -> "Protocol":
        """The protocol of which `to_dict` gave this; a ValueError as from `switch`, or for another name."""
        name = stated.get("name", "")
        if name not in PROTOCOLS:
            raise ValueError(f"protocol {name!r} is not known; allowed: {', '.join(PROTOCOLS)}")
        return PROTOCOLS[name].switch(**{key: value for key, value in stated.items() if key != "name"})

    @property
    def packs_pretraining(self) -> bool:
        """Segments may share rows in pre-training: padding is neither scored nor attended to."""
        return not (self.masks_padding or self.attends_masked_padding)

    def packs_task(self, level: str) -> bool:
        """Segments may share rows in tasks of a level (`note`, `sequence`): just the real tokens are attended to."""
        return not (self.attends_labelled if level == "note" else self.attends_padding)


_DIFFERENCES = [item for item in fields(Protocol) if item.metadata]

CHOICES: Mapping[str, tuple[object, ...]] = {
    item.name: get_args(item.type) if get_origin(item.type) is Literal else (True, False) for item in _DIFFERENCES
}
"""Fields that can be switched, and their values."""

PROTOCOLS: Mapping[str, Protocol] = {
    name: Protocol(name=name, **{item.name: item.metadata[name] for item in _DIFFERENCES})
    for name in get_args(ProtocolName)
}

PAPER = PROTOCOLS["paper"]
"""The authors' code."""

CLEAN = PROTOCOLS["clean"]
"""Each of its flaws repaired; the default for a user's own work."""
