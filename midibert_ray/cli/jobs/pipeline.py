"""The main job, end to end: tokenize, pre-train, fine-tune and ablate, report.

    midibert pipeline --preset debug
    midibert pipeline --preset small corpora.root=DATA storage.root=OUT
    midibert pipeline --preset debug --dry-run
    ray job submit --working-dir . -- python jobs/pipeline.py --preset debug

Stages that are done are found again, so the same command goes on where a killed one stopped.
Exit code 1 if a trial failed.
"""

from midibert_ray import pipeline
from midibert_ray.cli import dry_run
from midibert_ray.cli.arguments import Args
from midibert_ray.cli.jobs.study import carry_out


def run(args: Args) -> int:
    plan = pipeline.plan(args.config, study=True)
    described = dry_run.describe_plan(plan, "tokenize", "pretrain", estimates=args.dry_run)
    if args.dry_run:
        print(described)
        return 0
    return carry_out(plan)
