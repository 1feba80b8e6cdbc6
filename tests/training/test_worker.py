"""What a worker says, and when: points together by the clock, and an end that need not be tried again."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from midibert_ray.data.store import TokenStore
from midibert_ray.model.folder import save_export
from midibert_ray.model.midibert import MidiBertForMaskedLM
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import flatten, replace
from midibert_ray.training import start, watchdog, worker
from midibert_ray.training.build import new_model
from midibert_ray.training.checkpoints import CheckpointError
from midibert_ray.training.runs import finish, pin, run_key, run_uri
from midibert_ray.training.worker import FINISHED, REPORT_S, Points, train_worker


def point(step: int, at: float) -> dict[str, Any]:
    return {"step": step, "at": at, "train/loss": 1 / step}


def test_points_are_reported_together_and_by_time() -> None:
    """A thousand a second take one report in a few seconds, and none is lost."""
    report = Mock()
    points, all_points = Points(report, []), [point(step, 1000 + step / 1000) for step in range(1, 12_001)]
    for one in all_points:
        points.add(one, send=True)
    sent = [call.args[0]["points"] for call in report.call_args_list]
    assert len(sent) == 1 + 12 // REPORT_S, "the first at once"
    points.add(last := point(12_001, 1012.001) | {"valid/score": 1.0}, send=False)
    points.send(checkpoint="folder")
    (metrics,) = report.call_args.args
    assert (metrics["valid/score"], report.call_args.kwargs) == (1.0, {"checkpoint": "folder"})
    assert [one for points in (*sent, metrics["points"]) for one in points] == [*all_points, last]
    points.send()
    assert report.call_count == len(sent) + 1, "nothing is left"


def test_points_that_are_said_again_wait_for_the_first_new_one() -> None:
    report, earlier = Mock(), [point(step, 10.0 * step) for step in range(1, 6)]
    points = Points(report, earlier)
    for one in earlier:
        points.add(one, send=True)
    report.assert_not_called()
    points.add(new := point(6, 500.0), send=True)
    assert report.call_args.args[0]["points"] == [*earlier, new]


def test_a_worker_from_its_start_to_its_end_and_once_more(
    process_group: None, tiny: Config, sample_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but Ray: two epochs with a checkpoint each, then a start at the end, which only repeats its last points.

    Both begin with the weights of an export; the second goes on from its own checkpoint.
    """
    export = save_export(new_model(replace(tiny, {"seed": 9})), tmp_path / "export")
    config = replace(tiny, {"storage.root": str(tmp_path), "pretrain.valid_every": 1, "pretrain.start": str(export)})
    key, watch, sent = run_key(config, [sample_store.uri]), Mock(), list[dict[str, Any]]()
    pin(run_uri(config, key), [sample_store.uri])

    def report(metrics: dict[str, Any], **checkpoint: Any) -> None:
        sent.append(metrics)
        if checkpoint:
            checkpoint["checkpoint_upload_fn"](checkpoint["checkpoint"], checkpoint["checkpoint_dir_name"])

    context = Mock(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    for name, value in (("get_context", lambda: context), ("report", report), ("get_checkpoint", lambda: None)):
        monkeypatch.setattr(worker.ray.train, name, value)
    monkeypatch.setattr(worker, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(worker, "broadcast_from_rank_zero", lambda value: value)
    monkeypatch.setattr(watchdog.ray, "get_runtime_context", Mock())
    monkeypatch.setattr(watchdog.ray.util, "get_node_ip_address", lambda: "10.0.0.1")
    task = {"config": flatten(config), "stores": [sample_store.uri], "key": key, "console": Mock(), "watch": watch}
    assert train_worker(task) == FINISHED
    points = [point for metrics in sent for point in metrics["points"]]
    steps = [point["step"] for point in points]
    assert steps == sorted(set(steps)) and [point for point in points if "valid/score" in point][-1] == points[-1]
    assert watch.beat.remote.call_args.args[-2:] == (steps[-1], float("inf")), "at its end nothing is expected of it"
    done = finish(config, key)
    assert done.step in steps and done.metrics["valid/score"] == max(
        p["valid/score"] for p in points if "valid/score" in p
    )
    (ancestor,) = MidiBertForMaskedLM.from_pretrained(done.checkpoint).config.lineage
    assert ancestor["sha256"] == start.digest(start.PRETRAIN, str(export))
    sent.clear()
    assert train_worker(task) == FINISHED
    (again,) = sent
    assert again["points"] == points[-len(again["points"]) :]
    other = train_worker(task | {"start": "0" * 64})
    assert isinstance(other, CheckpointError) and "its weights have changed since the job began" in str(other)


def test_a_checkpoint_that_cannot_be_loaded_ends_the_run_at_once(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is raised would be tried again, `compute.max_failures` times."""
    for name in ("PretrainData", "open_store", "new_model", "engines", "get_device", "_require_visible"):
        monkeypatch.setattr(worker, name, Mock())
    monkeypatch.setattr(worker.ray.train, "get_context", Mock())
    refused = CheckpointError("engine/shard.pt is no file of tensors")
    monkeypatch.setattr(worker, "_restore", Mock(side_effect=refused))
    task = {"config": flatten(tiny), "stores": [], "key": "pretrain-a", "console": Mock(), "watch": Mock()}
    assert train_worker(task) is refused
