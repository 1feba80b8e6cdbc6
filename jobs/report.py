"""Make a study's report.html again, from MLflow alone; or send what jobs could not while a tracking server was away.

    python jobs/report.py ablation --preset debug storage.root=output
    python jobs/report.py ablation-1a2b3c4d5e tracking.uri=http://mlflow:5000
    python jobs/report.py --flush storage.root=/shared/out tracking.uri=http://mlflow:5000

STUDY is the name of a study (the newest of that name is taken) or its name and hash. `--flush` also makes the
reports of all studies that waited for the server.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # the checkout, not jobs/, whose tokenize.py would hide Python's own

from midibert_ray import cli, pipeline, tracking
from midibert_ray.cli import dry_run


def main() -> None:
    flags = {"flush": "send what waits for the tracking server below storage.root, then make what waited for that"}
    wanted = cli.parse(__doc__, words="STUDY, or section.key=value", flags=flags)
    if len(wanted.words) > 1 or not (wanted.words or wanted.flags):
        raise SystemExit("name one study, such as: python jobs/report.py ablation")
    config = wanted.config
    if wanted.dry_run:
        print(dry_run.describe_flush(config) if wanted.flags else pipeline.report_address(config, *wanted.words))
    elif wanted.flags:
        for page in pipeline.flush(config, *wanted.words):
            print(page)
    else:
        with tracking.recording(config):
            print(pipeline.report(config, *wanted.words))


if __name__ == "__main__":
    cli.run(main)
