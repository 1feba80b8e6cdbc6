from __future__ import annotations

from pathlib import Path

import pytest
import ray

from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.settings.presets import preset
from tests.jobs.test_pipeline import TINY, run


def everything_below(root: Path) -> Config:
    """A pipeline of four trials, on a disk."""
    places = {"storage.root": str(root / "root"), "storage.cache": str(root / "cache")}
    return replace(preset("debug"), TINY | places)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """That pipeline, done; what is killed, lies in a bucket or has no tracking server must come to the same."""
    ray.shutdown()  # that of the tests before; jobs start their own
    config = everything_below(tmp_path_factory.mktemp("undisturbed"))
    code, said = run(config)
    assert code == 0, said
    return config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The same, not begun."""
    return everything_below(tmp_path)
