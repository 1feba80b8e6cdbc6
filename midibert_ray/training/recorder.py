"""A pre-training run in MLflow and on the driver's console, written by the Train controller."""

import json
from typing import Any

from ray.train import Checkpoint, UserCallback

from midibert_ray import tracking
from midibert_ray.data.format import read_manifest
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import flatten
from midibert_ray.settings.text import clock
from midibert_ray.training import node


class RunRecorder(UserCallback):
    """Runs on the Train controller: writes each report to MLflow and sends progress lines to the driver.

    It survives the workers, so a curve goes on after a restart; points that stand already are left out.
    """

    def __init__(self, uris: tracking.TrackingUris, config: Config, key: str, console: Any, watch: Any) -> None:
        self.uris, self.config, self.key, self.console, self.watch = uris, config, key, console, watch
        self._log: tracking.RunLog | None = None
        self._nodes = ""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Take in the points of the first worker, as all report the same sums, and each one's node."""
        self._log = self._log or open_log(self.uris, self.config, self.key)
        points, lines = [], []
        for point in metrics[0]["points"]:
            values = dict(point)
            step, steps, at = values.pop("step"), values.pop("steps"), values.pop("at")
            points.append((values, step, at))
            lines += progress_lines(step, steps, values)
        self.console.put.remote(*lines)
        _, step, at = points[-1]
        points += [(worker["usage"], step, at) for worker in metrics]
        self._log.log_points(points)
        nodes = "; ".join(dict.fromkeys(worker[node.HARDWARE] for worker in metrics))
        if nodes != self._nodes:
            self._log.tag(hardware=nodes)
            self._nodes = nodes

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Name each worker that failed, and why; Ray Train decides whether to start again."""
        self.watch.forget.remote()
        for rank, error in worker_exceptions.items():
            reason = (str(error).strip() or repr(error)).splitlines()[-1]
            self.console.put.remote(f"worker {rank} failed: {reason}")


def open_log(uris: tracking.TrackingUris, config: Config, key: str) -> tracking.RunLog:
    """The MLflow run of a pre-training, made or found again."""
    model = config.model
    name = f"{model.representation} {model.layers}x{model.hidden} {'+'.join(config.corpora.names)} ({key[-4:]})"
    note = (
        f"Masked language modelling of {', '.join(config.corpora.names)}: {model.representation.upper()}, "
        f"{model.layers} layers of {model.hidden}, {model.attention}, protocol {config.tokens.protocol}."
    )
    tags = {"stage": "pretrain", "protocol": config.tokens.protocol, "seed": config.seed, tracking.NOTE: note}
    return tracking.Tracker(uris).open(tracking.PRETRAINING, key, name, params=flatten(config), tags=tags)


def dataset(store: str, split: str, context: str) -> dict[str, str]:
    """A split of a token store (URI), as a run's data in MLflow; `context` is its use, such as `training`."""
    manifest = read_manifest(store)
    facts = {"protocol": manifest["protocol"], "split": split, "settings": manifest["settings"], **manifest["counts"]}
    digest = manifest["digest"][:36]  # MLflow takes no more
    name = f"{manifest['corpus']}:{split}"
    return {"name": name, "digest": digest, "uri": store, "context": context, "profile": json.dumps(facts)}


def progress_lines(step: int, steps: int, metrics: dict[str, Any]) -> list[str]:
    """An aligned line for training, and another for validation where there was one."""
    return [_progress_line(kind, step, steps, metrics) for kind in ("train", "valid") if f"{kind}/loss" in metrics]


def _progress_line(kind: str, step: int, steps: int, metrics: dict[str, Any]) -> str:
    families = [name.rpartition("/")[2] for name in metrics if name.startswith(f"{kind}/loss/")]
    short = {"position": "pos", "duration": "dur"}
    parts = [" ".join(f"{short.get(name, name)} {metrics[f'{kind}/loss/{name}']:.2f}" for name in families)]
    parts += [f"roll {metrics[f'{kind}/roll']:.2f}"] if f"{kind}/roll" in metrics else []
    detail = ", ".join(filter(None, parts))  # of REMI there is nothing to tell, as its ids are of one vocabulary
    line = f"step {step:>7,}/{steps:,} {step / steps:6.1%} │ {kind} loss {metrics[f'{kind}/loss']:6.3f}"
    line += f" ({detail})" if detail else ""
    if kind == "valid":
        return f"{line} │ accuracy {metrics['valid/accuracy']:.1%}"
    rate, left = metrics["throughput/super_tokens_per_s"], metrics["throughput/eta_s"]
    return f"{line} │ lr {metrics['optimizer/lr']:.1e} │ {rate:>9,.0f} super tokens/s │ eta {clock(left)}"
