"""One trial of a study, in a process of its own: fine-tune, score the test split, report to Tune."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune import Checkpoint

from midibert_ray.config import Config
from midibert_ray.data.store import TokenStore
from midibert_ray.music.tasks import TASKS
from midibert_ray.overrides import flatten, from_flat, replace
from midibert_ray.studies import outcome
from midibert_ray.studies.outcome import Origin, Outcome
from midibert_ray.training.checkpoints import write_digests
from midibert_ray.training.finetune import Finetuning, Predictions, TaskData, finetune, new_model


def task_corpus(config: Config, task: str) -> str:
    """The labelled corpus of a task: `finetune.corpus`, or the task's own."""
    return config.finetune.corpus or TASKS[task].corpus


def run_trial(space: dict[str, Any], *, base: dict[str, Any], study: str, stores: dict[str, str], encoder: str) -> None:
    """Run a trial to its end, or go on where an earlier start of it stopped.

    Args:
        space: what Tune varies: the trial's name, and the dotted settings in which it differs.
        base: the study's configuration, flat.
        study: the study's key.
        stores: corpus -> address of its token store.
        encoder: address of the pre-trained checkpoint.
    """
    name = space["trial"]["name"]
    config = replace(from_flat(base), space["trial"]["changes"])
    earlier = outcome.newest_checkpoint(outcome.trial_address(config, study, name))
    if earlier and (done := _outcome(earlier)):
        tune.report(_last_figures(done))  # a driver that was killed may not have written them down
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(config.compute.cpus_per_trial)))
    store = TokenStore.open(stores[task_corpus(config, config.finetune.task)], cache_dir=config.storage.cache)
    data = TaskData(config, store)
    with Checkpoint(encoder).as_directory() as folder:
        job = Finetuning(config, data, new_model(config, data, folder), device)
    if earlier:
        with earlier.as_directory() as folder:
            job.load(Path(folder))
    predictions = finetune(job, _report)
    result = _result(name, job, predictions)
    origin = Origin(study=study, encoder=encoder, config=flatten(config))
    content = outcome.predictions_table(data, store, predictions)

    def write(folder: Path) -> None:
        outcome.write(folder, result, origin, content)
        job.model.save_pretrained(folder)

    _report(_last_figures(result), write)


def _outcome(checkpoint: Checkpoint) -> Outcome | None:
    with checkpoint.as_directory() as folder:
        return outcome.read(Path(folder))


def _result(name: str, job: Finetuning, predictions: Predictions) -> Outcome:
    task = job.data.task.name
    return Outcome(
        trial=name,
        task=task,
        variant=name.removeprefix(f"{task}-").rpartition("-seed")[0],
        seed=job.config.seed,
        epoch=job.progress.epoch,
        figures=predictions.figures("test") | {"valid/best": job.progress.best},
        classes=list(job.data.classes),
        confusion=predictions.matrix().tolist(),
    )


def _last_figures(result: Outcome) -> dict[str, Any]:
    return result.figures | {"epoch": result.epoch}


def _report(figures: dict[str, Any], write: Callable[[Path], None] | None) -> None:
    """Tell Tune; with `write`, along with a checkpoint that it fills."""
    if write is None:
        tune.report(figures)
        return
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch))
        write_digests(Path(scratch), rank=0, world=1)
        tune.report(figures, checkpoint=Checkpoint.from_directory(scratch))
