"""Self-contained HTML from the templates: pages, and how their numbers and pictures are written."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure

from midibert_ray.inference.page import environment
from midibert_ray.report.formats import between, hours, percent
from midibert_ray.report.statistics import p_text
from midibert_ray.report.table import STATISTICS, ResultTable

DPI = 160
CSS_PIXELS = 96
"""To the inch, as browsers have it; pictures hold more, for fine screens and for print."""


class Section(NamedTuple):
    """A part of a page that the line of links names."""

    heading: str
    macro: str
    """Of `sections.html`."""
    data: Any
    """The macro's argument; a section without it is left out."""


def document(title: str, sections: Sequence[Section], facts: Mapping[str, str], sentences: Sequence[str] = ()) -> str:
    """A page; facts and sentences stand in its head."""
    shown = [section for section in sections if section.data]
    return (
        _environment()
        .get_template("report/page.html")
        .render(title=title, facts=facts, sentences=sentences, sections=shown)
    )


def to_html(tables: Sequence[ResultTable], sentences: Sequence[str] = ()) -> str:
    """The tables of a study alone, as a page."""
    sections = [Section(table.title, "table", table) for table in tables]
    return document("Results", [*sections, Section("How to read them", "prose", STATISTICS)], {}, sentences)


def picture(figure: Figure, alt: str) -> Markup:
    """A figure as an `img` element that carries its own data."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    data = base64.b64encode(buffer.getvalue()).decode()
    width = round(figure.get_size_inches()[0] * CSS_PIXELS)
    return Markup('<img alt="{}" width={} src="data:image/png;base64,{}">').format(alt, width, data)


def _environment() -> Environment:
    """The templates of this room, and those of the players in it."""
    made = environment("report")
    made.filters |= {each.__name__: each for each in (between, hours, percent, p_text, picture)}
    return made
