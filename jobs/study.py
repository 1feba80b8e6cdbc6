"""Fine-tune and ablate: protocols x tasks x variants x seeds as concurrent trials, with the pre-trainings they need.

    python jobs/study.py --preset debug
    python jobs/study.py --preset small corpora.root=DATA storage.root=OUT study.tasks=composer,emotion study.seeds=3
    python jobs/study.py paper study.tables=1,2,3,4 study.protocols=paper,clean study.seeds=5 --preset base --dry-run
    python jobs/study.py sweep task=composer study.draws=40 --preset small corpora.root=DATA storage.root=OUT

`paper` makes the tables of the paper, all of them under both protocols where nothing else is said; add `leak` to
study.tables to measure what the order of notes gives away. `sweep` searches the settings of fine-tuning by
validation and prints the best as they stand on the command line of another study. The same command again does what
is still open, and more seeds, tables, protocols or draws are added to what is there. Exit code 1 if a trial failed.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # the checkout, not jobs/, whose tokenize.py would hide Python's own

import ray

from midibert_ray import cli, pipeline, tracking
from midibert_ray.cli import dry_run
from midibert_ray.settings.overrides import replace
from midibert_ray.settings.presets import STUDIES
from midibert_ray.tokenizing.tokenize import Summary


def main() -> None:
    own = {"task": "the one task of the study, in place of study.tasks"}
    wanted = cli.parse(__doc__, words="paper, sweep, or section.key=value", extra=own, kinds=STUDIES)
    config = replace(wanted.config, {"study.tasks": task} if (task := wanted.extra.get("task")) else {})
    plan = pipeline.plan(config, study=True)
    described = dry_run.describe_plan(plan, estimates=wanted.dry_run)
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
