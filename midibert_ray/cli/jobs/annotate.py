"""Annotate MIDI files with a fine-tuned model: labels, a track a label, a page to listen to, for one file or a million.

    midibert annotate model=exports/melody input=song.mid output=annotated
    midibert annotate model=exports/melody input=/music output=annotated formats=midi,csv,html
    midibert annotate model=exports/melody input=/music output=annotated abstain=0.8    # no label where it is unsure
    midibert annotate model=s3://bucket/melody input=s3://bucket/midi output=s3://bucket/annotated gpus=0.25

Outputs stand as the input does: of `a/song.mid` come `a/song.mid` (every event as it was, a track a label),
`a/song.mid.csv`, `a/song.mid.html`. `files.csv` has a row a file, those that cannot be read with the reason; when
`manifest.json` is there, all is. The same command again does what is still open; `--dry-run` says what that is.
"""

from midibert_ray.cli.arguments import Args
from midibert_ray.cli.inference import apply
from midibert_ray.inference.formats import parse_formats
from midibert_ray.inference.worker import JobSpec
from midibert_ray.settings.validators import number


def run(args: Args) -> None:
    extra = args.extra
    spec = JobSpec(
        kind="annotate",
        model=extra.get("model", ""),
        output=extra.get("output", ""),
        formats=parse_formats(extra.get("formats", "midi,csv,html")),
        abstain=number("abstain", extra.get("abstain", "0"), 0, 1),
    )
    print(apply(spec, args))
