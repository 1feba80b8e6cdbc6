"""`report.html`: one self-contained page about a study, made from MLflow alone."""

from collections.abc import Sequence
from datetime import UTC, datetime

from midibert_ray import storage
from midibert_ray.report import table
from midibert_ray.report.findings import verdict
from midibert_ray.report.load import LoadedStudy, load
from midibert_ray.report.page import Section, document
from midibert_ray.report.sections import all_sections, learning_curves
from midibert_ray.settings.config import Config
from midibert_ray.settings.validators import require_name


def write(config: Config, key: str) -> str:
    """Write the report of a study and return its URI, `{root}/reports/<study>/report.html`.

    Raises:
        LookupError: where MLflow has no such study.
        UnreachableError: where a tracking server does not answer.
    """
    study = load(config, key)
    sections = all_sections(study)
    page = _page(study, sections)
    target = uri(config, study.key)
    storage.write_bytes(target, page.encode())
    run = study.tracker.log(study.experiment, study.key)
    run.text(page, "report.html")
    for name, picture in learning_curves(sections):
        run.figure(picture, name)
    return target


def uri(config: Config, key: str) -> str:
    """The URI of the report of the study with this key.

    Raises:
        ConfigError: for a key that cannot be a name; it may come from a tracking server that others write to.
    """
    require_name("the key of a study", key)
    return storage.root.report(config.storage.root, key)


def render(study: LoadedStudy) -> str:
    """The page as HTML; every picture and style is within it."""
    return _page(study, all_sections(study))


def _page(study: LoadedStudy, sections: Sequence[Section]) -> str:
    params = study.parent.data.params
    hours = sum(score.device_hours for score in table.scores(study.tables).values())
    started = datetime.fromtimestamp(study.parent.info.start_time / 1000, UTC)
    facts = {
        "protocol": study.parent.data.tags.get("protocol", "").replace(",", " and "),
        "model": f"{params['model.layers']} layers × {params['model.hidden']}, {params['model.attention']}",
        "pre-trained on": params["corpora.names"].replace(",", ", ") if study.encoders else "",
        "trials": f"{len(study.outcomes)} finished, {len(study.failed)} failed",
        "device-hours": f"{hours:.2f}",
        "first started": f"{started:%Y-%m-%d %H:%M} UTC",
    }
    facts = {name: fact for name, fact in facts.items() if fact}
    start = params.get("finetune.start") or params.get("pretrain.start", "")
    return document(study.key, sections, facts, verdict(study.tables, start))
