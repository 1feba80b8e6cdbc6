"""The records of a study on its parent run in MLflow: tables, charts, baselines, corpora, reasons of failures.

All of it is made from what lies in the study's own folder; nothing is asked of MLflow.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import product

from midibert_ray import storage
from midibert_ray.data.format import read_manifest
from midibert_ray.data.store import TokenStore, open_store
from midibert_ray.music.protocol import CHOICES, PROTOCOLS
from midibert_ray.report import findings, formats, page, plots, table, table_one
from midibert_ray.report.baselines import PLAIN, Baseline, baselines, merge, plain_features
from midibert_ray.report.load import BASELINES, CORPORA
from midibert_ray.settings.config import Config
from midibert_ray.studies import result as results
from midibert_ray.studies import sweep
from midibert_ray.studies.plan import StudyPlan, TrialSpec, study_uri
from midibert_ray.studies.recorder import StudyLog, best
from midibert_ray.studies.result import TrialResult, column
from midibert_ray.studies.study import StudyResult
from midibert_ray.studies.trials import Trial
from midibert_ray.training.task_data import split_of

PUBLISHED = "published.json"
"""File of a study: what all its starts have asked for and found beside the trials' results."""


def publish(plan: StudyPlan, result: StudyResult) -> None:
    """Store the results of a study, those of cells that an earlier start asked for included, and end its run."""
    outcomes = [*result.outcomes, *_earlier_results(plan)]
    names, trivial, failed = _add_to_book(plan, result, outcomes)
    tables = table.build(outcomes, failed, trivial, names)
    told = [*findings.verdict(tables, plan.config.begins_with), *findings.sentences(tables)]
    melody = findings.melody_or_not(outcomes, trivial, tables)
    log = StudyLog(plan)
    run = log.parent
    run.data(formats.to_csv(tables).encode(), "results.csv")
    run.text(formats.to_markdown(tables, told, melody), "results.md")
    run.text(page.to_html(tables, told), "results.html")
    run.json([item.to_dict() for item in outcomes], "results.json")
    run.json({trial.name: reason for trial, reason in failed.items()}, "failed.json")
    run.json([item.to_dict() for item in trivial], BASELINES)
    if "1" in plan.config.study.tables:
        run.json(table_one.table([table_one.describe(store) for store in _paper_stores(plan)]), CORPORA)
    for each in tables:
        run.figure(plots.accuracies(each), "results.png" if each.name == table.PLAIN else f"results-{each.name}.png")
    if plan.config.study.draws:
        run.text(sweep.report(plan.config, outcomes), "winners.md")
    for group in _by_task(outcomes).values():
        log.summarize(group)  # a start that was killed may not have got there
    _register(log, result.outcomes)
    run.finish("FAILED" if failed else "FINISHED")


def _by_task(outcomes: Sequence[TrialResult]) -> dict[tuple[str, str], list[TrialResult]]:
    """Results by task and protocol."""
    groups: dict[tuple[str, str], list[TrialResult]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.task, outcome.protocol), []).append(outcome)
    return groups


def _register(log: StudyLog, outcomes: Sequence[TrialResult]) -> None:
    """Register the best model of each task and protocol, by validation, as `tracking.register` asks."""
    plan, name = log.plan, log.plan.config.tracking.register
    keys = {entry.trial.name: key for key, entry in plan.trials.items() if entry.config.finetune.model == "midibert"}
    groups = _by_task([outcome for outcome in outcomes if name and outcome.trial in keys])
    tasks, protocols = ({words[place] for words in groups} for place in (0, 1))
    for (task, protocol), group in groups.items():
        words = [name, *[task] * (len(tasks) > 1), *[protocol] * (len(protocols) > 1)]
        trial = log.tracker.log(log.experiment, f"{plan.key}/{keys[best(group).trial]}")
        trial.register("-".join(words))


def _earlier_results(plan: StudyPlan) -> list[TrialResult]:
    """Results of finished trials in the study's folder that this start did not ask for."""
    folder, asked = study_uri(plan.config, plan.key), {entry.trial.name for entry in plan.trials.values()}
    names = [name for name in storage.names(folder) if name not in plan.trials]
    found = (results.find(storage.join(folder, name)) for name in names)
    return [item[0] for item in found if item and item[0].trial not in asked]


