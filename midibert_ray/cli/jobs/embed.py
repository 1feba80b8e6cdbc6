"""Embed MIDI files with a model: one vector a piece or a note, for one file or a million, in one Parquet file.

    midibert embed model=exports/mine input=/music output=embeddings.parquet
    midibert embed model=exports/mine input=/music output=notes.parquet pool=none layer=-2
    midibert embed model=s3://bucket/mine input=s3://bucket/midi output=s3://bucket/embeddings.parquet gpus=0.25

Columns: `file`, with pool=none the number of the `note` (by onset, pitch and track), and `embedding`. Beside it,
`embeddings.files.csv` has a row a file, those that cannot be read with the reason, and `embeddings.job/` what is done:
the same command again does what is still open. `--dry-run` says what that is.
"""

from midibert_ray.cli.arguments import Args
from midibert_ray.cli.inference import apply
from midibert_ray.inference.worker import JobSpec
from midibert_ray.settings.validators import number, require_one_of


def run(args: Args) -> None:
    extra, pool = args.extra, args.extra.get("pool", "mean")
    require_one_of("pool", pool, ("mean", "none"))
    spec = JobSpec(
        kind="embed",
        model=extra.get("model", ""),
        output=extra.get("output", ""),
        layer=int(number("layer", extra.get("layer", "-1"), -1000, 1000)),
        pool="mean" if pool == "mean" else None,
    )
    print(apply(spec, args))
