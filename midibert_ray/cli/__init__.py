"""The command line."""

from midibert_ray.cli.arguments import Invocation, anchor, describe, field_docs, parse, ray_options, run, settings_help

__all__ = ["Invocation", "anchor", "describe", "field_docs", "parse", "ray_options", "run", "settings_help"]
