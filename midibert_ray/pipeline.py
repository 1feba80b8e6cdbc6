"""The stages of a job, from a configuration to addresses: tokenize, pre-train, study, report.

Every stage finds what the one before has written by its address, so each can be started alone, and starting
it again does nothing twice. Jobs are thin command lines over these functions.
"""

import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from midibert_ray import storage, tracking
from midibert_ray.data.format import find_manifest
from midibert_ray.report import formats, table
from midibert_ray.report import report as reports
from midibert_ray.report.publish import publish, unpublished
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.settings.presets import command_line
from midibert_ray.studies import sweep
from midibert_ray.studies.plan import Plan
from midibert_ray.studies.plan import make as plan_study
from midibert_ray.studies.recorder import StudyLog
from midibert_ray.studies.study import StudyResult
from midibert_ray.studies.study import study as run_study
from midibert_ray.tokenizing.tokenize import Summary, plan_corpus, tokenize_corpora
from midibert_ray.tracking.spool import UnreachableError
from midibert_ray.training.launch import pretrain as run_pretraining
from midibert_ray.training.runs import PretrainRun, finished, run_address, run_key

logger = logging.getLogger(__name__)


class MissingInputError(FileNotFoundError):
    """A stage's input has not been made yet; the message says by which command it is."""


def tokenize(config: Config, names: Iterable[str]) -> list[Summary]:
    """Write the token stores of some corpora, or find them; needs Ray."""
    return tokenize_corpora(list(names), **_token_settings(config))


def tokenize_for(study: Plan) -> list[Summary]:
    """Write the token stores that a study reads, under each protocol that it names, or find them; needs Ray."""
    return [summary for config, names in study.tokens for summary in tokenize(config, names)]


def addresses(config: Config, names: Iterable[str]) -> dict[str, str]:
    """Corpus -> address of its token store, whether or not it has been written.

    Raises:
        ConfigError: for a bucket that cannot be used.
        ValueError: for an unknown corpus; FileNotFoundError where it is not there.
    """
    storage.require_bucket("storage.root", config.storage.root)
    storage.require_bucket("corpora.root", config.corpora.root)
    settings = _token_settings(config)
    return {name: plan_corpus(name, **settings).uri for name in names}


def study_plan(config: Config) -> Plan:
    """The study that a configuration describes."""
    return plan_study(config, addresses)


def _token_settings(config: Config) -> dict[str, Any]:
    return {
        "corpora_root": config.corpora.root,
        "storage_root": config.storage.root,
        "protocol": config.protocol_in_force,
        "segment": config.tokens.segment,
    }


def stores(config: Config, names: Iterable[str]) -> dict[str, str]:
    """Corpus -> address of its token store.

    Raises:
        MissingInputError: where a store has not been written; names the job that writes it.
    """
    found = addresses(config, names)
    missing = [name for name, address in found.items() if find_manifest(address) is None]
    if missing:
        raise MissingInputError(
            f"no token store of {', '.join(missing)} under these settings; write it first (or let the job pipeline run "
            f"all stages):\n    {command_line('tokenize', replace(config, {'corpora.names': tuple(missing)}))}"
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
            f"no finished pre-training {key} below {run_address(config, key)}; run it first (or let the job pipeline "
            f"run all stages):\n    {command_line('pretrain', config)}"
        )
    return done


def study(plan: Plan) -> StudyResult:
    """Run a study, its pre-trainings included; needs Ray.

    Raises:
        MissingInputError: where a token store has not been made.
    """
    for config, names in plan.tokens:
        stores(config, names)
    return run_study(plan)


def report(config: Config, key: str) -> str:
    """Write `report.html` of a study from what MLflow holds, and return its address.

    Raises:
        LookupError: where MLflow has no such study.
        UnreachableError: where a tracking server does not answer.
    """
    where = tracking.address(config)
    if not tracking.caught_up(where):
        logger.warning("the report of %s lacks what is still to be sent: %s", key, tracking.amount(where))
    return reports.write(config, key)


def flush(config: Config, *keys: str) -> list[str]:
    """Send what jobs could not, store the results of studies that waited for it, and write reports.

    Args:
        config: says where records lie, and where they go.
        keys: studies to write a report of in any case.

    Returns:
        addresses of the reports.

    Raises:
        UnreachableError: where the server does not take all of it; nothing is lost.
    """
    where = tracking.address(config)
    tracking.flush(where)
    plans = [study_plan(late) for late in unpublished(config)]
    for plan in plans:
        publish(StudyLog(plan), plan)
    pages = [report(config, key) for key in dict.fromkeys([*(plan.key for plan in plans), *keys])]
    if pages:
        tracking.flush(where)
    return pages


def report_address(config: Config, key: str) -> str:
    """Where the report of a study stands."""
    return reports.uri(config, key)


def outcome(config: Config, result: StudyResult) -> str:
    """What a job prints at its end: the tables, the report that it writes now, and how to browse MLflow."""
    tables = table.build(result.outcomes, result.failed, (), config.study.tables)
    lines = ["", formats.to_text(tables)]
    if config.study.draws:
        lines += [f"{len(result.stopped)} draws were stopped early", "", sweep.report(config, result.outcomes)]
    page = _report_or_how(config, result)
    return "\n".join([*lines, "", f"report  {page}", f"MLflow  {tracking.address(config).command()}"])


def _report_or_how(config: Config, result: StudyResult) -> str:
    """The address of the report, or how it is written later where a tracking server does not answer."""
    where = tracking.address(config)
    with suppress(UnreachableError):
        if result.published:
            return report(config, result.key)
    return (
        f"not yet, nor are the tables in MLflow, as {where.uri} has not got all results. Nothing is lost; when it "
        f"answers:\n        {tracking.flush_command(config, result.key)}"
    )
