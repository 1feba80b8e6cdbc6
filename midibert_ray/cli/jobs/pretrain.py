"""Pre-train MidiBERT by masked language modelling, on token stores that `tokenize` has written.

    midibert pretrain --preset debug
    midibert pretrain --preset small corpora.root=DATA storage.root=OUT optimizer.lr=1e-4
    midibert pretrain --preset base compute.gpu=true compute.workers=4 --dry-run
    ray job submit --working-dir . -- python jobs/pretrain.py --preset base compute.gpu=true

The same command again goes on from the last checkpoint, or does nothing where the run has finished.
"""

from midibert_ray import pipeline, tracking
from midibert_ray.cli import dry_run
from midibert_ray.cli.arguments import Args
from midibert_ray.cli.driver import start_ray


def run(args: Args) -> None:
    plan = pipeline.plan(args.config)
    described = dry_run.describe_plan(plan, "pretrain")
    if args.dry_run:
        print(described)
        return
    with tracking.recording(args.config):
        start_ray()
        run = pipeline.pretrain(plan)
    print(f"best valid/loss {run.metrics['valid/loss']:.4f} at step {run.step}")
    print(f"checkpoint  {run.checkpoint}\nMLflow      {tracking.address(args.config).command()}")
