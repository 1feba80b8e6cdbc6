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
from midibert_ray.cli.driver import at_work
from midibert_ray.settings.presets import command_line


def run(args: Args) -> None:
    config, plan = args.config, pipeline.plan(args.config)
    described = dry_run.describe_plan(plan, "pretrain", estimates=args.dry_run)
    if args.dry_run:
        print(described)
        return
    pipeline.require_tokens(plan)
    with at_work(config, dry_run.requests(plan, config.compute)):
        run = pipeline.pretrain(plan)
    print(f"best valid/loss {run.metrics['valid/loss']:.4f} at step {run.step}")
    mlflow = tracking.Tracker(tracking.uris(config)).browse(tracking.PRETRAINING)
    print(f"checkpoint  {run.checkpoint}\nMLflow      " + mlflow.replace("\n", "\n            "))
    print(f"next        {command_line('study', config)}")
