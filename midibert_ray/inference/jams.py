"""Annotations as JAMS, the JSON of music annotations (Humphrey et al., ISMIR 2014), https://jams.readthedocs.io.

A note-level model gives one annotation a label in JAMS' own namespace `note_midi` (value: MIDI pitch; confidence:
probability of the label), which its `sandbox` names as `label`; a sequence-level model gives one in `tag_open` over
the whole piece. `jams.load` validates the files with no namespace of ours.
"""

import json
import math
from typing import Any

from midibert_ray import __version__
from midibert_ray.inference.annotation import Annotation
from midibert_ray.music.tasks import TAG_MARK

SCHEMA_VERSION = "0.3.5"
"""Of JAMS."""


def to_jams(annotation: Annotation, *, title: str, model: str) -> str:
    """The JSON text of an `Annotation`.

    Args:
        annotation: what `annotate` gave.
        title: name of the file.
        model: name or digest of the model, for `annotation_tools`.
    """
    notes = annotation.notes
    duration = round(float(notes["offset_s"].max()), 6)
    metadata = {"annotation_tools": f"midibert_ray {__version__}, model {model}", "data_source": "program"}
    parts = []
    if annotation.level == "sequence":
        sure = annotation.probabilities
        tags = annotation.label.split(TAG_MARK) if annotation.label else []
        parts.append(_part("tag_open", {}, [_observation(0.0, duration, tag, sure.get(tag, math.nan)) for tag in tags]))
    else:
        for label in annotation.classes:
            own = notes[notes["label"] == label]
            columns = (own["onset_s"], own["offset_s"], own["pitch"], own["probability"])
            rows = zip(*(column.tolist() for column in columns), strict=True)
            data = [_observation(start, end - start, float(pitch), sure) for start, end, pitch, sure in rows]
            parts.append(_part("note_midi", {"label": label}, data))
    for part in parts:
        part["annotation_metadata"] = metadata
        part["duration"] = duration
    head = {"title": title, "duration": duration, "jams_version": SCHEMA_VERSION}
    return json.dumps({"annotations": parts, "file_metadata": head, "sandbox": {}}, indent=1) + "\n"


def _part(namespace: str, sandbox: dict[str, Any], data: list[dict[str, Any]]) -> dict[str, Any]:
    return {"namespace": namespace, "time": 0, "sandbox": sandbox, "data": data}


def _observation(time: float, duration: float, value: object, confidence: float) -> dict[str, Any]:
    sure = None if confidence is None or math.isnan(confidence) else round(float(confidence), 6)
    return {"time": round(time, 6), "duration": round(duration, 6), "value": value, "confidence": sure}
