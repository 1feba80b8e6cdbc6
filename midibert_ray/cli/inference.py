"""Jobs that apply a model to files: from their command line to what they print."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from transformers.utils import logging

from midibert_ray import storage
from midibert_ray.cli.arguments import Args
from midibert_ray.cli.driver import start_ray
from midibert_ray.cli.resources import Request, lacks_here
from midibert_ray.inference import job
from midibert_ray.inference.plan import plan
from midibert_ray.inference.worker import JobSpec
from midibert_ray.settings.validators import number, require, require_one_of

MOST = 100_000
"""CPUs and actors that may be asked for."""


def apply(spec: JobSpec, args: Args) -> str:
    """Do what is open of a job, or with `--dry-run` nothing; gives the text to print."""
    logging.disable_progress_bar()
    actors = parse_actors(args.extra)
    needed = [Request("an actor", 1, {"CPU": actors.cpus, "GPU": actors.gpus or 0.0}, settings="cpus, gpus")]
    precision = args.extra.get("precision", "fp32")
    require_one_of("precision", precision, ("fp32", "bf16"))
    spec = replace(spec, precision="bf16" if precision == "bf16" else "fp32")
    made = plan(spec, args.extra.get("input", ""))
    if args.dry_run:
        missing = lacks_here(needed, torch.cuda.device_count()) if made.open else ""
        return made.describe() + (f"\n{missing}" if missing else "")
    with storage.owner_only():
        if made.open:
            start_ray(needed)
        return str(job.run(made, actors))


def parse_actors(words: Mapping[str, str]) -> job.Actors:
    """The actors that a command line asks for.

    Raises:
        ConfigError: for numbers that Ray cannot give, and for more than the one GPU that an actor uses.
    """
    cpus, most = (number(key, words.get(key, default), 0, MOST) for key, default in (("cpus", "1"), ("actors", "0")))
    there = cpus > 0 and (cpus < 1 or cpus.is_integer())
    require(there, "cpus", words.get("cpus"), "a share of one, or a whole number from 1")
    require(most.is_integer(), "actors", words.get("actors"), "a whole number")
    gpus = number("gpus", words["gpus"], 0, 1) if "gpus" in words else None
    return job.Actors(cpus=cpus, gpus=gpus, most=int(most))
