"""Fine-tune and ablate: tasks x variants x seeds as concurrent trials, on the encoder that jobs/pretrain.py has made.

    python jobs/study.py --preset debug
    python jobs/study.py --preset small corpora.root=DATA storage.root=OUT study.tasks=composer,emotion study.seeds=3
    python jobs/study.py --preset base compute.gpus_per_trial=0.5 --dry-run

The same command again runs the trials that are still open. Exit code 1 if a trial failed.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # the checkout, not jobs/, whose tokenize.py would hide Python's own

import ray

from midibert_ray import cli, pipeline


def main() -> None:
    wanted = cli.parse(__doc__)
    plan = pipeline.plan(wanted.config, "pretrain", "study")
    if wanted.dry_run:
        print(plan)
        return
    ray.init(**cli.ray_options())
    result = pipeline.study(wanted.config)
    print(pipeline.outcome(wanted.config, result, pipeline.report(wanted.config, result.key)))
    sys.exit(1 if result.failed else 0)


if __name__ == "__main__":
    cli.run(main)
