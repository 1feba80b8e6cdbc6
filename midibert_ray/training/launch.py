"""From a configuration to a finished pre-training run: TorchTrainer, restarts, MLflow, the best checkpoint."""

import dataclasses
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig, TorchTrainer

from midibert_ray import storage, tracking
from midibert_ray.data.store import open_store
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import flatten, from_flat, identity
from midibert_ray.training import engine as engines
from midibert_ray.training.batch import plan_batch
from midibert_ray.training.checkpoints import (
    PREFIX,
    CheckpointError,
    drop_broken_books,
    explain_full_disk,
    flaw,
    folders,
    newest_sound,
    remove_unfinished,
    store,
    unused_name,
)
from midibert_ray.training.console import Console
from midibert_ray.training.inputs import INPUTS, pin
from midibert_ray.training.pretrain import PretrainData, Pretraining, new_model, run_epochs

logger = logging.getLogger(__name__)

SECTIONS = ("seed", "tokens", "mask", "model", "optimizer", "pretrain", "compute")
"""What makes one pre-training run differ from another, beside its token stores."""

RESULT_FILE = "result.json"


@dataclass(frozen=True)
class PretrainRun:
    """A finished pre-training run."""

    key: str
    """Name and hash; the run's folder below `{root}/runs` and its key in MLflow."""

    checkpoint: str
    """Address of the best checkpoint, a folder that `MidiBertModel.from_pretrained` opens."""

    step: int
    """Optimizer steps taken by the best checkpoint."""

    metrics: dict[str, float]
    """Its validation figures."""


def run_key(config: Config, stores: Sequence[str]) -> str:
    """The name of the run that a configuration and some token stores describe.

    Args:
        config: identity fields only count.
        stores: addresses of the token stores, in order.
    """
    return f"pretrain-{identity(config, SECTIONS, stores=list(map(storage.basename, stores)))}"


def parameter_counts(config: Config) -> dict[str, int]:
    """Parameters of the encoder and of the MLM heads, without making them."""
    with torch.device("meta"):
        model = new_model(config)
    encoder = sum(parameter.numel() for parameter in model.midibert.parameters())
    return {"encoder": encoder, "MLM heads": sum(parameter.numel() for parameter in model.parameters()) - encoder}


def run_address(config: Config, key: str) -> str:
    """The folder of a run below the storage root."""
    return storage.join(storage.root.runs(config.storage.root), key)


def finished(config: Config, key: str) -> PretrainRun | None:
    """The run of a key, if it has ended well."""
    address = run_address(config, key)
    place = storage.join(address, RESULT_FILE)
    if not storage.exists(place):
        return None
    done = PretrainRun(**json.loads(storage.read_bytes(place)))
    # A storage root may have moved since, or its bucket be reached by another server; the folder's name stays.
    return dataclasses.replace(done, checkpoint=storage.join(address, storage.basename(done.checkpoint)))


def pretrain(
    config: Config, stores: Sequence[str], *, sink: Any = None, callbacks: Sequence[UserCallback] = ()
) -> PretrainRun:
    """Run pre-training to its end, or go on where an earlier start of the same run stopped.

    Args:
        config: the whole configuration.
        stores: addresses of the token stores to train on.
        sink: where progress lines go (`Console.sink`); None opens a console here.
        callbacks: told of every report, beside MLflow.

    Returns:
        the finished run; at once if it has been run before.

    Raises:
        ConfigError: for a batch that cannot be divided over the workers.
        ValueError: where the run was started on other tokens.
        FloatingPointError: where the loss is no longer finite; starting again would end in the same place.
        ray.train.TrainingFailedError: where a worker failed more than `compute.max_failures` times.
    """
    plan, key = plan_batch(config), run_key(config, stores)
    pin(run_address(config, key), stores)
    done = finished(config, key)
    if done:
        logger.info("pre-training %s is there already: %s", key, done.checkpoint)
        return done
    counts = ", ".join(f"{name} {count:,}" for name, count in parameter_counts(config).items())
    logger.info("pre-training %s\n  parameters: %s\n  batch: %s", key, counts, plan)
    try:
        with nullcontext(sink) if sink else _console() as lines:
            _tidy(run_address(config, key), lines)
            result: Any = _trainer(config, stores, key, lines, callbacks).fit()
            _tidy(run_address(config, key), lines)
        if result.return_value:
            raise FloatingPointError(f"pre-training {key}: {result.return_value}")
        run = _best(config, key)
    except (ray.train.TrainingFailedError, FloatingPointError):
        _open_log(tracking.address(config), config, key).finish("FAILED")
        raise
    content = json.dumps(dataclasses.asdict(run), indent=1).encode()
    storage.write_bytes(storage.join(run_address(config, key), RESULT_FILE), content)
    log = _open_log(tracking.address(config), config, key)
    log.tag(checkpoint=run.checkpoint)
    log.finish()
    return run


