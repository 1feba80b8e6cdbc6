"""Open a model from a folder, a bucket, or MLflow."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from midibert_ray.inference.annotator import Annotator, protocol_of
from midibert_ray.model.calibration import CALIBRATION, Calibration
from midibert_ray.model.folder import WEIGHT_FILES, ModelFileError, load_checkpoint
from midibert_ray.settings import shipped

_FILES = (*WEIGHT_FILES, CALIBRATION)
"""Files of a model's folder that are read."""
MLFLOW = ("runs:/", "models:/", "mlflow-artifacts:/")
"""Beginnings of URIs of models that MLflow has."""


def load(uri: str | PathLike[str], device: str | torch.device | None = None, **options: Any) -> Annotator:
    """A model, ready for anybody's music.

    Args:
        uri: a folder as `midibert export` writes it, local or in a bucket (`s3://`, `gs://`), or MLflow's `runs:/...`
            or `models:/...`; a local folder needs neither Ray nor DeepSpeed nor MLflow. Where there is no such folder,
            the name of a model that ships with the package.
        device: None takes a GPU where there is one.
        **options: `precision` and `overlap`, see `Annotator`.

    Raises:
        FileNotFoundError: there is no such model.
        ModelFileError: the folder is damaged, or holds another kind of model.
    """
    with _local(str(uri)) as folder:
        with _without_progress_bars():
            model: Any = load_checkpoint(folder)
        try:
            protocol_of(model.config)
            calibration = Calibration.find(folder)
        except ValueError as error:
            raise ModelFileError(f"{folder}: {error}") from error
    return Annotator(model, device=device, calibration=calibration, **options)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Transformers has one for a tenth of a second."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _local(uri: str) -> Iterator[Path]:
    """The folder with the model's files, on this machine."""
    if "://" not in uri and not uri.startswith(MLFLOW):
        folder = Path(shipped.located(uri)).expanduser()
        if not folder.exists():
            raise FileNotFoundError(
                f"{uri} is not a model's folder: {' and '.join(WEIGHT_FILES)} not found in it; models that ship with "
                f"midibert_ray: {', '.join(shipped.names()) or 'none'}"
            )
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        if uri.startswith(MLFLOW):
            from midibert_ray.tracking.models import weights

            with _local(weights(uri, Path(scratch))) as folder:
                yield folder
        else:
            from midibert_ray import storage

            if storage.is_local(uri):
                yield Path(storage.resolve(uri))
                return
            found = storage.names(uri)
            if missing := [name for name in WEIGHT_FILES if name not in found]:
                raise FileNotFoundError(f"{uri} is not a model's folder: {' and '.join(missing)} not found in it")
            storage.download(uri, Path(scratch), [name for name in found if name in _FILES])
            yield Path(scratch)