def _add_to_book(
    plan: StudyPlan, result: StudyResult, outcomes: Sequence[TrialResult]
) -> tuple[list[str], list[Baseline], dict[Trial, str]]:
    """Tables, baselines and failures of all starts of a study, noted in `PUBLISHED`."""
    before = storage.find_json(plan.uri(PUBLISHED)) or {}
    tables = list(dict.fromkeys((*before.get("tables", ()), *plan.config.study.tables)))
    earlier = [Baseline.from_dict(item) for item in before.get("baselines", ())]
    trivial = [] if plan.config.study.draws else _baselines(plan, earlier)
    known = {(item.protocol, item.task) for item in trivial}
    trivial += [item for item in earlier if (item.protocol, item.task) not in known]
    settled = {entry.trial.name for entry in plan.trials.values()} | {item.trial for item in outcomes}
    failures = {Trial.of(item["trial"]): item["reason"] for item in before.get("failed", ())}
    failed = result.failed | {trial: reason for trial, reason in failures.items() if trial.name not in settled}
    content = {
        "tables": tables,
        "baselines": [item.to_dict() for item in trivial],
        "failed": [{"trial": trial.tags, "reason": reason} for trial, reason in failed.items()],
    }
    storage.write_json(plan.uri(PUBLISHED), content)
    return tables, trivial, failed


def _baselines(plan: StudyPlan, earlier: Sequence[Baseline]) -> list[Baseline]:
    """The baselines of every task and protocol of a study, scored on the same test splits.

    Plain features are learned once: where an earlier start has them, its baselines are taken.
    """
    there = {(item.protocol, item.task) for item in earlier if item.name == PLAIN}
    chosen: dict[tuple[str, str], dict[int, TrialSpec]] = {}
    for entry in plan.trials.values():
        if entry.config.model.representation == "cp" and entry.config.protocol == plan.config.protocol:
            folds = chosen.setdefault((entry.trial.protocol, entry.trial.task), {})
            folds.setdefault(entry.trial.fold, entry)
    found = []
    for (protocol, task), folds in chosen.items():
        tests = (read_manifest(uri)["corpus"] for uri in next(iter(folds.values())).tests)
        columns = {(protocol, name) for name in (task, *(column(task, corpus) for corpus in tests))}
        if columns <= there:
            found += [item for item in earlier if (item.protocol, item.task) in columns]
            continue
        found += merge([answer for entry in folds.values() for answer in _answers(entry)])
    return found


def _answers(entry: TrialSpec) -> Iterator[Baseline]:
    """The baselines of a trial's task on all its test splits."""
    data = entry.data()
    tests = [data.splits[split_of(name)].stores[0] for name in data.tests]
    for besides in (None, *tests):
        yield from baselines(entry.config, data.splits["train"].stores, entry.task, besides)
    yield from plain_features(data)


def _paper_stores(plan: StudyPlan) -> list[TokenStore]:
    """The token stores of the paper's corpora, by protocol, and in the order of the paper's Table I."""
    stores = [open_store(address, plan.config.storage) for address in plan.stores]
    own = [store for store in stores if not CHOICES.keys() & store.manifest["settings"].keys()]  # nothing switched
    places = {(store.manifest["protocol"], store.corpus): store for store in own}
    return [places[place] for place in product(PROTOCOLS, table_one.PRINTED) if place in places]


def known_baselines(config: Config, key: str) -> list[Baseline]:
    """The trivial baselines of a study that `publish` has noted."""
    noted = storage.find_json(storage.join(study_uri(config, key), PUBLISHED)) or {}
    return [Baseline.from_dict(item) for item in noted.get("baselines", ())]


def postpone_report(config: Config, key: str) -> None:
    """Note that the report of a study waits for the tracking server."""
    storage.write_bytes(_mark(config, key), json.dumps({"study": key}).encode())


def postponed_reports(config: Config) -> list[str]:
    """Keys of the studies whose report waits for the tracking server."""
    names = storage.names(storage.root.unpublished(config.storage.root))
    return [name.removesuffix(".json") for name in names if name.endswith(".json")]


def report_is_written(config: Config, key: str) -> None:
    storage.remove(_mark(config, key))


def _mark(config: Config, key: str) -> str:
    return storage.join(storage.root.unpublished(config.storage.root), f"{key}.json")
