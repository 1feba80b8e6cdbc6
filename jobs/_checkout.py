"""Lets a checkout run without being installed.

`python jobs/NAME.py` puts jobs/ first where Python looks for modules, and tokenize.py there would hide the standard
library's. The checkout takes its place, before anything but what every interpreter has loaded is imported.
"""

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
# Ray's workers, which start in other folders, look there.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))

from midibert_ray.cli.main import main


def run(job: str) -> None:
    """Do what `midibert JOB` does with this command line."""
    main([job, *sys.argv[1:]])
