"""Pre-training steps on one GPU: are the numbers right, then how fast.

    python benchmarks/gpu.py --write              # the paper's 12 layers x 768 in bf16, at most eight minutes
    python benchmarks/gpu.py --minutes 3          # leaves out what the time does not suffice for
    python benchmarks/gpu.py --cpu-dry-run        # the same code on the CPU with a tiny model; its rates mean nothing

Without a GPU it says so and ends. It needs torch, transformers, numpy and pyarrow; rows with DeepSpeed are left out
where DeepSpeed is not installed, and PYTHONPATH=. where midibert_ray is not.

Checks, with random weights and without dropout: masks drawn on the GPU equal those drawn on the CPU; hidden states of
the GPU in fp32 against the CPU in fp32, and bf16 against fp32 on the GPU, as |a - b| / |b| over all values; the loss
as its relative difference.

Rates: the product's own step (`training.step`: batches laid out by a thread, pinned, masked on the device) and plain
torch around it (`plain.py`: clipping and fused AdamW on an fp32 copy of bf16 weights), with dropout and an attention
mask, as in training; the median of three timings of several steps each, after a warm-up. Micro-batches grow until more
brings less than one percent, or memory is full, or the time is up; the best one is shown and then used for
`compute.compile`, for `compute.attention=flex` (which has no dropout of attention weights), and for DeepSpeed's ZeRO
stages. One super token is one position of 512.

MFU is rate * flops / peak, as in training: midibert_ray/training/flops.py has the formula and the peaks.
"""

import argparse
import gc
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import harness
import numpy as np
import torch
from plain import PlainEngine
from steps import random_batch

from midibert_ray.data.hashing import row_keys
from midibert_ray.data.masking import mask_batch
from midibert_ray.model.midibert import MidiBertForMaskedLM, mlm_loss
from midibert_ray.music.protocol import CLEAN
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.settings.presets import preset
from midibert_ray.training.build import encoder_config, new_model
from midibert_ray.training.flops import peak_flops, step_flops
from midibert_ray.training.prefetch import Prefetcher
from midibert_ray.training.step import MaskedStep, StepBatch

TARGETS = {"rope": 520_000, "relative_key_query": 250_000}
"""Super tokens a second of one H100."""

HIDDEN_BF16, LOSS_BF16, HIDDEN_CPU = 3e-2, 1e-2, 1e-3
HEAD = ("one GPU, bf16", "result", "MFU", "micro-batch", "GiB", "target", "holds")
MASKED = 0.15


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured, and on what."""

    device: torch.device
    layers: int = 12
    hidden: int = 768
    heads: int = 12
    length: int = 512
    micro_batches: tuple[int, ...] = (64, 128, 256)
    steps: int = 4
    compiler: str = "inductor"

    def config(self, attention: str, micro: int = 1, **changes: object) -> Config:
        """The configuration of a run; changes are written with __ for the dot."""
        shape = {"layers": self.layers, "hidden": self.hidden, "heads": self.heads, "feed_forward": 4 * self.hidden}
        own = {f"model.{name}": value for name, value in shape.items()} | {"model.attention": attention}
        own |= {"tokens.segment": self.length, "pretrain.batch": micro, "compute.precision": "bf16"}
        return replace(preset("base"), own | {key.replace("__", "."): value for key, value in changes.items()})

    def flops(self, attention: str) -> float:
        """Arithmetic of a training step per super token."""
        masked = round(MASKED * self.length)
        return step_flops(encoder_config(self.config(attention)), np.array([self.length]), masked) / self.length


def tiny(device: torch.device) -> Setting:
    """A model whose steps take milliseconds on a CPU."""
    shape = {"layers": 2, "hidden": 32, "heads": 2, "length": 64}
    return Setting(device=device, compiler="aot_eager", micro_batches=(2, 4), steps=1, **shape)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Super tokens a second at a micro-batch, and the largest memory that torch held."""

    tokens: float
    micro_batch: int
    gib: float


def main() -> None:
    options = _options()
    if not options.cpu_dry_run and not torch.cuda.is_available():
        print(f"gpu: {harness.NOT_MEASURED}, torch {torch.__version__} sees no GPU on this machine")
        return
    setting = tiny(torch.device("cpu")) if options.cpu_dry_run else Setting(device=torch.device("cuda"))
    until, rows = time.monotonic() + 60 * options.minutes, []
    for row in (*checks(setting), *rates(setting, until)):
        rows.append(row)
        print("  ".join(row), flush=True)
    name = "CPU, dry run" if options.cpu_dry_run else torch.cuda.get_device_name()
    software = harness.versions("torch", "transformers", *(["deepspeed"] if _has_deepspeed() else []))
    harness.publish("gpu", harness.table(HEAD, rows), options, hardware=f"one {name}", software=software)


