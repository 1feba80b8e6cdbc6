"""The text of `--dry-run`, made before Ray is started."""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch

from midibert_ray import storage, tracking
from midibert_ray.cli import resources
from midibert_ray.cli.arguments import show
from midibert_ray.pipeline import JobPlan
from midibert_ray.report.publish import postponed_reports
from midibert_ray.settings.compute import ComputeConfig
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import flatten
from midibert_ray.settings.text import counted
from midibert_ray.studies.estimate import estimate
from midibert_ray.studies.plan import StudyPlan, study_uri
from midibert_ray.tokenizing.account import describe
from midibert_ray.tokenizing.tokenize import Summary
from midibert_ray.training import start
from midibert_ray.training.build import parameter_counts, plan_batch
from midibert_ray.training.runs import run_uri

Stage = Literal["tokenize", "pretrain"]


def describe_plan(plan: JobPlan, *stages: Stage, estimates: bool = True) -> str:
    """The plan of a job for some stages and its study: settings, addresses, batch arithmetic, parameters and trials.

    With `estimates` a step is measured, and it is said how long all will take, and what this machine lacks for it.

    Raises:
        ConfigError: where the batch cannot be divided over the workers.
    """
    config, study = plan.config, plan.study
    names = dict.fromkeys((*config.corpora.names, *(name for group in plan.tokens for name in group)))
    places = plan.corpora.uris(config, names)
    lines = [_settings(config), "", *(line for name, uri in places.items() for line in _token_lines(name, uri))]
    if stages == ("tokenize",) and not study:
        return "\n".join(lines)
    for key, found in start.inputs(config, start.PRETRAIN, start.FINETUNE).items():
        lines.append(f"{key:<15} {flatten(config)[key]}  sha256 {found}")
    if "pretrain" in stages and not (study and config.finetune.start):  # which takes its place
        counts = "  ".join(f"{name} {count:,}" for name, count in parameter_counts(config).items())
        lines += [
            f"{'pre-training':<15} {run_uri(config, plan.pretraining.key)}",
            f"{'batch':<15} {plan_batch(config)}",
            f"{'parameters':<15} {counts}",
        ]
    lines += [*_label_lines(plan, study), *_study_lines(plan, study)] if study else []
    if estimates:
        lines += [f"{'estimate':<15} {_estimate(plan)}", *_resource_lines(plan)]
    return "\n".join([*lines, f"{'MLflow':<15} {tracking.uris(config).uri}"])


def _token_lines(name: str, uri: str) -> Iterator[str]:
    """Where a token store is or would be, and what there is to say of its pieces, once it is made."""
    yield f"{'tokens ' + name:<15} {uri}"
    if standing := Summary.standing(uri):
        yield from (f"{'':<15} {line}" for line in standing.remarks())


def _estimate(plan: JobPlan) -> str:
    corpora = {each.uri: each for group in plan.tokens for each in group.values()} | plan.corpora.labels
    trials = plan.study.trials if plan.study else {}
    return str(estimate(plan.pretrainings, trials, corpora, threads=int(plan.config.compute.cpus_per_trial)))


def _resource_lines(plan: JobPlan) -> list[str]:
    """The lacks of this machine, where it is the one that would run the job."""
    if os.environ.get("RAY_ADDRESS"):
        return []
    obstacle = storage.root.obstacle(plan.config.storage.root)
    compute = replace(plan.config.compute, accelerator="")  # of what type a GPU is, Ray finds out
    missing = resources.lacks_here(requests(plan, compute), torch.cuda.device_count())
    lines = [f"{'storage':<15} storage.root will not do on this machine: {obstacle}"] if obstacle else []
    return lines + ([f"{'resources':<15} {missing}"] if missing else [])


def requests(plan: JobPlan, compute: ComputeConfig) -> list[resources.Request]:
    """The resources that the open parts of a job ask for; none where all is done."""
    found = resources.requests(compute, pretraining=bool(plan.open_pretrainings), trials=bool(plan.open_trials))
    if found or all(corpus.is_current() for group in plan.tokens for corpus in group.values()):
        return found
    return [resources.Request("tokenizing", 1, {"CPU": 1.0})]


def _settings(config: Config) -> str:
    """The resolved configuration, one dotted key a line, without fields that are left to another."""
    flat = {key: value for key, value in flatten(config).items() if value is not None}
    width = max(map(len, flat))
    return "\n".join(f"{key:<{width}}  {show(value)}" for key, value in flat.items())


def describe_flush(config: Config) -> str:
    """The work that `pipeline.flush` has before it."""
    studies = ", ".join(postponed_reports(config))
    lines = [
        f"{'records':<15} {tracking.amount(tracking.uris(config))}",
        f"{'studies':<15} {studies or 'none waits'}",
    ]
    return "\n".join(lines)


def _study_lines(plan: JobPlan, study: StudyPlan) -> list[str]:
    """The trials of a study, and how many of them are done."""
    lines = [f"{'study':<15} {study_uri(study.config, study.key)}"]
    for key, entry in study.pretrainings.items():
        state = "open" if key in plan.open_pretrainings else "done"
        users = sum(trial.encoder == key for trial in study.trials.values())
        lines.append(
            f"{'':<15} {key}  {state}  for {counted(users, 'trials')}: {_pretraining_words(entry.config, study.config)}"
        )
    names = ", ".join(entry.trial.name for entry in study.trials.values())
    return [
        *lines,
        f"{'pre-trainings':<15} {len(study.pretrainings)}",
        f"{'trials':<15} {len(study.trials)}, {len(plan.open_trials)} of them open: {names}",
        f"{'side by side':<15} {_concurrency(study.config)}",
    ]


def _label_lines(plan: JobPlan, study: StudyPlan) -> Iterator[str]:
    """Labels of the user's own, as they were understood; of folds the first stands for all."""
    for uri, labels in plan.corpora.labels.items():
        if labels.fold > 1:
            continue
        tasks = {spec.task.name: spec.task for spec in study.trials.values() if uri in (*spec.stores, *spec.tests)}
        head = f"labels {labels.tokens.corpus.name}"
        for number, line in enumerate(describe(labels, list(tasks.values()))):
            yield f"{'' if number else head:<15} {line}"


def _pretraining_words(config: Config, study: Config) -> str:
    """The data of a pre-training, and where else it differs from the settings of its study."""
    splits = "train splits" if config.pretrain.splits == "train" else "all splits"
    told = ("corpora.", "tokens.protocol", "protocol.", "model.representation", "pretrain.splits")
    usual = flatten(study)
    others = (
        f", {key}={show(value)}"
        for key, value in flatten(config).items()
        if value != usual[key] and not key.startswith(told)
    )
    return (
        f"{config.model.representation.upper()}, {'+'.join(config.corpora.names)}, {splits}, "
        f"protocol {config.protocol_in_force.describe()}{''.join(others)}"
    )


def _concurrency(config: Config) -> str:
    compute = config.compute
    gpus = f" and {compute.gpus_per_trial:g} GPUs" if compute.gpus_per_trial else ""
    limit = f"at most {compute.max_concurrent_trials}" if compute.max_concurrent_trials else "as the cluster has room"
    kind = "GPU" if compute.gpu else "CPU"
    return (
        f"{limit}; a trial holds {compute.cpus_per_trial:g} CPUs{gpus}, "
        f"a pre-training {counted(compute.workers, 'workers')}, each "
        f"with {compute.cpus_per_worker} CPUs{' and a GPU' if kind == 'GPU' else ''}"
    )
