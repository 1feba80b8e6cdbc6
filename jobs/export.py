"""Write a model as a folder: config.json, model.safetensors, vocabulary.json and a model card.

    python jobs/export.py --preset debug output=exports/debug                  # the pre-training of these settings
    python jobs/export.py run=OUT/runs/pretrain-1a2b3c4d5e/step_000000120 output=exports/step-120
    python jobs/export.py run=melody-pretrained-clean-seed2021 storage.root=OUT output=exports/melody  # a trial's name
    python jobs/export.py reference=pretrain_model.ckpt output=exports/authors   # a file of the authors' code
    python jobs/export.py --preset base storage.root=s3://bucket/out output=s3://bucket/exports/mine

`MidiBertModel.from_pretrained(FOLDER)` opens it on a machine without Ray and DeepSpeed; README.md in it says how.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # the checkout, not jobs/, whose tokenize.py would hide Python's own

from transformers.utils import logging

from midibert_ray import cli, pipeline, storage
from midibert_ray.export import export


def main() -> None:
    args = cli.parse(__doc__, extra=export.SETTINGS)
    logging.disable_progress_bar()
    if args.dry_run:
        print(export.plan(args.config, pipeline.pretrained, **args.extra))
        return
    folder = export.export(args.config, pipeline.pretrained, **args.extra)
    print(f"{folder}: {', '.join(storage.names(folder))}")


if __name__ == "__main__":
    cli.run(main)
