"""Tokenize corpora of MIDI files into token stores; a store that is there already is left alone.

    midibert tokenize --preset debug                        # the 32 pieces inside the package
    midibert tokenize corpora.root=DATA storage.root=OUT    # the five corpora of the paper
    midibert tokenize corpora.names=folder:/music/my-midi   # all MIDI files below a folder
    ray job submit --working-dir . -- python jobs/tokenize.py corpora.root=s3://bucket/corpora

Files that cannot be read are quarantined with a reason and end nothing; `--dry-run` prints the addresses.
"""

from midibert_ray import pipeline, storage
from midibert_ray.cli import dry_run
from midibert_ray.cli.arguments import Args
from midibert_ray.cli.driver import start_ray
from midibert_ray.settings.presets import command_line
from midibert_ray.tokenizing.tokenize import Summary


def run(args: Args) -> None:
    plan = pipeline.plan(args.config)
    if args.dry_run:
        print(dry_run.describe_plan(plan, "tokenize"))
        return
    with storage.owner_only():
        storage.root.require_writable(args.config.storage.root)
        start_ray()
        print(Summary.table(pipeline.tokenize(plan)))
    print(f"next: {command_line('pretrain', args.config)}")
