"""The main job, end to end: tokenize, pre-train, fine-tune and ablate, report.

    midibert pipeline --preset debug
    midibert pipeline --preset small corpora.root=DATA storage.root=OUT
    midibert pipeline --preset debug --dry-run
    ray job submit --working-dir . -- python jobs/pipeline.py --preset debug

Stages that are done are found again, so the same command goes on where a killed one stopped.
Exit code 1 if a trial failed.
"""

from midibert_ray.cli.arguments import Args
from midibert_ray.cli.jobs.study import carry_out


def run(args: Args) -> int:
    return carry_out(args.config, "tokenize", "pretrain", dry=args.dry_run)
