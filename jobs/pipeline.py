"""The main job, end to end: tokenize, pre-train, fine-tune and ablate, report.

    python jobs/pipeline.py --preset debug
    python jobs/pipeline.py --preset small corpora.root=DATA storage.root=OUT
    python jobs/pipeline.py --preset debug --dry-run
    ray job submit --working-dir . -- python jobs/pipeline.py --preset debug

Stages that are done are found again, so the same command goes on where a killed one stopped.
Exit code 1 if a trial failed.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # the checkout, not jobs/, whose tokenize.py would hide Python's own

import ray

from midibert_ray import cli, pipeline, tracking
from midibert_ray.cli import dry_run
from midibert_ray.tokenizing.tokenize import Summary


def main() -> None:
    wanted = cli.parse(__doc__)
    config = wanted.config
    plan = pipeline.plan(config, study=True)
    described = dry_run.describe_plan(plan, "tokenize", "pretrain", estimates=wanted.dry_run)
    if wanted.dry_run:
        print(described)
        return
    with tracking.recording(config):
        ray.init(**cli.ray_options())
        print(Summary.table(pipeline.tokenize(plan)))
        result = pipeline.study(plan)
        print(pipeline.outcome(config, result))
    sys.exit(1 if result.failed else 0)


if __name__ == "__main__":
    cli.run(main)
