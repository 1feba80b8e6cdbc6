"""The stages of a job: plan, tokenize, pre-train, study, report.

A job makes one plan and hands it to its stages. Every stage finds what the one before has written by its address, so
each can be started alone, and starting it again does nothing twice. Jobs are thin command lines over these functions.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from midibert_ray import storage, tracking
from midibert_ray.corpora.table import Labels, make_task, unlabelled
from midibert_ray.data.format import find_manifest
from midibert_ray.music.tasks import TASKS, Task
from midibert_ray.report import findings, formats, plots, table
from midibert_ray.report import report as reports
from midibert_ray.report import song as songs
from midibert_ray.report.publish import (
    known_baselines,
    postpone_report,
    postponed_reports,
    publish,
    report_is_written,
)
from midibert_ray.settings.config import Config, ConfigError
from midibert_ray.settings.overrides import replace
from midibert_ray.settings.presets import command_line
from midibert_ray.settings.shipped import is_shipped
from midibert_ray.storage.lease import lease
from midibert_ray.studies import sweep
from midibert_ray.studies.plan import Labelled, PretrainingSpec, StudyPlan, study_uri
from midibert_ray.studies.plan import make as plan_study
from midibert_ray.studies.result import settled
from midibert_ray.studies.study import StudyResult
from midibert_ray.studies.study import study as run_study
from midibert_ray.tokenizing.labelling import NOTES, LabelPlan, find_labels, note_task, require_column, write_labels
from midibert_ray.tokenizing.plan import CorpusFiles, CorpusPlan, list_corpus, plan_corpus
from midibert_ray.tokenizing.tokenize import Summary, tokenize_plans
from midibert_ray.tracking.spool import UnreachableError
from midibert_ray.tracking.uris import SQLITE
from midibert_ray.training import start
from midibert_ray.training.launch import pretrain as run_pretraining
from midibert_ray.training.runs import PretrainRun, finished, run_key, run_uri
from midibert_ray.training.task_data import SPLITS, require_labels, require_splits

logger = logging.getLogger(__name__)


class MissingInputError(FileNotFoundError):
    """A stage's input has not been made yet; the message says by which command it is."""


