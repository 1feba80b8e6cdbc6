"""A model applied to many files, by Ray Data, on as many nodes as the cluster has.

The driver lists the files, leaves out those that are done, and cuts the rest into tasks; an actor opens the model once,
and for each file of a task writes the outputs and then a record (see `state`). When all files have a record, the driver
writes the table of files, and last what says that the output is whole: `manifest.json`, of `embed` the one output.
"""

import logging
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray

from midibert_ray.inference.outcome import Summary, finish
from midibert_ray.inference.plan import Plan, look
from midibert_ray.inference.state import State
from midibert_ray.inference.worker import Worker
from midibert_ray.storage.lease import lease
from midibert_ray.tokenizing.tokenize import Progress, quiet

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Actors:
    """The resources of a job."""

    cpus: float = 1
    """CPUs of an actor, its threads where it has no GPU."""
    gpus: float | None = None
    """GPUs of an actor, 0 to 1; a fraction lets several share one. None: 1 where the cluster has any, else 0."""
    most: int = 0
    """Actors at the most; 0: as many as the cluster has room for."""


def run(made: Plan, actors: Actors) -> Summary:
    """Do what is open, and write what says that the output is whole; needs a running Ray if anything is open.

    Of two jobs with one output, the second waits, and finds then what the first has done.

    Raises:
        FileNotFoundError: where a node does not see the input or the output.
    """
    state = State(made.spec.state)
    with lease(state.uri, what=f"{made.spec.kind} {made.spec.output}", report=logger.info) as held:
        state.require(made.settings, made.spec.output)  # another may have begun meanwhile
        state.begin(made.settings)
        made = look(made)
        progress = Progress(made.spec.kind, "files", len(made.open))
        for count in _stream(made, actors) if made.open else ():
            progress.add(count)
        held.check()
        return finish(made)


def _stream(made: Plan, actors: Actors) -> Iterator[int]:
    """Run the tasks on actors, and give the number of files of each when it is done."""
    gpus = actors.gpus if actors.gpus is not None else float(ray.cluster_resources().get("GPU", 0) > 0)
    spec = replace(made.spec, threads=max(1, int(actors.cpus)), gpus=gpus)
    tasks = [{"task": pickle.dumps((spec, task))} for task in made.tasks()]
    most = min(actors.most or len(tasks), len(tasks))
    with quiet():
        results = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
            _Actor,
            batch_size=1,
            num_cpus=actors.cpus,
            num_gpus=gpus,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=_room(actors.cpus, gpus, most)),
        )
    for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in pa.table(batch).to_pylist():
            if row["absent"]:
                raise FileNotFoundError(row["absent"])
            yield row["files"]


def _room(cpus: float, gpus: float, most: int) -> int:
    """Actors for which the cluster has room as it stands; at least one, which an autoscaler may bring."""
    there = ray.cluster_resources()
    needs = {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount > 0}
    return max(1, min(most, *(int(there.get(name, 0) / amount) for name, amount in needs.items())))


class _Actor:
    """A `Worker` as Ray Data wants it; it opens the model when it gets the first task."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do some tasks, each a pickled `JobSpec` and some files by name."""
        counts, absent = [], ""
        for task in batch["task"]:
            spec, files = pickle.loads(task)
            self._worker = self._worker or Worker(spec)
            try:
                self._worker.do(files)
            except FileNotFoundError as error:
                absent = str(error)  # raised by the driver: Ray Data would bury it in its own
            counts.append(len(files))
        return {"files": counts, "absent": [absent] * len(counts)}
