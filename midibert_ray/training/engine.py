"""The DeepSpeed engine of a configuration: built, saved, loaded, and its weights taken out.

No other file knows DeepSpeed.
"""

import contextlib
import copy
import io
import json
import logging
import os
import pickle
import re
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pyarrow import fs
from safetensors.torch import save_file
from torch import Tensor, nn

from midibert_ray.settings.config import Config
from midibert_ray.training.build import BatchPlan, plan_batch
from midibert_ray.training.checkpoints import CheckpointError, explain_full_disk, listed_files, write_digests
from midibert_ray.training.optimizer import adamw, rate_factor

logger = logging.getLogger(__name__)

ENGINE_FOLDER = "engine"
"""Folder of the DeepSpeed shards within a checkpoint; beside it lie the weights as a Hugging Face folder."""

PROGRESS_FILE = "progress.json"

_UNIVERSAL = "universal"

_FORMATS = (0, 1, 1, 3)
"""Kind of shards that each of the ZeRO stages 0 to 3 writes; those of one kind read each other's."""


@dataclass
class Progress:
    """The state of a run: all that a loop needs to go on, besides the engine's own state."""

    epoch: int = 0
    """Epochs completed."""
    step: int = 0
    """Optimizer steps completed."""
    best: float = float("-inf")
    """Best validation score so far; higher is better."""
    bad: int = 0
    """Validations since the best."""
    reports: list[dict[str, float]] = field(default_factory=list)
    """Reports of the last three checkpoints, and all between them. A resumed run makes them again: whoever writes them
    down lags behind, and may have been killed in between."""

    def judge(self, score: float) -> None:
        """Take in a validation score; a tie is no improvement."""
        better = score > self.best
        self.best, self.bad = (score, 0) if better else (self.best, self.bad + 1)


_BUCKET = 20_000_000
"""Numbers that GPUs reduce or gather at once, 40 MB in bf16. DeepSpeed's 500 million are more than the paper's model
has, so that nothing would be sent before the backward pass is over; with these 87 million go in five."""


def deepspeed_config(config: Config, plan: BatchPlan) -> dict[str, Any]:
    """DeepSpeed's JSON; the optimizer and its schedule are handed over as objects instead."""
    stage, bf16 = config.compute.zero_stage, config.compute.precision == "bf16"
    zero: dict[str, Any] = {"stage": stage}
    if config.compute.gpu:  # gloo has no streams to send on beside the backward pass
        zero |= {"overlap_comm": plan.workers > 1, "contiguous_gradients": True}
        zero |= {"reduce_bucket_size": _BUCKET, "allgather_bucket_size": _BUCKET}
    # Stages 0 and 1 add bf16 micro-batches up in bf16: DeepSpeed refuses fp32 in the one, and in the other writes
    # checkpoints that stage 2 could not read.
    sums = {"data_types": {"grad_accum_dtype": "fp32"}} if bf16 and stage > 1 and plan.accumulation > 1 else {}
    return sums | {
        "train_batch_size": plan.batch,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": config.optimizer.clip,
        "zero_optimization": zero,
        "bf16": {"enabled": bf16},
        # It knows torch's AdamW by name, and not the authors' that is made from it.
        "zero_allow_untested_optimizer": config.protocol_in_force.adamw == "authors",
        # We average over the whole batch ourselves, and never want a prescaled or sparse reduction.
        "prescale_gradients": False,
        "steps_per_print": 10**9,
    }


