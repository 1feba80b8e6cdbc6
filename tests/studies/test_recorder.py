"""What the driver says of a study while its trials run."""

import time
from pathlib import Path

import pytest

from midibert_ray.studies.plan import make
from midibert_ray.studies.recorder import Recorder
from tests.tiny import tiny_study


def test_each_end_of_a_trial_says_how_far_the_study_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of four trials one was done before; the second takes ten seconds from its first to its last epoch."""
    config = tiny_study(tmp_path, study__variants=("pretrained", "scratch"), study__seeds=2)
    plan = make(config, lambda config, names: dict.fromkeys(names, "/store"))
    first, *others = plan.trials
    recorder = Recorder(plan, done={first})
    clock = iter([100.0, 105.0, 110.0, 111.0, 112.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    caplog.set_level("INFO")
    recorder._advance(others[0], 0.5)
    recorder._advance(others[1], 0.5)
    recorder._advance(others[0], 1.0)
    recorder._advance(others[0], 1.0)
    # In ten seconds a whole trial's worth, half of one each; one and a half are left.
    assert [record.message for record in caplog.records] == ["trial 2 of 4 is done │ eta 0:15"]
    again = recorder.__reduce__()
    assert again == (Recorder, (plan, None, {first}))
