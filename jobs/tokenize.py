"""Tokenize corpora of MIDI files into token stores; a store that is there already is left alone.

    python jobs/tokenize.py --preset debug                        # the 32 pieces inside the package
    python jobs/tokenize.py corpora.root=DATA storage.root=OUT    # the five corpora of the paper
    python jobs/tokenize.py corpora.names=folder:/music/my-midi   # all MIDI files below a folder
    ray job submit --working-dir . -- python jobs/tokenize.py corpora.root=s3://bucket/corpora

Files that cannot be read are quarantined with a reason and end nothing; `--dry-run` prints the addresses.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # the checkout, not jobs/, whose tokenize.py would hide Python's own

import ray

from midibert_ray import cli, pipeline
from midibert_ray.cli import dry_run
from midibert_ray.tokenizing.tokenize import Summary


def main() -> None:
    wanted = cli.parse(__doc__)
    plan = pipeline.plan(wanted.config)
    if wanted.dry_run:
        print(dry_run.describe_plan(plan, "tokenize"))
        return
    ray.init(**cli.ray_options())
    print(Summary.table(pipeline.tokenize(plan)))


if __name__ == "__main__":
    cli.run(main)
