"""MLflow: experiments, parent and child runs, and curves without gaps or duplicates.

Only controllers and drivers write here; training loops report to Ray and know nothing of MLflow. A run is found again
by its key (the tag `midibert.run_key`), so a job that is started again goes on in the same run.

A `RunLog` makes records. Where a database keeps the runs (sqlite below the storage root, if nothing else is set), a
`Writer` carries them out at once. A server may be away: records for it are written into a `Spool` below the storage
root, and the `Sender` of some job hands them to its `Writer` while `recording` is open. Work goes on when the server
does not answer; records that a job leaves behind are sent by the next one, or by `flush`.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from midibert_ray.tracking.runs import (
    NOTE,
    PRETRAINING,
    RUN_KEY,
    RunLog,
    shown_table,
    study_experiment,
    to_json,
    to_png,
    to_table,
)
from midibert_ray.tracking.uris import TrackingUris, uris

if TYPE_CHECKING:
    from midibert_ray.tracking.delivery import amount, caught_up, flush, flush_command, recording
    from midibert_ray.tracking.tracker import Run, Tracker

__all__ = [
    "NOTE",
    "PRETRAINING",
    "RUN_KEY",
    "Run",
    "RunLog",
    "Tracker",
    "TrackingUris",
    "amount",
    "caught_up",
    "flush",
    "flush_command",
    "recording",
    "shown_table",
    "study_experiment",
    "to_json",
    "to_png",
    "to_table",
    "uris",
]


# MLflow reads these when it is imported: no warning where there is no git, no progress bars, no line for every run, and
# nothing of its use is told to those who make it.
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def __getattr__(name: str) -> Any:
    """Import what needs MLflow when it is first used: that takes a second, and most processes of a job never use it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "tracker" if name in ("Run", "Tracker") else "delivery"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
