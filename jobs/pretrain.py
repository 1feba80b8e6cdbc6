"""Pre-train MidiBERT by masked language modelling, on token stores that jobs/tokenize.py has written.

    python jobs/pretrain.py --preset debug
    python jobs/pretrain.py --preset small corpora.root=DATA storage.root=OUT optimizer.lr=1e-4
    python jobs/pretrain.py --preset base compute.gpu=true compute.workers=4 --dry-run
    ray job submit --working-dir . -- python jobs/pretrain.py --preset base compute.gpu=true

The same command again goes on from the last checkpoint, or does nothing where the run has finished.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # the checkout, not jobs/, whose tokenize.py would hide Python's own

import ray

from midibert_ray import cli, pipeline, tracking
from midibert_ray.cli import dry_run


def main() -> None:
    wanted = cli.parse(__doc__)
    plan = pipeline.plan(wanted.config)
    described = dry_run.describe_plan(plan, "pretrain")
    if wanted.dry_run:
        print(described)
        return
    with tracking.recording(wanted.config):
        ray.init(**cli.ray_options())
        run = pipeline.pretrain(plan)
    print(f"best valid/loss {run.metrics['valid/loss']:.4f} at step {run.step}")
    print(f"checkpoint  {run.checkpoint}\nMLflow      {tracking.address(wanted.config).command()}")


if __name__ == "__main__":
    cli.run(main)