@dataclass(frozen=True)
class CorpusPlans:
    """The plans of a job's corpora: each corpus is listed once, whatever protocols and orders it is tokenized under."""

    files: dict[str, CorpusFiles] = field(default_factory=dict)
    """By name of the corpus."""
    plans: dict[str, dict[str, CorpusPlan]] = field(default_factory=dict)
    """By how tokens are made, then by name of the corpus."""

    def of(self, config: Config) -> dict[str, CorpusPlan]:
        """The plans of corpora whose tokens are made as a configuration says, as far as trials differ in it."""
        how = json.dumps([config.tokens.protocol, config.protocol_in_force.switched("tokens")])
        return self.plans.setdefault(how, {})

    labels: dict[str, LabelPlan] = field(default_factory=dict)
    """Labels of corpora that have some of their own, by address."""
    tables: dict[str, Labels | None] = field(default_factory=dict)
    """Of these corpora, by the address of their tokens."""
    tasks: dict[tuple[str, str], Task] = field(default_factory=dict)
    """Of columns of these tables, by the address of the tokens and the name of the column."""

    def find_labels(self, config: Config, name: str, seed: int) -> Labelled | None:
        """The task of a trial where it is a column of a corpus's own table, or the class folders' `label`.

        `seed` divides the pieces; it is that of the study, so that all of its seeds are scored on the same ones.

        Raises:
            ConfigError: for a task that is neither there nor one of the paper's.
            LabelError: for labels that cannot be used.
        """
        column = config.finetune.task
        if name == "sample" or (not config.finetune.corpus and name == TASKS[column].corpus):
            return None
        self.uris(config, [name])
        tokens = self.of(config)[name]
        if tokens.uri not in self.tables:
            self.tables[tokens.uri] = find_labels(self.files[name], tokens)
        labels = self.tables[tokens.uri]
        of_notes = note_task(tokens) if column == NOTES else None
        if of_notes:
            labels = self.tables[tokens.uri] = labels or unlabelled(tokens.there)
        elif labels is None or column not in labels.columns:
            require_column(name, labels, column)
            return None
        plan = LabelPlan(tokens=tokens, labels=labels, seed=seed, folds=config.study.folds, fold=config.finetune.fold)
        plan = self.labels.setdefault(plan.uri, plan)
        if (known := (tokens.uri, column)) not in self.tasks:
            kinds = dict(text.rpartition(":")[::2] for text in config.study.kinds)
            self.tasks[known] = of_notes or make_task(labels, column, name, kinds.get(column, ""))
            plan.require_divisible(self.tasks[known])
        return Labelled(self.tasks[known], plan.uri)

    def uris(self, config: Config, names: Iterable[str]) -> dict[str, str]:
        """Corpus -> address of its token store, whether or not it has been written.

        Raises:
            ValueError: for an unknown corpus; FileNotFoundError where it is not there.
        """
        plans, names = self.of(config), list(names)
        for name in names:
            if name not in self.files:
                self.files[name] = list_corpus(name, config.corpora.root)
            if name not in plans:
                plans[name] = plan_corpus(
                    name,
                    found=self.files[name],
                    corpora_root=config.corpora.root,
                    storage_root=config.storage.root,
                    protocol=config.protocol_in_force,
                    segment=config.tokens.segment,
                    notes=config.corpora.notes,
                )
        return {name: plans[name].uri for name in names}


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """The plan of a job, made once, before Ray starts."""

    config: Config
    corpora: CorpusPlans
    study: StudyPlan | None
    """The study, of jobs that run one."""

    @property
    def tokens(self) -> list[dict[str, CorpusPlan]]:
        """The token stores that the job needs, by corpus: a group for each way in which tokens are made."""
        groups, stores = self.corpora.plans.values(), self.study.stores if self.study else self.pretraining.stores
        needed = {self.corpora.labels[uri].tokens.uri if uri in self.corpora.labels else uri for uri in stores}
        chosen = [{name: each for name, each in group.items() if each.uri in needed} for group in groups]
        return [group for group in chosen if group]

    @property
    def pretraining(self) -> PretrainingSpec:
        """The pre-training that `config` itself describes, whether or not the job runs it."""
        stores = tuple(self.corpora.uris(self.config, self.config.corpora.names).values())
        return PretrainingSpec(key=run_key(self.config, stores), config=self.config, stores=stores)

    @property
    def pretrainings(self) -> Mapping[str, PretrainingSpec]:
        """The pre-trainings that the job needs, by key."""
        return {self.pretraining.key: self.pretraining} if self.study is None else self.study.pretrainings

    @property
    def open_pretrainings(self) -> list[str]:
        """Keys of those that have not been run to their end."""
        return [key for key, spec in self.pretrainings.items() if finished(spec.config, key) is None]

    @property
    def open_trials(self) -> list[str]:
        """Keys of the trials that still have to run."""
        return [key for key in self.study.trials if not settled(self.study.uri(key))] if self.study else []


def plan(config: Config, *, study: bool = False) -> JobPlan:
    """Plan the token stores of `corpora.names`, and with `study` the study that a configuration describes.

    Raises:
        ConfigError: for a bucket that cannot be used, or where settings do not fit together.
        ValueError: for an unknown corpus, or one without the splits or labels of a task; FileNotFoundError where it
            is not there.
    """
    storage.root.require_usable(config.storage.root)
    storage.require_bucket("corpora.root", config.corpora.root)
    places = {key: uri if is_shipped(uri) else storage.resolve(uri) for key, uri in _starts(config).items()}
    config = replace(config, places)
    if config.pretrain.start:
        start.require_fit(start.PRETRAIN, config.pretrain.start, config)
    corpora = CorpusPlans()
    made = plan_study(config, corpora.uris, corpora.find_labels) if study else None
    corpora.uris(config, config.corpora.names)
    if made:
        _require_tasks(made, corpora)
    return JobPlan(config=config, corpora=corpora, study=made)


