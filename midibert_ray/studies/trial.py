"""The work of one process of Tune: a trial to its end, or a pre-training with workers of its own."""

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyarrow import fs
from ray import tune
from ray.tune import Checkpoint
from ray.tune.integration.ray_train import TuneReportCallback

from midibert_ray import storage
from midibert_ray.data.segments import Segments
from midibert_ray.model.calibration import CALIBRATION
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import flatten
from midibert_ray.studies import result as results
from midibert_ray.studies.plan import PretrainingSpec, Spec, TrialSpec
from midibert_ray.studies.result import Provenance, TrialResult
from midibert_ray.studies.scheduler import ENCODER, FAILURE
from midibert_ray.training import node
from midibert_ray.training.calibrate import calibrate
from midibert_ray.training.checkpoints import folders, remove_unfinished, verify, weights, write_digests
from midibert_ray.training.finetune import Finetuning, finetune, new_model
from midibert_ray.training.launch import pretrain
from midibert_ray.training.predictions import Predictions
from midibert_ray.training.start import FINETUNE, open_start
from midibert_ray.training.task_data import split_of


def run_spec(space: dict[str, Any], *, study: str, folder: str, console: Any) -> None:
    """Run a trial or a pre-training, or go on where an earlier start of it stopped.

    An error that would come again is reported with its reason and not raised: Tune
    would only try again.

    Args:
        space: a spec and the address of its encoder, from `StudyScheduler`.
        study: key.
        folder: address of the study.
        console: takes progress lines of a pre-training; see `training.console`.
    """
    spec: Spec = space["spec"]
    try:
        if isinstance(spec, PretrainingSpec):
            run = pretrain(spec.config, spec.stores, console=console, callbacks=[TuneReportCallback()])
            tune.report({ENCODER: run.checkpoint})
        else:
            run_trial(spec, space["encoder"], study, storage.join(folder, spec.key))
    except (FloatingPointError, torch.OutOfMemoryError, ValueError) as error:
        tune.report({FAILURE: _reason(error, spec.config)})


def _reason(error: Exception, config: Config) -> str:
    text, share = " ".join(str(error).split()) or repr(error), config.compute.gpus_per_trial
    if isinstance(error, torch.OutOfMemoryError):
        bound = f" within a trial's share, compute.gpus_per_trial={share:g}" if 0 < share < 1 else ""
        return f"out of GPU memory{bound}: {text}; give a trial more (compute.gpus_per_trial), or lower finetune.batch"
    return text


def run_trial(spec: TrialSpec, encoder: str, study: str, uri: str) -> None:
    """Fine-tune in the folder `uri` from the checkpoint `encoder`, if any, score the test split, report to Tune."""
    if done := results.find(uri):
        tune.report(_last_metrics(done[0]))  # a driver that was killed may not have written them down
        return
    remove_unfinished(uri, results.CHECKPOINT)
    config = spec.config
    data = spec.data()
    with weights(encoder) if encoder else nullcontext("") as folder:
        begin = str(folder) if encoder or not spec.start else open_start(FINETUNE, config.finetune.start, spec.start)
        job = Finetuning(config, data, new_model(config, data, begin), own_device(config))
    if earlier := results.newest(uri):
        system, path = storage.filesystem(storage.join(uri, earlier))
        with Checkpoint(path, system).as_directory() as folder:
            job.load(Path(folder))
    split = "valid" if config.study.draws else "test"  # a sweep chooses by validation, and looks at nothing else
    if config.finetune.model == "probe":
        from midibert_ray.training.probe import probe  # here, as scikit-learn would make every process start later

        predictions = probe(job, split)
    else:
        predictions = finetune(job, partial(_report, spec.key), split)
    calibration = calibrate(job, predictions, split)
    besides = {name: job.evaluate(split_of(name)) for name in data.tests}
    result = _result(spec, job, predictions, split, besides)
    provenance = Provenance(study=study, encoder=encoder, start=spec.start, config=flatten(config))
    found = {results.PREDICTIONS: results.predictions_table(data, predictions, split)}
    found |= {
        results.predictions_file(name): results.predictions_table(data, said, split_of(name))
        for name, said in besides.items()
    }

    def write(folder: Path) -> None:
        results.write(folder, result, provenance, found)
        (folder / CALIBRATION).write_text(calibration.to_json())
        job.save_pretrained(folder)

    _report(spec.key, _last_metrics(result), write)


def own_device(config: Config) -> torch.device:
    """The device of a trial: a GPU, of whose memory it takes its share at most; or CPUs, and torch is told how many."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and 0 < config.compute.gpus_per_trial < 1:
        torch.cuda.set_per_process_memory_fraction(config.compute.gpus_per_trial)
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(config.compute.cpus_per_trial)))
    return device


def _result(
    spec: TrialSpec, job: Finetuning, predictions: Predictions, split: str, besides: Mapping[str, Predictions]
) -> TrialResult:
    compute = job.config.compute

    def scored(predictions: Predictions, segments: Segments, split: str) -> dict[str, Any]:
        return {
            "metrics": predictions.metrics(split),
            "confusion": predictions.matrix().tolist(),
            "pieces": predictions.by_piece(segments.name),
            "clusters": segments.clusters,
        }

    own = scored(predictions, job.data.splits[split], split)
    own["metrics"] |= {"valid/best": job.progress.accuracy} | job.metrics
    return TrialResult(
        trial=spec.trial.name,
        **spec.trial.tags,
        draw=spec.trial.draw,
        split=split,
        kind=job.data.task.kind,
        melody=job.data.task.melody,
        epoch=job.progress.epoch,
        classes=list(job.data.classes),
        **own,
        besides={name: scored(said, job.data.splits[split_of(name)], "test") for name, said in besides.items()},
        seconds=job.progress.seconds,
        devices=compute.gpus_per_trial or compute.cpus_per_trial,
    )


def _last_metrics(result: TrialResult) -> dict[str, Any]:
    return result.metrics | {"epoch": result.epoch}


def _report(trial: str, metrics: dict[str, Any], write: Callable[[Path], None] | None) -> None:
    """Tell Tune; with `write`, along with a checkpoint that it fills."""
    metrics = metrics | node.usage() | {node.HARDWARE: node.hardware()}
    if write is None:
        tune.report(metrics)
        return
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch))
        (Path(scratch) / results.EPOCH).write_text(json.dumps({"epoch": metrics["epoch"]}))
        write_digests(Path(scratch), rank=0, world=1, run=trial)
        tune.report(metrics, checkpoint=Checkpoint.from_directory(scratch))
    if stored := tune.get_checkpoint():
        verify(stored.filesystem, stored.path, only=())  # Tune does not hear of an object that S3 refused
        _remove_earlier(stored.filesystem, stored.path)


def _remove_earlier(system: fs.FileSystem, kept: str) -> None:
    """Remove a trial's checkpoints but one, which has been verified and which the driver knows.

    Tune's own `num_to_keep` would not wait for that, and lets the driver write down the state of all trials at each
    checkpoint of one.
    """
    trial, _, name = kept.rpartition("/")
    for other in folders(system, trial, results.CHECKPOINT):
        if other != name:
            system.delete_dir(f"{trial}/{other}")
