"""What a study leaves on its parent run in MLflow: tables, charts, baselines, corpora, reasons of failures."""

import json
import logging
from dataclasses import asdict

from midibert_ray import storage, tracking
from midibert_ray.data.store import TokenStore, open_store
from midibert_ray.music.protocol import CHOICES, PROTOCOLS
from midibert_ray.report import findings, formats, page, plots, table, table_one
from midibert_ray.report.baselines import Baseline, baselines
from midibert_ray.report.load import BASELINES, CORPORA, load
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import flatten, from_flat, replace
from midibert_ray.studies import sweep
from midibert_ray.studies.plan import Plan
from midibert_ray.studies.recorder import StudyLog
from midibert_ray.tracking.spool import UnreachableError

logger = logging.getLogger(__name__)


def publish(log: StudyLog, plan: Plan) -> bool:
    """Store the results of a study, those of cells that an earlier start asked for included, and end its run.

    Results are made from what MLflow holds, so they wait until a tracking server has got all of it.

    Returns:
        False where it has not; then the study is among those that `unpublished` names.
    """
    mark = storage.join(_marks(plan.config), f"{plan.key}.json")
    try:
        if tracking.caught_up(log.tracker.address):
            _publish(log, plan)
            storage.remove(mark)
            return True
    except UnreachableError as error:
        logger.warning("%s", error)
    storage.write_bytes(mark, json.dumps(flatten(plan.config)).encode())
    return False


def unpublished(config: Config) -> list[Config]:
    """Configurations of the studies below a storage root that wait for their results to be stored."""
    folder = _marks(config)
    names = (name for name in storage.names(folder) if name.endswith(".json"))
    found = [json.loads(storage.read_bytes(storage.join(folder, name))) for name in names]
    here = {"storage.root": config.storage.root, "tracking.uri": config.tracking.uri}
    return [replace(from_flat(flat), here) for flat in found]


def _marks(config: Config) -> str:
    return storage.join(storage.resolve(config.storage.root), "unpublished")


def _publish(log: StudyLog, plan: Plan) -> None:
    run, before = log.parent, load(plan.config, plan.key)
    outcomes, failed = before.outcomes, before.failed
    trivial = [] if plan.config.study.draws else study_baselines(plan)
    known = {(item.protocol, item.task) for item in trivial}
    trivial += [item for item in before.baselines if (item.protocol, item.task) not in known]
    tables = table.build(outcomes, failed, trivial, before.parent.data.tags["tables"].split(","))
    leaks, melody = findings.leaks(tables), findings.melody_or_not(outcomes, trivial, tables)
    run.data(formats.to_csv(tables).encode(), "results.csv")
    run.text(formats.to_markdown(tables, leaks, melody), "results.md")
    run.text(page.to_html(tables, leaks), "results.html")
    run.json([json.loads(item.to_json()) for item in outcomes], "results.json")
    run.json(failed, "failed.json")
    run.json([asdict(item) for item in trivial], BASELINES)
    if "1" in plan.config.study.tables:
        run.json(table_one.table([table_one.describe(store) for store in _paper_stores(plan)]), CORPORA)
    for each in tables:
        run.figure(plots.accuracies(each), "results.png" if each.name == table.PLAIN else f"results-{each.name}.png")
    if plan.config.study.draws:
        run.text(sweep.report(plan.config, outcomes), "winners.md")
    run.finish("FAILED" if failed else "FINISHED")


def study_baselines(plan: Plan) -> list[Baseline]:
    """The trivial baselines of every task and protocol of a study, scored on the same test splits."""
    found: dict[tuple[str, str], list[Baseline]] = {}
    for entry in plan.trials.values():
        config, kind = entry.config, (entry.trial.protocol, entry.trial.task)
        if kind in found or config.model.representation != "cp" or config.protocol != plan.config.protocol:
            continue
        store = open_store(entry.store, config.storage)
        try:
            found[kind] = baselines(config, store)
        except FileNotFoundError as error:  # skyline reads the corpus itself, which may be gone by now
            logger.warning("no trivial baselines of %s under protocol %s: %s", kind[1], kind[0], error)
            found[kind] = []
    return [item for items in found.values() for item in items]


def _paper_stores(plan: Plan) -> list[TokenStore]:
    """The token stores of the study's corpora, in the order of the paper's Table I, by protocol."""
    order = list(table_one.PRINTED)
    stores = [open_store(address, plan.config.storage) for address in plan.stores]
    own = [store for store in stores if not CHOICES.keys() & store.manifest["settings"].keys()]  # nothing switched
    protocols = list(PROTOCOLS)
    return sorted(
        (store for store in own if store.corpus in order),
        key=lambda store: (protocols.index(store.manifest["protocol"]), order.index(store.corpus)),
    )
