"""The papers at the top: one version everywhere, a citation that tools can read, commands that exist."""

import re
import tomllib
from pathlib import Path

import yaml

import midibert_ray
from midibert_ray.cli.commands import COMMANDS
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import flatten

ROOT = Path(__file__).parents[1]
PAPERS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "cluster/README.md")]


def test_the_citation_is_valid() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["type"] == "software"
    assert citation["version"] == midibert_ray.__version__
    for entry in (citation, *citation["references"]):
        assert entry["title"]
        assert all(
            {"name"} == author.keys() or {"family-names", "given-names"} == author.keys() for author in entry["authors"]
        )
    (paper,) = citation["references"]
    assert {"type", "title", "authors", "year"} <= paper.keys()
    readme = (ROOT / "README.md").read_text()
    assert paper["url"] in readme
    assert all(author["family-names"] in readme for author in paper["authors"])


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## (.*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0].split(" - ")[0] == midibert_ray.__version__
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - (\d{4}-\d\d-\d\d|Unreleased)", heading) for heading in headings)
    kinds = re.findall(r"^### (.*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "midibert_ray.__version__"}


def test_commands_of_the_papers_name_jobs_and_settings_that_exist() -> None:
    for path in PAPERS:
        blocks = "\n".join(re.findall(r"```bash\n(.*?)```", path.read_text(), re.DOTALL))
        assert set(re.findall(r"^midibert (\w+)", blocks, re.MULTILINE)) <= COMMANDS.keys(), path
        assert set(re.findall(r"(?<![\w/])jobs/(\w+)\.py", path.read_text())) - {"NAME", "JOB"} <= COMMANDS.keys(), path
        used = set(re.findall(r"(?<![\w.])([a-z_]+\.[a-z_]+)=", blocks))
        assert used <= flatten(Config()).keys(), path
