"""Models that MLflow holds: some lines of code and a description; their weights stay where training wrote them.

Weights are stored once, in the checkpoint of a trial or a pre-training, and the model names its URI. Whoever moves the
storage root tells MLflow: `mlflow.pyfunc.load_model(uri, model_config={"weights": "s3://bucket/elsewhere"})`.
"""

import logging
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, RunInfo
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

logger = logging.getLogger(__name__)

NAME = "model"
"""Name of the model of a run: `runs:/<run>/model`."""
BEST = "best"
"""Alias of the version of a registered model that was registered last."""
_CODE = Path(__file__).with_name("served.py")
_ROWS: dict[str, dict[str, Any]] = {
    "note": {
        "onset_s": "double",
        "offset_s": "double",
        "pitch": "long",
        "velocity": "long",
        "track": "long",
        "instrument": "string",
        "program": "long",
        "is_drum": "boolean",
        "bar": "long",
        "position": "long",
        "label": "string",
        "probability": "float",
        "unseen": "string",
    },
    "sequence": {"label": "string", "probability": "double"},
    "encoder": {"embedding": Array(DataType.float)},
}
"""Columns of the rows that a model gives, by its level, behind `piece`."""


def signature(level: str) -> ModelSignature:
    """Rows in and out of a model of level `note`, `sequence` or `encoder`; see `served.py`."""
    sources: list[Any] = [ColSpec("string", "path", required=False), ColSpec("binary", "midi", required=False)]
    columns: list[Any] = [ColSpec(kind, name) for name, kind in {"piece": "long", **_ROWS[level]}.items()]
    params: Any = None if level == "encoder" else ParamSchema([ParamSpec("abstain", "double", 0.0)])
    return ModelSignature(Schema(sources), Schema(columns), params)


def log(client: MlflowClient, run: RunInfo, content: Mapping[str, Any]) -> None:
    """Log the model of a run; one that is there already stays as it is.

    `content`: `weights`, the URI of a folder; `level`, see `signature`; `params`, texts; `requirement`, for pip.
    """
    earlier = find(client, run)
    known = earlier or client.create_logged_model(
        run.experiment_id, NAME, run.run_id, params=dict(content["params"]), model_type=content["level"]
    )
    if str(known.status) == "READY":
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, NAME)
        _save(folder, known, content)
        # A copy would keep the mode of the package's own file, and let others read what is its owner's alone.
        (folder / _CODE.name).chmod((folder / "MLmodel").stat().st_mode)
        client.log_model_artifacts(known.model_id, str(folder))
    outputs = client.get_run(run.run_id).outputs if earlier else None
    if known.model_id not in [each.model_id for each in (outputs.model_outputs if outputs else [])]:
        client.log_outputs(run.run_id, [LoggedModelOutput(known.model_id, step=0)])
    client.finalize_logged_model(known.model_id, "READY")


def _save(folder: Path, model: LoggedModel, content: Mapping[str, Any]) -> None:
    # It would run an example, which tells nothing new, and this package may be a checkout that pip does not know.
    logging.getLogger("mlflow.utils.requirements_utils").setLevel(logging.ERROR)
    described = Model(
        artifact_path=model.artifact_location,
        run_id=model.source_run_id,
        model_id=model.model_id,
        model_uuid=model.model_id,
    )
    with warnings.catch_warnings(action="ignore"):
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(_CODE),
            model_config={"weights": content["weights"]},
            signature=signature(content["level"]),
            pip_requirements=[content["requirement"]],
            mlflow_model=described,
        )


def find(client: MlflowClient, run: RunInfo) -> LoggedModel | None:
    """The model that was logged with a run, whole or not."""
    condition = f"source_run_id = '{run.run_id}' AND name = '{NAME}'"
    return next(iter(client.search_logged_models([run.experiment_id], condition)), None)


def register(client: MlflowClient, run: RunInfo, name: str) -> None:
    """Make the model of a run a version of a registered model, once, and let `models:/<name>@best` be that one."""
    model = find(client, run)
    if model is None:  # it was recorded by an earlier version
        logger.warning("no model is registered as %s, as none was logged with the run %s", name, run.run_id)
        return
    with suppress(MlflowException):  # it is there; where it is not, the next request says why
        client.create_registered_model(name)
    versions = client.search_model_versions(f"name = '{name}'")
    known = next((each for each in versions if each.run_id == run.run_id), None)
    known = known or client.create_model_version(
        name, model.artifact_location, run.run_id, model_id=model.model_id, await_creation_for=0
    )
    client.set_registered_model_alias(name, BEST, known.version)


def weights(uri: str, folder: Path) -> str:
    """The URI of the folder that holds the weights of a model of MLflow's.

    Args:
        uri: `runs:/<run>/<name>`, `models:/<name>/<version>` or `models:/<name>@<alias>`, of MLFLOW_TRACKING_URI.
        folder: takes what is downloaded; empty.

    Raises:
        FileNotFoundError: there is no such model, or no weights of ours in it.
    """
    try:
        root = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        raise FileNotFoundError(f"{uri}: MLflow has no such model here (set MLFLOW_TRACKING_URI): {error}") from error
    if (root / "MLmodel").is_file():
        named = Model.load(str(root)).flavors.get("python_function", {}).get("config") or {}
        if "weights" in named:
            return str(named["weights"])
    for found in sorted(root.rglob("config.json")):
        if found.with_name("model.safetensors").is_file():
            return str(found.parent)
    raise FileNotFoundError(f"{uri} holds no model of this package: no config.json beside a model.safetensors")
