"""Tokenize MIDI files with MidiTok, for tokenizing.py.

    echo '["a.mid", "b.mid"]' | ENVIRONMENT/bin/python benchmarks/peer_miditok.py REMI

Runs where `miditok` is, takes a JSON list of files, and prints one line of JSON: the seconds of each, from the
file's bytes in memory to token ids. The tokenizer has its default settings.
"""

import json
import sys
import time
from pathlib import Path

import miditok
from symusic import Score


def main() -> None:
    tokenizer = getattr(miditok, sys.argv[1])()
    seconds = []
    for file in json.load(sys.stdin):
        content = Path(file).read_bytes()
        start = time.perf_counter()
        sequences = tokenizer(Score.from_midi(content))
        counts = [len(sequence.ids) for sequence in (sequences if isinstance(sequences, list) else [sequences])]
        seconds.append(time.perf_counter() - start)
        if not sum(counts):
            raise ValueError(f"{file} gave no tokens")
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
