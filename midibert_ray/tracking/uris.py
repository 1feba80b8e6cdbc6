"""The tracking server or database that records runs."""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from midibert_ray import storage
from midibert_ray.settings.config import Config, ConfigError
from midibert_ray.settings.secrets import is_database, is_server, require_no_secret

SQLITE = "sqlite:///"


@dataclass(frozen=True)
class TrackingUris:
    """Where runs are recorded; small and picklable, so that controllers on other nodes can open it."""

    uri: str
    """MLflow's tracking URI."""
    artifacts: str
    """Root URI for the artifacts of new experiments; empty leaves it to a tracking server."""
    spool: str = ""
    """Root URI of the records that wait for a tracking server; empty for a database, which takes them at once."""

    def command(self) -> str:
        """The command line that shows the runs of a database, with the mlflow of this environment."""
        program = Path(sys.executable).with_name("mlflow")
        args = [str(program) if program.exists() else "mlflow", "ui", "--backend-store-uri", self.uri]
        # Else its server also starts ten processes for scheduled jobs, of which there are none.
        return f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {shlex.join(args)}"


def uris(config: Config) -> TrackingUris:
    """The URIs that a configuration names: `tracking.uri`, or sqlite below a local storage root.

    Raises:
        ConfigError: for a URI that may hold a secret; for a remote storage root without a tracking server; for a URI
            that is neither a server's nor a database's: MLflow keeps its store of files for old runs only.
    """
    root = storage.resolve(config.storage.root)
    uri = config.tracking.uri
    require_no_secret("tracking.uri", uri)
    if is_server(uri):
        folder = re.sub(r"[^a-z0-9.]+", "-", uri.lower()).strip("-.")  # http://10.0.0.5:5000/ -> http-10.0.0.5-5000
        return TrackingUris(uri, "", storage.root.spool(root, folder))
    if uri and not is_database(uri):
        raise ConfigError(
            f"tracking.uri={uri!r} is not allowed; use http(s)://server, sqlite:///file, another database that "
            "MLflow knows (postgresql://, mysql://, mssql://), or nothing"
        )
    artifacts = storage.root.mlflow_artifacts(root)
    if storage.is_local(root):
        return TrackingUris(uri or SQLITE + storage.root.mlflow_database(root), Path(artifacts).as_uri())
    if not uri:
        raise ConfigError(
            f"tracking.uri is empty while storage.root={root!r} is remote; give a server, tracking.uri=http://HOST:5000"
        )
    if uri.startswith(SQLITE):  # serves one machine, and so do the artifacts beside it
        return TrackingUris(uri, Path(storage.resolve(uri.removeprefix(SQLITE))).with_name("mlflow").as_uri())
    # MLflow itself writes to the bucket, with boto3 (s3://) or google-cloud-storage (gs://), and takes the server of
    # one's own from MLFLOW_S3_ENDPOINT_URL.
    return TrackingUris(uri, storage.without_query(artifacts))
