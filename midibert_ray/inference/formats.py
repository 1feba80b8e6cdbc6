"""An annotation as files: MIDI, CSV, Parquet, JAMS, a page to listen to. The same annotation gives the same bytes."""

from collections.abc import Callable, Sequence

import pyarrow as pa

from midibert_ray import storage
from midibert_ray.corpora.labels import MIDI_SUFFIXES
from midibert_ray.inference.annotation import Annotation
from midibert_ray.inference.jams import to_jams
from midibert_ray.settings.validators import require_some_of

ENDINGS = {"midi": "", "csv": ".csv", "parquet": ".parquet", "jams": ".jams", "html": ".html"}
"""Format -> what is added to the name of the input; of a MIDI file the new MIDI file has the same name."""


def ending(name: str, format: str) -> str:
    """The ending that is added to the name of an input."""
    return ENDINGS[format] or ("" if name.lower().endswith(MIDI_SUFFIXES) else ".mid")


def parse_formats(text: str) -> tuple[str, ...]:
    """The formats that `formats=` names, in an order of their own.

    Raises:
        ConfigError: for none, and for an unknown one.
    """
    given = tuple(filter(None, (word.strip() for word in text.split(","))))
    require_some_of("formats", given, tuple(ENDINGS))
    return tuple(name for name in ENDINGS if name in given)


def render(
    annotation: Annotation, formats: Sequence[str], *, name: str, model: str, midi: Callable[[], bytes]
) -> dict[str, bytes]:
    """The outputs of one piece by the ending of their name.

    Args:
        annotation: of the piece.
        formats: some of `ENDINGS`.
        name: of the input, below its folder.
        model: its digest.
        midi: gives `Annotation.to_midi` as the bytes of a file.
    """
    makers: dict[str, Callable[[], bytes]] = {
        "midi": midi,
        "csv": lambda: annotation.notes.to_csv(index=False, lineterminator="\n", float_format="%.6f").encode(),
        "parquet": lambda: _parquet(annotation, name),
        "jams": lambda: to_jams(annotation, title=name, model=model).encode(),
        "html": lambda: annotation.to_html().encode(),
    }
    return {ending(name, each): makers[each]() for each in formats}


def _parquet(annotation: Annotation, name: str) -> bytes:
    table = pa.Table.from_pandas(annotation.notes.assign(file=name), preserve_index=False)
    return storage.parquet(table)