def _options() -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--minutes", type=float, default=7.5, help="after these no further row is begun")
    parser.add_argument("--cpu-dry-run", action="store_true", help="show that the script runs, on the CPU")
    options = parser.parse_args()
    if options.cpu_dry_run and options.write:
        parser.error("--write is for measurements; a dry run has none")
    return options


def _has_deepspeed() -> bool:
    return importlib.util.find_spec("deepspeed") is not None


def _masked(tokens: torch.Tensor, number: int = 0) -> Any:
    b, t = tokens.shape[:2]
    keys = row_keys(0, 0, number, torch.arange(b, device=tokens.device))
    return mask_batch(tokens, torch.full((b,), t, device=tokens.device), protocol=CLEAN, keys=keys)


def checks(setting: Setting) -> Iterator[list[str]]:
    """Rows that say whether the device computes the right numbers."""
    tokens = random_batch(2, setting.length)
    here, there = _masked(tokens), _masked(tokens.to(setting.device))
    same = all(
        torch.equal(getattr(here, name), getattr(there, name).cpu()) for name in ("inputs", "where", "attention_mask")
    )
    yield ["masks, GPU = CPU", "equal" if same else "DIFFERENT", "", "", "", "equal", "yes" if same else "NO"]
    for attention in TARGETS:
        model = new_model(setting.config(attention)).eval()
        cpu, _ = _outputs(model, here)
        exact, loss = _outputs(model.to(setting.device), there)
        rough, rough_loss = _outputs(model.bfloat16(), there)
        yield _check(f"{attention}, hidden states fp32, GPU − CPU", _distance(exact, cpu), HIDDEN_CPU)
        yield _check(f"{attention}, hidden states, bf16 − fp32", _distance(rough, exact), HIDDEN_BF16)
        yield _check(f"{attention}, loss, bf16 − fp32", abs(rough_loss / loss - 1), LOSS_BF16)


@torch.no_grad()
def _outputs(model: MidiBertForMaskedLM, batch: Any) -> tuple[torch.Tensor, float]:
    """Hidden states on the CPU in float64, and the loss."""
    hidden = model.midibert(batch.inputs, batch.attention_mask).last_hidden_state
    logits = model(batch.inputs, batch.attention_mask, batch.where).logits
    return hidden.double().cpu(), mlm_loss(logits, batch.targets[batch.where])["loss"].item()


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def _check(name: str, value: float, most: float) -> list[str]:
    return [name, f"{value:.1e}", "", "", "", f"≤ {most:.0e}", harness.verdict(value, most=most)]


def rates(setting: Setting, until: float) -> Iterator[list[str]]:
    """Rows of both attentions: plain, then compiled and with DeepSpeed at the best micro-batch."""
    best: dict[str, Rate] = {}
    for attention in TARGETS:
        found = _sweep(setting, attention, until)
        if isinstance(found, Rate):
            best[attention] = found
        yield _row(setting, attention, attention, found)
    variants = {attention: _variants(setting, attention, rate.micro_batch) for attention, rate in best.items()}
    for name, attention in product(next(iter(variants.values()), ()), variants):
        reason = "deepspeed is not installed" if "DeepSpeed" in name and not _has_deepspeed() else ""
        reason = reason or ("time is up" if time.monotonic() > until else "")
        make, micro = variants[attention][name], best[attention].micro_batch
        found = f"{harness.NOT_MEASURED}: {reason}" if reason else _measured(setting, micro, make)
        yield _row(setting, f"{attention}, {name}", attention, found)


def _variants(setting: Setting, attention: str, micro: int) -> dict[str, Callable[[], Callable[[int], object]]]:
    """What is tried at the best micro-batch of an attention."""
    flex: dict[str, object] = {"compute__attention": "flex", "model__attention_dropout": 0.0}
    compiled: dict[str, object] = {"compute__compile": "layers"}
    variants: dict[str, Callable[[], Callable[[int], object]]] = {
        "compile=layers": partial(plain_step, setting, attention, micro, **compiled),
        "flex, compile=layers": partial(plain_step, setting, attention, micro, **flex, **compiled),
    }
    for stage in range(3):
        variants[f"DeepSpeed, ZeRO {stage}"] = partial(deepspeed_step, setting, attention, micro, stage)
    variants["flex"] = partial(plain_step, setting, attention, micro, **flex)
    variants["compile=step"] = partial(plain_step, setting, attention, micro, compute__compile="step")
    return variants


