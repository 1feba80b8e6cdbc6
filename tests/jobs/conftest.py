from __future__ import annotations

from pathlib import Path

import pytest

from midibert_ray.settings.config import Config
from tests.jobs.test_pipeline import everything_below


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The pipeline of `undisturbed`, not begun."""
    return everything_below(tmp_path)
