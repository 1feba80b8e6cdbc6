"""Where runs are recorded: a tracking server, or a database."""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from midibert_ray import storage
from midibert_ray.settings.config import Config, ConfigError

SQLITE = "sqlite:///"

_DATABASE = r"(sqlite|postgresql|mysql|mssql)(\+\w+)?://"


@dataclass(frozen=True)
class Address:
    """Where runs are recorded; small and picklable, so that controllers on other nodes can open it."""

    uri: str
    artifacts: str
    """Folder or URI for the artifacts of new experiments; empty leaves it to a tracking server."""

    spool: str = ""
    """Folder or URI where records wait for a tracking server; empty for a database, which takes them at once."""

    def command(self) -> str:
        """What to type to browse the runs, with the mlflow of this environment."""
        if is_server(self.uri):
            return f"open {self.uri}"
        program = Path(sys.executable).with_name("mlflow")
        words = [str(program) if program.exists() else "mlflow", "ui", "--backend-store-uri", self.uri]
        return shlex.join(words)


def address(config: Config) -> Address:
    """Where a configuration records its runs: `tracking.uri`, or sqlite below a local storage root.

    Raises:
        ConfigError: for a remote storage root without a tracking server, or anything that is neither a server nor a
            database: MLflow keeps its store of files for old runs only.
    """
    root = storage.resolve(config.storage.root)
    uri = config.tracking.uri
    if is_server(uri):
        return Address(uri, "", storage.root.spool(root, _folder(uri)))
    if uri and not re.match(_DATABASE, uri, re.IGNORECASE):
        raise ConfigError(
            f"tracking.uri={uri!r} is not allowed; use http(s)://server, sqlite:///file, another database that MLflow "
            "knows (postgresql://, mysql://, mssql://), or nothing"
        )
    if not storage.is_local(config.storage.root):
        if not uri:
            raise ConfigError(
                f"tracking.uri is empty while storage.root={root!r} is remote; give a server, tracking.uri=http://HOST:5000"
            )
        return Address(uri, _artifacts_of(uri, root))
    return Address(
        uri or SQLITE + storage.root.mlflow_database(root), Path(storage.root.mlflow_artifacts(root)).as_uri()
    )


def _artifacts_of(uri: str, root: str) -> str:
    """Where the artifacts of a database go while the storage root is a bucket.

    Those of sqlite, which serves one machine, stay beside it. For another database MLflow itself writes to the bucket,
    with boto3 (s3://) or google-cloud-storage (gs://), and takes the server of one's own from MLFLOW_S3_ENDPOINT_URL.
    """
    if uri.startswith(SQLITE):
        return Path(storage.resolve(uri.removeprefix(SQLITE))).with_name("mlflow").as_uri()
    return storage.without_query(storage.root.mlflow_artifacts(root))


def is_server(uri: str) -> bool:
    """Whether a tracking URI names a server."""
    return uri.lower().startswith(("http://", "https://"))


def _folder(uri: str) -> str:
    """The name of a server as a folder: `http://10.0.0.5:5000/` -> `http-10.0.0.5-5000`."""
    return re.sub(r"[^a-z0-9.]+", "-", uri.lower()).strip("-.")
