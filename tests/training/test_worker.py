"""What a worker says, and when: points together by the clock, and an end that need not be tried again."""

from typing import Any
from unittest.mock import Mock

import pytest

from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import flatten
from midibert_ray.training import worker
from midibert_ray.training.checkpoints import CheckpointError
from midibert_ray.training.worker import REPORT_S, Points, train_worker


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


def test_a_checkpoint_that_cannot_be_loaded_ends_the_run_at_once(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is raised would be tried again, `compute.max_failures` times."""
    for name in ("PretrainData", "open_store", "new_model", "engines", "get_device", "_require_visible"):
        monkeypatch.setattr(worker, name, Mock())
    monkeypatch.setattr(worker.ray.train, "get_context", Mock())
    refused = CheckpointError("engine/shard.pt is no file of tensors")
    monkeypatch.setattr(worker, "_restore", Mock(side_effect=refused))
    task = {"config": flatten(tiny), "stores": [], "key": "pretrain-a", "console": Mock(), "watch": Mock()}
    assert train_worker(task) is refused
