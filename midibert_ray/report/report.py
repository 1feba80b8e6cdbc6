"""`report.html`: one self-contained page about a study, made from MLflow alone."""

from datetime import UTC, datetime

from midibert_ray import storage
from midibert_ray.report import table
from midibert_ray.report.load import LoadedStudy, load
from midibert_ray.report.page import document
from midibert_ray.report.sections import all_sections
from midibert_ray.settings.config import Config
from midibert_ray.settings.validators import require_name


def write(config: Config, key: str) -> str:
    """Make the report of a study; returns its URI, `{root}/reports/<study>/report.html`.

    Raises:
        LookupError: where MLflow has no such study.
        UnreachableError: where a tracking server does not answer.
    """
    source = load(config, key)
    page = render(source)
    target = uri(config, source.key)
    storage.write_bytes(target, page.encode())
    source.tracker.log(source.experiment, source.key).text(page, "report.html")
    return target


def uri(config: Config, key: str) -> str:
    """The URI of the report of the study with this key.

    Raises:
        ConfigError: for a key that cannot be a name; it may come from a tracking server that others write to.
    """
    require_name("the key of a study", key)
    return storage.root.report(config.storage.root, key)


def render(source: LoadedStudy) -> str:
    """The page as HTML; every picture and style is within it."""
    return document(source.key, all_sections(source), facts=_facts(source))


def _facts(source: LoadedStudy) -> dict[str, str]:
    """The head of the page: what was studied."""
    params = source.parent.data.params
    hours = sum(score.device_hours for score in table.scores(source.tables).values())
    return {
        "protocol": source.parent.data.tags.get("protocol", "").replace(",", " and "),
        "model": f"{params['model.layers']} layers × {params['model.hidden']}, {params['model.attention']}",
        "pre-trained on": params["corpora.names"].replace(",", ", "),
        "trials": f"{len(source.outcomes)} finished, {len(source.failed)} failed",
        "device-hours": f"{hours:.2f}",
        "first started": f"{_date(source.parent.info.start_time)} UTC",
    }


def _date(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M")
