"""Fetch the corpora of the paper from their publishers into `corpora.root`; one that is there is left alone.

    python jobs/download.py corpora.root=DATA --dry-run              # sizes, licences and targets; fetches nothing
    python jobs/download.py pop909 asap pop1k7 pianist8 emopia corpora.root=DATA
    python jobs/tokenize.py corpora.root=DATA storage.root=OUT       # what comes next

Broken off, the same command goes on where it stopped. Mind the licences, which are printed and stored with the files:
all but POP909's forbid commercial use or are not stated. Exit code 1 if a corpus could not be had.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # the checkout, not jobs/, whose tokenize.py would hide Python's own

from midibert_ray import cli
from midibert_ray.corpora import install


def main() -> None:
    wanted = cli.parse(__doc__, words="CORPUS (pop909, asap, pop1k7, pianist8, emopia), or section.key=value")
    names = wanted.words or wanted.config.corpora.names
    items = install.survey(names, wanted.config.corpora.root)
    print(install.table(items))
    if not wanted.dry_run:
        sys.exit(1 if install.install(items) else 0)


if __name__ == "__main__":
    cli.run(main)
