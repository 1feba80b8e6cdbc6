"""The models that come with the package, by their names."""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "weights"
"""A folder below it for each of them, as `midibert export` writes it."""


def names() -> list[str]:
    """Names of these models."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def located(uri: str) -> str:
    """The folder of a model that is given by its name; any other model as it is given."""
    return str(FOLDER / uri) if is_shipped(uri) else uri


def is_shipped(uri: str) -> bool:
    """True where a model is one of these: a folder of the user's comes before it."""
    return uri in names() and not Path(uri).exists()
