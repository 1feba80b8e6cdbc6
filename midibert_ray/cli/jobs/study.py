"""Fine-tune and ablate: protocols x tasks x variants x seeds as concurrent trials, with the pre-trainings they need.

    midibert study --preset debug
    midibert study --preset small corpora.root=DATA storage.root=OUT study.tasks=composer,emotion study.seeds=3
    midibert study paper study.tables=1,2,3,4 study.protocols=paper,clean study.seeds=5 --preset base --dry-run
    midibert study --preset small corpora.names=folder:/music study.corpus=folder:/music study.tasks=genre study.folds=5
    midibert study levers --preset small corpora.root=DATA storage.root=OUT
    midibert study sweep task=composer study.draws=40 --preset small corpora.root=DATA storage.root=OUT

`paper` makes the tables of the paper, all of them under both protocols where nothing else is said; add `leak` to
study.tables to measure what the order of notes gives away. `levers` compares objectives, augmentation and lengths of
segments in pre-trainings that see as many notes; `weights` makes the model that ships. `sweep` searches the settings of
fine-tuning by validation and prints the best as they stand on the command line of another study. The same command again
does what is still open, and more seeds, tables, protocols or draws are added to what is there. Exit code 1 if a trial
failed.
"""

from midibert_ray import pipeline
from midibert_ray.cli import dry_run
from midibert_ray.cli.arguments import Args
from midibert_ray.cli.driver import at_work
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.tokenizing.tokenize import Summary


def run(args: Args) -> int:
    task = args.extra.get("task")
    return carry_out(replace(args.config, {"study.tasks": task} if task else {}), dry=args.dry_run)


def carry_out(config: Config, *stages: dry_run.Stage, dry: bool) -> int:
    """Write the tokens of a study, run it and print its outcome; gives exit code 1 if a trial failed."""
    plan = pipeline.plan(config, study=True)
    described = dry_run.describe_plan(plan, *stages, estimates=dry)
    if dry:
        print(described)
        return 0
    with at_work(config, dry_run.requests(plan, config.compute)):
        print(Summary.table(pipeline.tokenize(plan)))
        result = pipeline.study(plan)
        print(pipeline.outcome(config, result, pipeline.song(plan, result)))
    return int(bool(result.failed))