def build(model: nn.Module, config: Config, *, steps: int, device: torch.device) -> Any:
    """A DeepSpeed engine around a model, in the process group that Ray Train has set up.

    `steps` are those of the whole run, for the schedule.
    """
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # read at the import
    with _hidden("mlflow"):  # which DeepSpeed's tuner would import: a second of each worker's start
        import deepspeed

    # Its shared-memory collective is compiled at the first start (minutes, and a compiler); gloo serves as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    model.to(device)
    settings = config.optimizer
    rates: dict[str, Any] = {"lr": settings.lr, "eps": settings.eps, "weight_decay": settings.weight_decay}
    optimizer = adamw(model.parameters(), config.protocol_in_force, decay=settings.decay, **rates)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_factor(config.optimizer, steps))
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=schedule,
        config=deepspeed_config(config, plan_batch(config)),
        dist_init_required=False,
    )
    return engine


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Let the import of a module that is not there yet fail."""
    absent: Any = None
    hidden = sys.modules.setdefault(module, absent) is absent
    try:
        yield
    finally:
        if hidden:
            del sys.modules[module]


def step(engine: Any) -> None:
    """Take the engine's step after a backward pass, which updates the weights if it ends the accumulation."""
    plain = not (engine.zero_optimization() or engine.bfloat16_enabled())
    # DeepSpeed then clips by this norm and forgets it; `get_global_grad_norm` knows it in all other cases.
    if plain and engine.is_gradient_accumulation_boundary():
        gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
        engine._global_grad_norm = nn.utils.get_total_norm(gradients)
    engine.step()


def save(engine: Any, progress: Progress, folder: Path, run: str | None = None) -> None:
    """Write this worker's shards of a checkpoint into an empty folder of its own; every worker must call it.

    The folders of all workers merge into one: `engine/` (model and optimizer), from the first worker `config.json`
    and `model.safetensors` (fp32 weights that `from_pretrained` opens) and `progress.json`, and from each worker the
    digests of its files, with the key of the run. Raises CheckpointError where the disk is full.
    """
    with explain_full_disk(str(folder), checkpoint_bytes(engine), ", or set TMPDIR to a folder on another disk"):
        state = asdict(progress)
        engine.save_checkpoint(str(folder), tag=ENGINE_FOLDER, client_state={"progress": state}, save_latest=False)
        weights = full_weights(engine)
        if engine.global_rank == 0:
            # `save_pretrained` would name the engine's precision as that of the weights.
            config = copy.deepcopy(engine.module.config)
            config.architectures, config.dtype = [type(engine.module).__name__], "float32"
            config.save_pretrained(folder)
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            (folder / PROGRESS_FILE).write_text(json.dumps(state | _layout(engine)))
        write_digests(folder, engine.global_rank, engine.world_size, run)


def _layout(engine: Any) -> dict[str, int]:
    """How the optimizer's state is spread."""
    return {"workers": engine.world_size, "zero_stage": engine.zero_optimization_stage()}


def checkpoint_bytes(engine: Any) -> int:
    """Bytes that a checkpoint takes, roughly: the weights twice, and in the optimizer a copy and two moments."""
    sizes = (parameter_shape(parameter).numel() for parameter in engine.module.parameters())
    return 5 * torch.float32.itemsize * sum(sizes)


def load(engine: Any, folder: Path) -> Progress:
    """Take a checkpoint's state into a new engine (model, optimizer, schedule) and return its progress.

    It may have been written by another number of workers; of the ZeRO stages, 1 and 2 read each other's.
    Every worker must call it, and all raise CheckpointError where there is no state in the folder, or that of a ZeRO
    stage which cannot be read, or one that would run code.
    """
    _require_plain(folder / ENGINE_FOLDER)
    written, here = json.loads((folder / PROGRESS_FILE).read_text()), _layout(engine)
    if _FORMATS[written["zero_stage"]] != _FORMATS[here["zero_stage"]]:
        raise CheckpointError(
            f"compute.zero_stage={here['zero_stage']} cannot read {folder}, which ZeRO stage {written['zero_stage']} "
            f"wrote; set compute.zero_stage={written['zero_stage']} to go on"
        )
    # Without ZeRO every worker holds the whole state.
    if here["zero_stage"] == 0 or written["workers"] == here["workers"]:
        _, client = engine.load_checkpoint(str(folder), tag=ENGINE_FOLDER)
    else:
        logger.info("%s was written by %d workers; %d go on", folder, written["workers"], here["workers"])
        client = _load_resized(engine, folder)
    return Progress(**client["progress"])