def _tidy(run: str, lines: Any) -> None:
    """Remove what would keep Ray Train from starting, and what a kill left unfinished; no worker may be running."""
    if flaw := drop_broken_books(run):
        lines.put.remote(flaw)
    for name in remove_unfinished(run, PREFIX):
        lines.put.remote(f"the checkpoint {name} of {storage.basename(run)} is removed, as its writing was broken off")


@contextmanager
def _console() -> Iterator[Any]:
    with Console() as console:
        yield console.sink


def _trainer(
    config: Config, stores: Sequence[str], key: str, sink: Any, callbacks: Sequence[UserCallback]
) -> TorchTrainer:
    compute, address = config.compute, tracking.address(config)
    system, runs = storage.filesystem(storage.root.runs(config.storage.root))
    # Ray Train looks for reports every 2 s, and a worker waits until its last one was taken. A look costs 20 ms of
    # a core, so looking more often than this takes its time from workers that fill a node.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    return TorchTrainer(
        train_worker,
        train_loop_config={"config": flatten(config), "stores": list(stores), "key": key, "sink": sink},
        torch_config=TorchConfig(backend="nccl" if compute.gpu else "gloo"),
        scaling_config=_scaling(config),
        run_config=RunConfig(
            name=key,
            storage_path=runs,
            storage_filesystem=system,
            failure_config=FailureConfig(max_failures=compute.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=compute.keep_checkpoints,
                checkpoint_score_attribute="valid/score",
                checkpoint_score_order="max",
            ),
            callbacks=[Recorder(address, flatten(config), key, sink), *callbacks],  # type: ignore[list-item]  # annotated by Tune's name
        ),
    )


def _scaling(config: Config) -> ScalingConfig:
    """How many workers, what each holds, and on which nodes."""
    compute = config.compute
    return ScalingConfig(
        num_workers=compute.workers,
        use_gpu=compute.gpu,
        resources_per_worker={"CPU": compute.cpus_per_worker, **({"GPU": 1} if compute.gpu else {})},
        accelerator_type=compute.accelerator or None,
        placement_strategy=compute.placement,
    )


def _best(config: Config, key: str) -> PretrainRun:
    """The sound checkpoint with the best validation score; of equals the first.

    Raises:
        CheckpointError: where none is sound.
    """
    address = run_address(config, key)
    system, path = storage.filesystem(address)
    broken, found = [], []
    for name in folders(system, path, PREFIX):
        if reason := flaw(system, f"{path}/{name}"):
            broken.append(reason)
            logger.warning("a checkpoint of %s is passed over: %s", key, reason)
            continue
        progress = json.loads(storage.read_bytes(storage.join(address, name, engines.PROGRESS_FILE)))
        found.append((-progress["reports"][-1]["valid/score"], name, progress))
    if not found:
        raise CheckpointError(
            f"no checkpoint of {key} is whole ({'; '.join(broken)}); remove its folder and run it again"
        )
    _, name, progress = min(found, key=lambda entry: entry[:2])
    figures = {name: value for name, value in progress["reports"][-1].items() if name.startswith("valid/")}
    return PretrainRun(key, storage.join(address, name), progress["step"], figures)


def train_worker(task: dict[str, Any]) -> Any:
    """What every worker of the run does; Ray Train calls it again after a failure.

    Returns why the run cannot go on, where the loss is no longer finite: an error would only be tried again, and
    every draw would be the same. None when all went well.
    """
    config = from_flat(task["config"])
    run = run_address(config, task["key"])
    _require_visible(run)
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(config.compute.cpus_per_worker)
    data = PretrainData(config, [open_store(store, config.storage) for store in task["stores"]])
    engine = engines.build(new_model(config), config, steps=data.steps(config.pretrain.epochs), device=device)
    progress, broken = _restore(engine, run, task["sink"])
    job = Pretraining(
        config, data, engine, rank=context.get_world_rank(), world=context.get_world_size(), device=device
    )
    needed = engines.checkpoint_bytes(engine)

    def upload(part: Checkpoint, name: str) -> Checkpoint:
        return _store(part, run, name, job.rank)

    def report(figures: dict[str, Any], with_checkpoint: bool) -> None:
        if not with_checkpoint:
            ray.train.report(figures)
            return
        with tempfile.TemporaryDirectory() as scratch:
            engines.save(engine, progress, Path(scratch))
            checkpoint, name = Checkpoint.from_directory(scratch), unused_name(progress.step, broken)
            with explain_full_disk(run, needed, ", or lower compute.keep_checkpoints"):
                ray.train.report(figures, checkpoint=checkpoint, checkpoint_dir_name=name, checkpoint_upload_fn=upload)

    try:
        run_epochs(job, progress, report)
    except FloatingPointError as error:
        return str(error)
    return None


