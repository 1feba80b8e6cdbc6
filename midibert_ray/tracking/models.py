"""Models that MLflow holds, as folders."""

from pathlib import Path


def download_model(uri: str, folder: Path) -> Path:
    """The folder with the weights of a model of MLflow's, downloaded into `folder`.

    Args:
        uri: `runs:/<run>/<path>` or `models:/<name>/<version>`; the server is MLFLOW_TRACKING_URI's.
        folder: empty.

    Raises:
        FileNotFoundError: there is no such model, or no weights of ours in it.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        root = Path(download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        raise FileNotFoundError(f"{uri}: MLflow has no such model here (set MLFLOW_TRACKING_URI): {error}") from error
    for found in sorted(root.rglob("config.json")):
        if found.with_name("model.safetensors").is_file():
            return found.parent
    raise FileNotFoundError(f"{uri} holds no model of this package: no config.json beside a model.safetensors")
