"""MLflow: experiments, parent and child runs, and curves without gaps or duplicates.

Only controllers and drivers write here; training loops report to Ray and know nothing of MLflow. A run is found again
by its key (the tag `midibert.run_key`), so a job that is started again after a failure goes on in the same run.

A database (sqlite below the storage root, where nothing else is said) takes records at once. A server may be away:
records for it are written into a spool below the storage root first, and the driver of the job sends them from there
while `recording` is open. Work goes on when the server does not answer; what is not sent when a job ends is sent by
the next one, or by `flush`.
"""

from midibert_ray.tracking.address import Address, address
from midibert_ray.tracking.client import PARENT, RUN_KEY, Run
from midibert_ray.tracking.delivery import amount, caught_up, flush, flush_command, recording
from midibert_ray.tracking.runs import PRETRAINING, RunLog, Tracker, study_experiment

__all__ = [
    "PARENT",
    "PRETRAINING",
    "RUN_KEY",
    "Address",
    "Run",
    "RunLog",
    "Tracker",
    "address",
    "amount",
    "caught_up",
    "flush",
    "flush_command",
    "recording",
    "study_experiment",
]