def _require_visible(run: str) -> None:
    """Make sure that a run's folder is the one that the driver wrote to, and not this node's own of the same name."""
    if not storage.exists(storage.join(run, INPUTS)):
        raise FileNotFoundError(f"{run} is not on this node; storage.root must be visible from every node")


def _store(part: Checkpoint, run: str, name: str, rank: int) -> Checkpoint:
    """Copy this worker's part of a checkpoint to the run's folder.

    Ray Train's own copy would not tell of an object that S3 refused, and would leave the order of files to chance.
    """
    _require_visible(run)
    address = storage.join(run, name)
    store(Path(part.path), address, rank)
    system, path = storage.filesystem(address)
    return Checkpoint(path, system)


def _restore(engine: Any, address: str, sink: Any) -> tuple[engines.Progress, frozenset[str]]:
    """Load the newest sound checkpoint of a run, if there is one; also the names of newer ones that are broken.

    The folders count, not Ray Train's list: a checkpoint may have been complete, or cut off, before it got there.

    Raises:
        CheckpointError: where the run had checkpoints and none is sound any more.
    """
    system, run = storage.filesystem(address)
    found: Any = None
    if ray.train.get_context().get_world_rank() == 0:  # reads all of it, so one worker is enough
        choice = newest_sound(system, run)
        for flaw in choice.broken.values():
            start = f"goes on from {choice.name}" if choice.name else "starts from the beginning"
            line = f"a broken checkpoint is passed over, the run {start}: {flaw}"
            logger.warning(line)
            sink.put.remote(line)
        # One object for all workers: those of a node fetch it together, once.
        found = choice.name and Checkpoint(f"{run}/{choice.name}", system), dict(choice.broken)
    checkpoint, broken = broadcast_from_rank_zero(found)
    if checkpoint is None:
        if ray.train.get_checkpoint():
            raise CheckpointError(
                f"no checkpoint of the run in {run} is whole ({'; '.join(broken.values())}); bring one of them back "
                "from a copy, or remove that folder to start the run again"
            )
        return engines.Progress(), frozenset(broken)
    with checkpoint.as_directory() as folder:
        return engines.load(engine, Path(folder)), frozenset(broken)


class Recorder(UserCallback):
    """Runs on the Train controller: writes each report to MLflow and sends a progress line to the driver.

    It survives the workers, so a curve goes on after a restart; points that stand already are left out.
    """

    def __init__(self, address: tracking.Address, config: dict[str, Any], key: str, sink: Any) -> None:
        self.address, self.config, self.key, self.sink = address, config, key, sink
        self._log: tracking.RunLog | None = None

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Take in what the first worker reports; all workers report the same sums."""
        if self._log is None:
            self._log = _open_log(self.address, from_flat(self.config), self.key)
        figures = dict(metrics[0])
        step, steps, epoch = figures.pop("step"), figures.pop("steps"), figures.pop("epoch")
        self._log.log(figures | {"epoch": epoch}, step)
        for line in progress_lines(step, steps, figures):
            self.sink.put.remote(line)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Say which worker failed and why; Ray Train decides whether to start again."""
        for rank, error in worker_exceptions.items():
            reason = (str(error).strip() or repr(error)).splitlines()[-1]
            self.sink.put.remote(f"worker {rank} failed: {reason}")


def _open_log(address: tracking.Address, config: Config, key: str) -> tracking.RunLog:
    model = config.model
    name = f"{model.representation} {model.layers}x{model.hidden} {'+'.join(config.corpora.names)} ({key[-4:]})"
    tags = {"stage": "pretrain", "protocol": config.tokens.protocol, "seed": config.seed}
    return tracking.Tracker(address).open(tracking.PRETRAINING, key, name, params=flatten(config), tags=tags)


def progress_lines(step: int, steps: int, figures: dict[str, Any]) -> list[str]:
    """One aligned line for training, and one for validation where there was one."""
    return [_progress_line(kind, step, steps, figures) for kind in ("train", "valid") if f"{kind}/loss" in figures]


def _progress_line(kind: str, step: int, steps: int, figures: dict[str, Any]) -> str:
    """Where the run stands, its losses by token type, rate and time left."""
    families = [name.rpartition("/")[2] for name in figures if name.startswith(f"{kind}/loss/")]
    short = {"position": "pos", "duration": "dur"}
    detail = " ".join(f"{short.get(name, name)} {figures[f'{kind}/loss/{name}']:.2f}" for name in families)
    line = f"step {step:>7,}/{steps:,} {step / steps:6.1%} │ {kind} loss {figures[f'{kind}/loss']:6.3f} ({detail})"
    if kind == "valid":
        return f"{line} │ accuracy {figures['valid/accuracy']:.1%}"
    rate, left = figures["throughput/super_tokens_per_s"], figures["throughput/eta_s"]
    return f"{line} │ lr {figures['optimizer/lr']:.1e} │ {rate:>9,.0f} super tokens/s │ eta {clock(left)}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
