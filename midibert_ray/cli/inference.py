"""Jobs that apply a model to files: from their command line to what they print."""

from dataclasses import replace

from transformers.utils import logging

from midibert_ray import storage
from midibert_ray.cli.arguments import Args
from midibert_ray.cli.driver import start_ray
from midibert_ray.cli.resources import Request
from midibert_ray.inference import job
from midibert_ray.inference.plan import plan
from midibert_ray.inference.worker import JobSpec
from midibert_ray.settings.validators import number, require, require_one_of

MOST = 100_000
"""CPUs, GPUs and actors that may be asked for."""


def apply(spec: JobSpec, args: Args) -> str:
    """Do what is open of a job, or with `--dry-run` nothing; gives the text to print."""
    logging.disable_progress_bar()
    counts = {key: number(key, args.extra[key], 0, MOST) for key in ("cpus", "gpus", "actors") if key in args.extra}
    require(counts.get("cpus", 1) > 0, "cpus", args.extra.get("cpus"), "a positive number")
    actors = job.Actors(cpus=counts.get("cpus", 1), gpus=counts.get("gpus"), most=int(counts.get("actors", 0)))
    precision = args.extra.get("precision", "fp32")
    require_one_of("precision", precision, ("fp32", "bf16"))
    spec = replace(spec, precision="bf16" if precision == "bf16" else "fp32")
    made = plan(spec, args.extra.get("input", ""))
    if args.dry_run:
        return made.describe()
    with storage.owner_only():
        if made.open:
            start_ray([Request("an actor", 1, {"CPU": actors.cpus, "GPU": actors.gpus or 0.0})])
        return str(job.run(made, actors))
