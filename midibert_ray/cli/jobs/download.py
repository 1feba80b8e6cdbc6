"""Fetch the corpora of the paper from their publishers into `corpora.root`; one that is there is left alone.

    midibert download corpora.root=DATA --dry-run              # sizes, licences and targets; fetches nothing
    midibert download pop909 asap pop1k7 pianist8 emopia corpora.root=DATA
    midibert tokenize corpora.root=DATA storage.root=OUT       # what comes next

Broken off, the same command goes on where it stopped. Mind the licences, which are printed and stored with the files:
all but POP909's forbid commercial use or are not stated. Exit code 1 if a corpus could not be had.
"""

from midibert_ray.cli.arguments import Args
from midibert_ray.corpora import install


def run(args: Args) -> int:
    names = args.words or args.config.corpora.names
    items = install.survey(names, args.config.corpora.root)
    print(install.table(items))
    return int(not args.dry_run and bool(install.install(items)))
