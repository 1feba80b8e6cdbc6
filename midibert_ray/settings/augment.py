"""How training changes music before it sees it; `data.augment` carries it out."""

from dataclasses import dataclass
from typing import Any, Literal

from midibert_ray.settings.validators import optional, require


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    transpose: int = optional(0)
    """Semitones, up or down, by which a segment is moved at most, drawn anew each time; no note leaves the range."""
    shift: int = optional(0)
    """Sixteenths, up to 15, by which bar lines are moved at most; for music in bars of 4/4."""
    scale: bool = optional(False)
    """Double or halve onsets and durations of a third of the segments each, where that loses nothing."""
    thin: float = optional(0.0)
    """Share of the notes that are left out."""
    stage: Literal["both", "pretrain", "finetune"] = optional("both")
    """Training that sees augmented segments; validation and test never do."""

    def __post_init__(self) -> None:
        require(0 <= self.transpose <= 24, "augment.transpose", self.transpose, "0 to 24 semitones")
        require(0 <= self.shift <= 15, "augment.shift", self.shift, "0 to 15 sixteenths")
        require(0 <= self.thin < 1, "augment.thin", self.thin, "a share from 0, below 1")

    def at(self, stage: Literal["pretrain", "finetune"]) -> dict[str, Any]:
        """Arguments of `data.augment.augment` for a kind of training; empty where it sees segments as they are."""
        if self.stage not in ("both", stage) or not (self.transpose or self.shift or self.scale or self.thin):
            return {}
        return {"transpose": self.transpose, "shift": self.shift, "scale": self.scale, "thin": self.thin}
