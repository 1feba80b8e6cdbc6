"""Make a study's report.html again, from MLflow alone.

    python jobs/report.py ablation --preset debug storage.root=output
    python jobs/report.py ablation-1a2b3c4d5e tracking.uri=http://mlflow:5000

STUDY is the name of a study (the newest of that name is taken) or its name and hash.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # the checkout, not jobs/, whose tokenize.py would hide Python's own

from midibert_ray import cli, pipeline


def main() -> None:
    wanted = cli.parse(__doc__, words="STUDY, or section.key=value")
    if len(wanted.words) != 1:
        raise SystemExit("name one study, such as: python jobs/report.py ablation")
    if wanted.dry_run:
        print(pipeline.report_address(wanted.config, wanted.words[0]))
        return
    print(pipeline.report(wanted.config, wanted.words[0]))


if __name__ == "__main__":
    cli.run(main)