def _starts(config: Config) -> dict[str, str]:
    """The weights that are started from: setting -> URI."""
    given = {start.PRETRAIN: config.pretrain.start, start.FINETUNE: config.finetune.start}
    return {key: uri for key, uri in given.items() if uri}


def _require_tasks(study: StudyPlan, corpora: CorpusPlans) -> None:
    """Refuse tasks for which the lists of their corpora have no splits or labels; as trials do, but before all work.

    Corpora that hold the same files under other splits are refused too: what one tests the other would learn.
    """
    stores = {each.uri: each for group in corpora.plans.values() for each in group.values()}
    for spec in study.trials.values():
        task, places = spec.task, dict[str, str]()
        for uri in dict.fromkeys((*spec.stores, *spec.tests)):
            labels = corpora.labels.get(uri)
            corpus = labels.tokens if labels else stores[uri]
            name = corpus.corpus.name
            if (other := places.setdefault(corpus.corpus.location(corpus.root), name)) != name:
                raise ConfigError(
                    f"finetune.corpus and study.tests: {other} and {name} divide the same files in two ways, so that "
                    "one tests what the other learns; use one of them"
                )
            if labels:
                continue  # its table was read, and says what it lacks
            splits = {piece.split for piece in corpus.there}
            require_splits(task, name, splits, needed=SPLITS if uri in spec.stores else {"test"})
            if task.level == "sequence":
                require_labels(task, name, {piece.label for piece in corpus.there})


def tokenize(plan: JobPlan) -> list[Summary]:
    """Write the token stores that a job needs, and the labels beside them, or find them; needs Ray.

    Raises:
        LabelError: where pieces cannot be divided; the token stores are there.
    """
    made = [summary for group in plan.tokens for summary in tokenize_plans(list(group.values()))]
    write_labels(list(plan.corpora.labels.values()))
    return made


def require_tokens(plan: JobPlan) -> None:
    """Make sure that the token stores of a job have been written.

    Raises:
        MissingInputError: names the job that writes those that have not.
    """
    for stores in plan.tokens:
        missing = tuple(name for name, each in stores.items() if find_manifest(each.uri) is None)
        if missing:
            config = replace(plan.config, {"corpora.names": missing})
            raise MissingInputError(
                f"no token store of {', '.join(missing)} under these settings; write it first (or let the job pipeline "
                f"run all stages):\n    {command_line('tokenize', config, also=('corpora.names',))}"
            )


def pretrain(plan: JobPlan) -> PretrainRun:
    """Pre-train on the token stores of `corpora.names`; needs Ray.

    Raises:
        MissingInputError: where a token store has not been written.
    """
    require_tokens(plan)
    run = run_pretraining(plan.config, plan.pretraining.stores)
    if name := plan.config.tracking.register:
        tracking.Tracker(tracking.uris(plan.config)).log(tracking.PRETRAINING, run.key).register(name)
    return run


def pretrained(config: Config) -> PretrainRun:
    """The finished pre-training of these settings.

    Raises:
        MissingInputError: where it has not been run to its end.
    """
    key = plan(config).pretraining.key
    done = finished(config, key)
    if done is None:
        raise MissingInputError(
            f"no finished pre-training {key} below {run_uri(config, key)}; run it first (or let the job pipeline "
            f"run all stages):\n    {command_line('pretrain', config)}"
        )
    return done