def _row(setting: Setting, name: str, attention: str, found: Rate | str) -> list[str]:
    target = TARGETS[attention]
    if isinstance(found, str):
        return [name, found, "", "", "", f"≥ {target:,}", ""]
    mfu = f"{found.tokens * setting.flops(attention) / peak_flops(setting.device, 'bf16'):.1%}"
    result, holds = f"{found.tokens:,.0f} super tokens/s", harness.verdict(found.tokens, least=target)
    return [name, result, mfu, str(found.micro_batch), f"{found.gib:.1f}", f"≥ {target:,}", holds]


def _sweep(setting: Setting, attention: str, until: float) -> Rate | str:
    """The best of growing micro-batches, or why there is none; the first is measured even where the time is up."""
    best: Rate | str = ""
    for micro in setting.micro_batches:
        if best and time.monotonic() > until:
            return best
        found = _measured(setting, micro, partial(plain_step, setting, attention, micro))
        print(f"  {attention}, micro-batch {micro}: {found}", flush=True)
        if isinstance(found, str):
            return best or found
        if isinstance(best, Rate) and found.tokens < 1.01 * best.tokens:
            return max(best, found, key=lambda rate: rate.tokens)
        best = found
    return best


def _measured(setting: Setting, micro: int, make: Callable[[], Callable[[int], object]]) -> Rate | str:
    """Rate of the steps that `make` gives, or why they cannot be taken."""
    cuda = setting.device.type == "cuda"
    try:
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = _seconds(setting, make())
        gib = torch.cuda.max_memory_allocated() / 2**30 if cuda else harness.peak_gib()
        return Rate(tokens=micro * setting.length / seconds, micro_batch=micro, gib=gib)
    except (RuntimeError, ImportError, AssertionError, TypeError, ValueError) as error:  # full memory, compilers
        return f"failed: {(str(error).strip() or repr(error)).splitlines()[0][:80]}"
    finally:
        gc.collect()
        torch._dynamo.reset()
        if cuda:
            torch.cuda.empty_cache()


def _seconds(setting: Setting, step: Callable[[int], object]) -> float:
    """Seconds a step: the median of three stretches, each closed by waiting for the device."""

    def stretch(first: int) -> float:
        start = time.perf_counter()
        for number in range(first, first + setting.steps):
            step(number)
        if setting.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / setting.steps

    stretch(0)
    return median(stretch(turn * setting.steps) for turn in (1, 2, 3))


def plain_step(setting: Setting, attention: str, micro: int, **changes: object) -> Callable[[int], object]:
    """A step in plain torch."""
    config = setting.config(attention, micro, **changes)
    engine = PlainEngine(new_model(config), config, steps=1000, device=setting.device)
    return _step(setting, config, engine)


def deepspeed_step(setting: Setting, attention: str, micro: int, stage: int) -> Callable[[int], object]:
    """A step of the library's DeepSpeed engine, in a process group of one."""
    import torch.distributed as dist

    from midibert_ray.training import engine as engines

    if not dist.is_initialized():
        os.environ |= {"LOCAL_RANK": "0"}
        backend = "nccl" if setting.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    gpu = setting.device.type == "cuda"
    config = setting.config(attention, micro, compute__zero_stage=stage, compute__gpu=gpu)
    return _step(setting, config, engines.build(new_model(config), config, steps=1000, device=setting.device))


def _step(setting: Setting, config: Config, engine: Any) -> Callable[[int], object]:
    """Steps of an engine on the same full segments with new masks, laid out by a thread as in a run."""
    masking, cuda = MaskedStep(config, setting.compiler), setting.device.type == "cuda"
    masking.prepare(engine.module)
    tokens = random_batch(config.pretrain.batch, setting.length).to(torch.uint8).numpy()
    lengths, rows = np.full(len(tokens), setting.length), torch.arange(len(tokens))

    def lay_out(number: int) -> StepBatch:
        keys = row_keys(config.seed, 0, number, rows)
        batch = masking.batch(tokens, lengths, keys, notes=int(lengths.sum()), augmented=False)
        return batch.pin() if cuda else batch

    batches = Prefetcher(lay_out, lambda number: number + 1)
    engine.train()

    def step(number: int) -> None:
        batch = batches.take(number)
        sums = masking(engine, batch.to(setting.device), augmented=False)
        engine.backward(sums["loss"] / batch.masked)
        engine.step()

    return step


if __name__ == "__main__":
    main()
