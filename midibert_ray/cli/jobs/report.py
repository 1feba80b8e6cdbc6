"""Make a study's report.html again, from MLflow alone; or send what jobs could not while a tracking server was away.

    midibert report ablation --preset debug storage.root=output
    midibert report ablation-1a2b3c4d5e tracking.uri=http://mlflow:5000
    midibert report --flush storage.root=/shared/out tracking.uri=http://mlflow:5000

STUDY is the name of a study (the newest of that name is taken) or its name and hash. `--flush` also makes the tables
and the reports of all studies that waited for the server.
"""

from midibert_ray import pipeline, tracking
from midibert_ray.cli import dry_run
from midibert_ray.cli.arguments import Args
from midibert_ray.report import report
from midibert_ray.settings.config import ConfigError


def run(args: Args) -> None:
    config = args.config
    if len(args.words) > 1 or not (args.words or args.flags):
        raise ConfigError("name one study, such as: midibert report ablation (and quote a path that has a space in it)")
    if args.dry_run:
        print(dry_run.describe_flush(config) if args.flags else report.uri(config, *args.words))
    elif args.flags:
        for page in pipeline.flush(config, *args.words):
            print(page)
    else:
        with tracking.recording(config):
            print(pipeline.report(config, *args.words))
