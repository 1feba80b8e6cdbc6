"""The stages of a job, from a configuration to addresses: tokenize, pre-train, study, report.

Every stage finds what the one before has written by its address, so each can be started alone, and starting
it again does nothing twice. Jobs are thin command lines over these functions.
"""

import logging
from collections.abc import Iterable
from typing import Any, Literal

from midibert_ray import storage, tracking
from midibert_ray.cli import describe
from midibert_ray.config import Config
from midibert_ray.data.tokenize import Summary, plan_corpus, tokenize_corpora
from midibert_ray.studies import report as reports
from midibert_ray.studies import table
from midibert_ray.studies.run_trial import task_corpus
from midibert_ray.studies.study import StudyResult, study_key
from midibert_ray.studies.study import study as run_study
from midibert_ray.studies.trials import grid
from midibert_ray.training.batch import plan_batch
from midibert_ray.training.launch import PretrainRun, finished, parameter_counts, run_address, run_key
from midibert_ray.training.launch import pretrain as run_pretraining

logger = logging.getLogger(__name__)

Stage = Literal["tokenize", "pretrain", "study"]


class MissingInputError(FileNotFoundError):
    """A stage's input has not been made yet; the message says by which command it is."""


def corpora(config: Config) -> tuple[str, ...]:
    """Every corpus that the stages need: those to pre-train on, and those of the study's tasks."""
    labelled = (task_corpus(config, task) for task in config.study.tasks)
    return tuple(dict.fromkeys((*config.corpora.names, *labelled)))


def tokenize(config: Config, names: Iterable[str]) -> list[Summary]:
    """Write the token stores of some corpora, or find them; needs Ray."""
    return tokenize_corpora(list(names), **_token_settings(config))


def addresses(config: Config, names: Iterable[str]) -> dict[str, str]:
    """Corpus -> address of its token store, whether or not it has been written."""
    settings = _token_settings(config)
    return {name: plan_corpus(name, **settings).address for name in names}


def _token_settings(config: Config) -> dict[str, Any]:
    return {
        "corpora_root": config.corpora.root,
        "storage_root": config.storage.root,
        "protocol": config.tokens.protocol,
        "segment": config.tokens.segment,
    }


def stores(config: Config, names: Iterable[str]) -> dict[str, str]:
    """Corpus -> address of its token store.

    Raises:
        MissingInputError: where a store has not been written; names the job that writes it.
    """
    found = addresses(config, names)
    missing = [name for name, address in found.items() if not storage.exists(storage.join(address, "manifest.json"))]
    if missing:
        raise MissingInputError(
            f"no token store of {', '.join(missing)} under these settings; first run, with the same settings, "
            f"python jobs/tokenize.py corpora.names={','.join(missing)} (or jobs/pipeline.py, which runs all stages)"
        )
    return found


def pretrain(config: Config) -> PretrainRun:
    """Pre-train on the token stores of `corpora.names`; needs Ray.

    Raises:
        MissingInputError: where a token store has not been written.
    """
    return run_pretraining(config, list(stores(config, config.corpora.names).values()))


def pretrained(config: Config) -> PretrainRun:
    """The finished pre-training of these settings.

    Raises:
        MissingInputError: where it has not been run to its end.
    """
    key = run_key(config, list(addresses(config, config.corpora.names).values()))
    done = finished(config, key)
    if done is None:
        raise MissingInputError(
            f"no finished pre-training {key} below {run_address(config, key)}; run python jobs/pretrain.py "
            "with the same settings first (or jobs/pipeline.py, which runs all stages)"
        )
    return done


def study(config: Config) -> StudyResult:
    """Run the study on the pre-trained encoder of the same settings; needs Ray.

    Raises:
        MissingInputError: where a token store or the encoder has not been made.
    """
    labelled = stores(config, dict.fromkeys(task_corpus(config, task) for task in config.study.tasks))
    encoder = pretrained(config)
    return run_study(config, stores=labelled, encoder=encoder.key, checkpoint=encoder.checkpoint)


def report(config: Config, key: str) -> str:
    """Write `report.html` of a study from what MLflow holds, and return its address."""
    return reports.write(config, key)


def report_address(config: Config, key: str) -> str:
    """Where the report of a study stands."""
    return reports.address(config, key)


def outcome(config: Config, result: StudyResult, page: str) -> str:
    """What a job prints at its end: the table, the report, and how to browse MLflow."""
    failed = [f"failed: {name}: {reason}" for name, reason in result.failed.items()]
    lines = ["", "test accuracy in % [95 % interval]", table.to_text(result.outcomes), *failed, ""]
    return "\n".join([*lines, f"report  {page}", f"MLflow  {tracking.address(config).command()}"])


def plan(config: Config, *stages: Stage) -> str:
    """What some stages would do: the configuration, addresses, batch arithmetic, parameters and trials.

    Jobs make a plan before they start Ray, so that what cannot work is said at once, and `--dry-run` prints it.

    Raises:
        ConfigError: where the settings do not fit together.
        ValueError: for an unknown corpus; FileNotFoundError where it is not there.
    """
    places = addresses(config, corpora(config) if "study" in stages else config.corpora.names)
    lines = [describe(config), "", *(f"{'tokens ' + name:<15} {address}" for name, address in places.items())]
    if stages == ("tokenize",):
        return "\n".join(lines)
    key = run_key(config, [places[name] for name in config.corpora.names])
    counts = "  ".join(f"{name} {count:,}" for name, count in parameter_counts(config).items())
    lines += [
        f"{'pre-training':<15} {run_address(config, key)}",
        f"{'batch':<15} {plan_batch(config)}",
        f"{'parameters':<15} {counts}",
    ]
    if "study" in stages:
        labelled = {task_corpus(config, task): places[task_corpus(config, task)] for task in config.study.tasks}
        name = study_key(config, labelled, key)
        studies = storage.join(storage.resolve(config.storage.root), "studies")
        lines += [
            f"{'study':<15} {storage.join(studies, name)}",
            f"{'trials':<15} {len(grid(config))}: {', '.join(trial.name for trial in grid(config))}",
        ]
    return "\n".join([*lines, f"{'MLflow':<15} {tracking.address(config).uri}"])
