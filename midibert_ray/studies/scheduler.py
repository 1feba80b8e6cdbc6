"""The order in which Tune works: pre-trainings first, each fine-tuning trial as soon as its encoder is there.

Tune asks a searcher for the next trial whenever it has room. A study's trials are known beforehand, so this
searcher searches nothing: it hands them out in their order, holds back those whose encoder is still being
trained, and leaves room for runs that start workers of their own, which Tune does not count.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

from midibert_ray.studies.plan import PretrainingSpec, Spec

FAILURE = "failure"
"""Key of a trial's last report where it cannot go on, and would not if it were started again: the reason."""
ENCODER = "encoder"
"""Key of a pre-training's last report: the address of its checkpoint."""


def given_up(encoder: str, reason: str) -> str:
    """The reason of a trial that is not begun, as its pre-training has failed."""
    return f"its pre-training {encoder} failed: {reason}"


class StudyScheduler(Searcher):
    """Hands out the trials of a study; Tune calls it in the driver."""

    def __init__(
        self,
        specs: Sequence[Spec],
        *,
        encoders: Mapping[str, str],
        cluster: Callable[[], Mapping[str, float]],
        slots: int = 0,
    ) -> None:
        """Take in the specs, the preferred ones first.

        Args:
            specs: trials and pre-trainings.
            encoders: key -> address of the checkpoint, of pre-trainings that have finished before.
            cluster: gives the resources of all nodes that are there now.
            slots: most that may run at once; 0: as the resources allow.
        """
        super().__init__()
        self.waiting = list(specs)
        self.encoders, self.slots = dict(encoders), slots
        self.failed: dict[str, str] = {}
        """Key -> reason, of pre-trainings, and of trials that were never begun for them."""
        self._cluster = cluster
        self._running: dict[str, Spec] = {}
        self._starting: set[str] = set()
        """Trials whose own workers have not reported yet: they may still wait for resources."""

    def suggest(self, trial_id: str) -> Any:
        """The next trial and the address of its encoder; None: ask again later; FINISHED: there is no more."""
        for item in [item for item in self.waiting if item.encoder in self.failed]:
            self.waiting.remove(item)
            self.failed[item.key] = given_up(item.encoder, self.failed[item.encoder])
        if not self.waiting:
            return Searcher.FINISHED
        spec = next((item for item in self.waiting if not item.encoder or item.encoder in self.encoders), None)
        if spec is None or not self._has_room(spec):
            return None
        self.waiting.remove(spec)
        self._running[trial_id] = spec
        if isinstance(spec, PretrainingSpec):
            self._starting.add(trial_id)
        return {"spec": spec, "encoder": self.encoders.get(spec.encoder, "")}

    def _has_room(self, spec: Spec) -> bool:
        """True where a trial may be handed to Tune now.

        Tune starts a trial when its resources are free, and an autoscaler adds nodes for those that wait. Only
        where a run starts workers of its own, other trials could take what they wait for, so nothing may.
        """
        running = self._running.values()
        if self.slots and running and sum(item.slots for item in running) + spec.slots > self.slots:
            return False
        if not self._starting and not isinstance(spec, PretrainingSpec):
            return True
        total, alone = self._cluster(), not running
        held = {key: sum(item.resources.get(key, 0) for item in running) for key in spec.resources}
        fits = all(held[key] + need <= total.get(key, 0) for key, need in spec.resources.items())
        never = any(need > total.get(key, 0) for key, need in spec.resources.items())
        return alone or fits or (never and not self._starting)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Workers that report have started."""
        self._starting.discard(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The end of a trial; a pre-training gives its encoder free for those that wait for it."""
        spec = self._running.pop(trial_id, None)
        self._starting.discard(trial_id)
        if not isinstance(spec, PretrainingSpec):
            return
        if result and result.get(ENCODER):
            self.encoders[spec.key] = str(result[ENCODER])
        else:
            self.failed[spec.key] = str((result or {}).get(FAILURE) or "its process died")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what is done is read from the trials' own folders when a study starts again."""

    restore = save
