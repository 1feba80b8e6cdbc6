"""The code of the models that MLflow holds; MLflow copies this file into each, and runs it when one is opened.

Rows in: `path` (a file that this process sees) or `midi` (a file's bytes). Rows out: a row a note, a row a piece, or a
row an embedding, as the model has a head for notes, one for pieces or none; `piece` counts the rows in, from 0.
"""

from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc.model import PythonModel

import midibert_ray


class ServedModel(PythonModel):
    """A model whose weights stay where `model_config["weights"]` says."""

    def load_context(self, context: Any) -> None:
        """Open the weights."""
        self._model = midibert_ray.load(context.model_config["weights"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Labels or embeddings of pieces; labels below the probability `abstain` are empty.

        Raises:
            ValueError: a row has neither a path nor bytes, or a piece cannot be used.
        """
        abstain = float((params or {}).get("abstain", 0.0))
        rows = [self._rows(row, abstain) for row in model_input.to_dict("records")]
        return pd.concat(rows, keys=range(len(rows)), names=["piece"]).reset_index("piece").reset_index(drop=True)

    def _rows(self, row: dict[str, Any], abstain: float) -> pd.DataFrame:
        found = [value for value in (row.get("midi"), row.get("path")) if isinstance(value, bytes | str) and value]
        if not found:
            raise ValueError("a row has neither `path` nor `midi`; give the path or the bytes of a MIDI file")
        if self._model.level is None:
            return pd.DataFrame({"embedding": np.asarray(self._model.embed([found[0]])).tolist()})
        song = self._model.annotate(found[0], abstain=abstain)
        if self._model.level == "note":
            return song.notes
        probability = float("nan") if self._model.kind == "number" else float(song.probabilities.max())
        return pd.DataFrame({"label": [song.label], "probability": [probability]})


mlflow.models.set_model(ServedModel())
