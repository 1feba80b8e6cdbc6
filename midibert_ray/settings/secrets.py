"""Addresses that carry a secret are refused, and never shown: settings are printed, and recorded in MLflow."""

import re
import string
from urllib.parse import urlsplit

from midibert_ray.settings.validators import ConfigError

_DATABASE = r"(sqlite|postgres(ql)?|mysql|mariadb|mssql|oracle)(\+\w+)?:"

HELP = (
    "settings end up in logs, in MLflow and on Ray's dashboard; leave it out of the address, and give it to every node "
    "in its environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD, PGPASSWORD ...) or in a file (~/.aws/credentials, ~/.mlflow/credentials, ~/.pgpass ...)"
)

_QUERY = re.compile(
    "application_name|cache|charset|check_same_thread|connect_timeout|driver|encrypt|mode|service|sslcert|sslcrl|sslkey"
    "|sslmode|sslrootcert|ssl_ca|ssl_cert|ssl_key|target_session_attrs|timeout|trustservercertificate"
    "|trusted_connection|uri|unix_socket",
    re.IGNORECASE,
)
"""Words that a database's address may have in its query: how it is reached, and files of keys, but no keys."""

_USER = re.compile(r"[\w.+-]{0,64}")
_HOST = re.compile(r"([\w.-]+|\[[0-9A-Fa-f:.]+\]|[0-9A-Fa-f:.]+)?")
_PATH = re.compile(r"[\w./~:+-]*")
"""The path of a server; = and % may begin a key, and a password that holds a slash ends before an @."""


def is_server(uri: str) -> bool:
    """Tell whether a tracking URI names a server."""
    return uri.lower().startswith(("http://", "https://"))


def is_database(uri: str) -> bool:
    """Tell whether a URI names a database."""
    return bool(re.match(_DATABASE, uri, re.IGNORECASE))


def require_no_secret(key: str, uri: str) -> None:
    """Refuse the URI of a tracking server or database that is not plainly free of a secret.

    Raises:
        ConfigError: naming the key, not the value.
    """
    plain = _is_plain_server(uri) if is_server(uri) else _is_plain_database(uri) if is_database(uri) else _is_plain(uri)
    if not plain:
        raise ConfigError(f"{key} holds a password or a key, or may hold one (not shown here), and {HELP}")


def _is_plain_server(uri: str) -> bool:
    """Tell whether `requests` would find a host, a port and a path in a server's URI, and nothing else."""
    if not set(uri) <= set(string.printable) - set(string.whitespace):
        return False
    try:
        found = urlsplit(uri)
        port = found.port
    except ValueError:  # a password stands where the port would
        return False
    netloc = found.netloc.removesuffix(f":{port}") if port is not None else found.netloc.removesuffix(":")
    rest = set("?#;,\\") & set(uri)
    return bool(netloc and _HOST.fullmatch(netloc) and _PATH.fullmatch(found.path)) and not rest


def _is_plain_database(uri: str) -> bool:
    """Tell whether SQLAlchemy would find no password in a database's URI, nor anything that may be one."""
    from sqlalchemy.engine import make_url  # here, as it takes a quarter of a second
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):  # a password stands where the port would
        return False
    if url.password is not None or not all(map(_QUERY.fullmatch, url.query)):
        return False
    if url.drivername.startswith("sqlite"):  # its database is a path, which may hold any character
        return not (url.username or url.host or url.port)
    names = _USER.fullmatch(url.username or "") and _HOST.fullmatch(url.host or "")
    return bool(names and re.fullmatch(r"[\w./ +-]*", url.database or ""))


def _is_plain(uri: str) -> bool:
    """Tell whether a text that is no known URI may be shown."""
    return bool(re.fullmatch(r"(\w+://)?[\w./ +~-]*", uri))