def _require_plain(shards: Path) -> None:
    """Refuse a pickle that holds more than tensors, plain values and the classes that DeepSpeed writes.

    DeepSpeed unpickles its files without any restriction, and whoever can write to the storage can make the digests
    fit. The files are mapped into memory, so their pickles are read here and their tensors are not.
    """
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    paths = sorted(shards.rglob("*.pt"))
    if not paths:
        raise CheckpointError(f"{shards} holds no DeepSpeed state; remove that checkpoint and start again")
    for path in paths:
        try:
            with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
                torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
            # torch's own text advises to read the file without restriction.
            named = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"it names {named[1]}" if named else "torch cannot read it as such"
            raise CheckpointError(
                f"{path} is no file of tensors and plain values as DeepSpeed writes it ({reason}), and opening it "
                "could run a stranger's code; remove that checkpoint, and find out who wrote it"
            ) from None


def _load_resized(engine: Any, folder: Path) -> dict[str, Any]:
    """Load a checkpoint of another number of workers; returns what was saved beside the engine's state."""
    decays = [group["weight_decay"] for group in engine.optimizer.param_groups]
    with _universal(folder) as converted:
        # What "checkpoint": {"load_universal": true} sets; whether it is needed shows only after the engine is built.
        engine._config.load_universal_checkpoint = True
        try:
            _, client = engine.load_checkpoint(str(converted), tag=_UNIVERSAL)
        finally:
            engine._config.load_universal_checkpoint = False
    # Stage 3 gives every group the settings of the first, and one and the same counter of Adam's steps.
    for group, decay in zip(engine.optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    for moments in engine.optimizer.optimizer.state.values():
        moments["step"] = moments["step"].clone()
    return dict(client)


@contextmanager
def _universal(folder: Path) -> Iterator[Path]:
    """A temporary folder that holds a checkpoint's universal form in `universal/`; every worker must enter.

    ZeRO spreads the optimizer's state over the workers, and DeepSpeed reads a checkpoint only with as many workers as
    wrote it, except in this form: one folder a parameter. The first worker of each node converts the shards, the
    others of that node wait for it; about as much disk as twice the checkpoint is taken while it lasts.
    """
    rank, local_rank = dist.get_rank(), int(os.environ["LOCAL_RANK"])
    with contextlib.ExitStack() as stack:
        mine = ""
        if local_rank == 0:
            mine = stack.enter_context(tempfile.TemporaryDirectory(prefix="midibert-"))
            _convert(folder, Path(mine))
        places = [""] * dist.get_world_size()
        dist.all_gather_object(places, mine)
        # Ray Train numbers the workers node by node.
        yield Path(places[rank - local_rank])
        dist.barrier()


def _convert(folder: Path, scratch: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    source = scratch / ENGINE_FOLDER
    source.mkdir()
    # Only what belongs to the checkpoint: the converter takes every shard that it finds.
    for name in listed_files(fs.LocalFileSystem(), str(folder)):
        if name.startswith(f"{ENGINE_FOLDER}/"):
            (scratch / name).symlink_to(folder.absolute() / name)
    settings = Namespace(
        input_folder=str(source),
        output_folder=str(scratch / _UNIVERSAL),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        # Stages 1 and 2 are refused without it, as only Megatron's checkpoints carry that state.
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(settings)


def full_weights(engine: Any) -> dict[str, Tensor]:
    """All weights in fp32 on the CPU, gathered from the workers' shards; every worker must call it."""
    from deepspeed.utils import safe_get_full_fp32_param

    weights: dict[str, Tensor] = {}
    unspread: dict[Tensor, Tensor] = {}
    optimizer = engine.optimizer
    if not engine.zero_optimization() and hasattr(optimizer, "fp32_groups"):
        # The fp32 copies of bf16 parameters where ZeRO is off: DeepSpeed's own functions do not find those.
        for lows, fulls in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            unspread.update(zip(lows, fulls, strict=True))
    for name, parameter in engine.module.named_parameters():
        full = unspread[parameter] if parameter in unspread else safe_get_full_fp32_param(parameter)
        # Without ZeRO and in fp32 there is no other copy than the parameter itself.
        full = parameter if full is None else full
        weights[name] = full.detach().float().cpu().clone().reshape(parameter_shape(parameter))
    return weights


def parameter_shape(parameter: Tensor) -> torch.Size:
    """The shape of a whole parameter, also where ZeRO 3 has left an empty one on this worker."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape
