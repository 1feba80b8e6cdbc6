"""Write a model as a folder: config.json, model.safetensors, vocabulary.json and a model card.

    midibert export --preset debug output=exports/debug                  # the pre-training of these settings
    midibert export run=OUT/runs/pretrain-1a2b3c4d5e/step_000000120 output=exports/step-120
    midibert export run=melody-pretrained-clean-seed2021 storage.root=OUT output=exports/melody  # a trial's name
    midibert export reference=pretrain_model.ckpt output=exports/authors   # a file of the authors' code
    midibert export --preset base storage.root=s3://bucket/out output=s3://bucket/exports/mine

`MidiBertModel.from_pretrained(FOLDER)` opens it on a machine without Ray and DeepSpeed; README.md in it says how.
"""

from transformers.utils import logging

from midibert_ray import pipeline, storage
from midibert_ray.cli.arguments import Args
from midibert_ray.export import export


def run(args: Args) -> None:
    logging.disable_progress_bar()
    if args.dry_run:
        print(export.plan(args.config, pipeline.pretrained, **args.extra))
        return
    folder = export.export(args.config, pipeline.pretrained, **args.extra)
    print(f"{folder}: {', '.join(storage.names(folder))}")