def study(plan: JobPlan) -> StudyResult:
    """Run a study, its pre-trainings included, and store its tables; needs Ray.

    Of two that run the same study at a time, the second waits, and finds then what the first has done.

    Raises:
        MissingInputError: where a token store has not been made.
    """
    assert plan.study, "plan(config, study=True)"
    require_tokens(plan)
    key = plan.study.key
    with lease(study_uri(plan.config, key), what=f"study {key}", report=logger.info) as held:
        result = run_study(plan.study, plots.answers)
        held.check()
        publish(plan.study, result)
    return result


def report(config: Config, key: str) -> str:
    """Write `report.html` of a study from what MLflow holds, and return its address.

    Raises:
        LookupError: where MLflow has no such study, or is not there itself: nothing is made.
        UnreachableError: where a tracking server does not answer.
    """
    where = tracking.uris(config)
    database = Path(where.uri.removeprefix(SQLITE))
    if where.uri.startswith(SQLITE) and not database.exists():
        raise LookupError(
            f"there is no study {key!r}, as there is no MLflow database at {database}; give the root of the job that "
            "made it, such as storage.root=output for `make demo`, or its tracking.uri"
        )
    if not tracking.caught_up(where):
        logger.warning("the report of %s lacks what is still to be sent: %s", key, tracking.amount(where))
    page = reports.write(config, key)
    report_is_written(config, key)
    return page


def flush(config: Config, *keys: str) -> list[str]:
    """Send what jobs could not, write the reports that waited for it and those of `keys`, and return their addresses.

    Raises:
        UnreachableError: where the server does not take all of it; nothing is lost.
    """
    where = tracking.uris(config)
    tracking.flush(where)
    pages = [report(config, key) for key in dict.fromkeys([*postponed_reports(config), *keys])]
    if pages:
        tracking.flush(where)
    return pages


def song(plan: JobPlan, result: StudyResult) -> str:
    """Write the page of a test piece as a model of the study labels it; its address, or nothing where there is none."""
    assert plan.study, "plan(config, study=True)"
    corpora = {each.uri: each for group in plan.corpora.plans.values() for each in group.values()}
    return songs.write(plan.study, corpora, result.outcomes)


def outcome(config: Config, result: StudyResult, song: str = "") -> str:
    """The text that a job prints at its end: the tables, the report that it writes now, and how to browse MLflow.

    `song`: address of the page of `annotated_song`, if there is one.
    """
    tables = table.build(result.outcomes, result.failed, known_baselines(config, result.key), config.study.tables)
    lines = ["", formats.to_text(tables), "", *findings.verdict(tables, config.begins_with)]
    if config.study.draws:
        lines += [f"{len(result.stopped)} draws were stopped early", "", sweep.report(config, result.outcomes)]
    page = _report_or_how(config, result.key)
    again = command_line("report", config, result.key, only=("tracking.uri",))
    mlflow = tracking.Tracker(tracking.uris(config)).browse(tracking.study_experiment(config.study.name))
    mlflow = mlflow.replace("\n", "\n        ")
    lines += ["", f"report  {page}", f"again   {again}", f"MLflow  {mlflow}"]
    lines += [f"listen  {song}  (open it in a browser)"] if song else []
    best = max(result.outcomes, key=lambda item: (item.variant == "pretrained", item.accuracy), default=None)
    if best and not config.study.draws:
        export = command_line(
            "export", config, f"run={best.trial}", f"output=exports/{best.task}", only=("tracking.uri",)
        )
        lines.append(f"next    {export}")
    return "\n".join(lines)


def _report_or_how(config: Config, key: str) -> str:
    """The address of the report, or how it is written later where a tracking server does not answer."""
    where = tracking.uris(config)
    with suppress(UnreachableError):
        if tracking.caught_up(where):
            return report(config, key)
    postpone_report(config, key)
    return (
        f"not yet, nor are the tables in MLflow, as {where.uri} has not got all results. Nothing is lost; when it "
        f"answers:\n        {tracking.flush_command(config, key)}"
    )
