"""The layout below the storage root, `storage.root`: the URI of everything that jobs keep.

    {root}/tokens/<corpus>-<hash>/      token stores
    {root}/runs/<run>/                  pre-training runs: Ray Train's state and checkpoints
    {root}/studies/<study>/             Ray Tune's state and the trials' checkpoints
    {root}/reports/<study>/             report.html and its tables
    {root}/spool/<server>/              records that a tracking server has not got yet
    {root}/unpublished/<study>.json     studies whose report waits for that
    {root}/mlflow.db, {root}/mlflow/    MLflow's database and artifacts, where no tracking server is named

Every function takes the root as it is configured: a relative path, a `~` and the query of a bucket are resolved here.
"""

from midibert_ray.storage.files import join, resolve


def tokens(root: str) -> str:
    """The folder of all token stores."""
    return join(resolve(root), "tokens")


def runs(root: str) -> str:
    """The folder of all pre-training runs."""
    return join(resolve(root), "runs")


def studies(root: str) -> str:
    """The folder of all studies."""
    return join(resolve(root), "studies")


def report(root: str, study: str) -> str:
    """The report of a study."""
    return join(resolve(root), "reports", study, "report.html")


def spool(root: str, server: str) -> str:
    """The folder of the records that wait for a tracking server."""
    return join(resolve(root), "spool", server)


def unpublished(root: str) -> str:
    """The folder of the marks of studies whose report waits for the tracking server."""
    return join(resolve(root), "unpublished")


def mlflow_database(root: str) -> str:
    """The sqlite file of MLflow."""
    return join(resolve(root), "mlflow.db")


def mlflow_artifacts(root: str) -> str:
    """The folder of MLflow's artifacts."""
    return join(resolve(root), "mlflow")
