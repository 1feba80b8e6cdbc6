"""Jobs that apply a model to files: from their command line to what they print."""

from dataclasses import replace

from transformers.utils import logging

from midibert_ray import storage
from midibert_ray.cli.arguments import Args
from midibert_ray.cli.driver import start_ray
from midibert_ray.cli.resources import Request
from midibert_ray.inference import job
from midibert_ray.inference.plan import plan
from midibert_ray.inference.worker import Work
from midibert_ray.settings.validators import number, require, require_one_of

MOST = 100_000
"""CPUs, GPUs and actors that may be asked for."""


def apply(work: Work, args: Args) -> str:
    """Do what is open of a job, or with `--dry-run` nothing; gives the text to print."""
    logging.disable_progress_bar()
    asked = {key: number(key, args.extra[key], 0, MOST) for key in ("cpus", "gpus", "actors") if key in args.extra}
    require(asked.get("cpus", 1) > 0, "cpus", args.extra.get("cpus"), "a positive number")
    actors = job.Actors(cpus=asked.get("cpus", 1), gpus=asked.get("gpus"), most=int(asked.get("actors", 0)))
    precision = args.extra.get("precision", "fp32")
    require_one_of("precision", precision, ("fp32", "bf16"))
    work = replace(work, precision="bf16" if precision == "bf16" else "fp32")
    made = plan(work, args.extra.get("input", ""))
    if args.dry_run:
        return made.describe()
    with storage.owner_only():
        if made.open:
            start_ray([Request("an actor", 1, {"CPU": actors.cpus, "GPU": actors.gpus or 0.0})])
        return str(job.run(made, actors))
