"""Addresses of servers and databases: what may hold a secret is refused and not shown, the rest passes."""

import pytest

from midibert_ray import tracking
from midibert_ray.settings.config import Config, ConfigError
from midibert_ray.settings.overrides import refuse_secrets, replace
from midibert_ray.settings.secrets import is_server, require_no_secret

DATABASES = ("postgresql", "postgresql+psycopg2", "mysql+pymysql", "mssql+pyodbc", "POSTGRESQL", "postgres")
PASSWORDS = (
    "hunter2",
    "hun/ter2",
    "hun?ter2",
    "hun#ter2",
    "hun ter2",
    "hun,ter2",
    "hun@ter2",
    "hun:ter2",
    "5432/hunter2",
)


def refused(uri: str) -> None:
    for act in (
        lambda: require_no_secret("tracking.uri", uri),
        lambda: refuse_secrets([f"tracking.uri={uri}"]),
        lambda: tracking.uris(replace(Config(), {"tracking.uri": uri})),
    ):
        with pytest.raises(ConfigError, match=r"^tracking\.uri holds a password or a key") as error:
            act()
        assert "ter2" not in str(error.value)
        assert "PGPASSWORD" in str(error.value)


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("scheme", DATABASES)
def test_a_password_of_a_database_is_refused_whatever_is_in_it(scheme: str, password: str) -> None:
    refused(f"{scheme}://user:{password}@host/db")
    refused(f"{scheme}://user:{password}@host:5432/db?sslmode=require")
    refused(f"{scheme}://:{password}@host/db")
    refused(f"{scheme}://user@host:{password}/db") if not password.startswith("5432") else None


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_password_of_a_server_is_refused_whatever_is_in_it(password: str) -> None:
    refused(f"http://user:{password}@host:5000")
    refused(f"HTTPS://user:{password}@host:5000/mlflow")
    refused(f"https://{password}@host:5000")
    refused(f"https://user:{password}@host.example")
    refused(f"http://user:{password}@bare-host")
    refused(f"http://user:5432/{password}@bare-host/mlflow")
    refused(f"http://{password}@localhost/mlflow")


@pytest.mark.parametrize(
    "uri",
    [
        "http://host:5000?token=hunter2",
        "http://host:5000/?hunter2",
        "http://host:5000/#hunter2",
        "http://host:5000/mlflow;hunter2",
        "http://host:5000/?%74oken=hunter2",
        "http://host:hunter2",
        "http://host:5000/ hunter2",
        "http://host\\hunter2",
        "http://host:5000/token=hunter2",
        "http://user:5432/hunter2@bare-host",
        "http://user/hunter2@bare-host",
        "https://mlflow.lab.example/mlflow/hunter2@b",
        "http://host:5000/%3Ftoken%3Dhunter2",
        "postgresql://host/db?password=hunter2",
        "postgresql://host/db?user=a&PassWord=hunter2",
        "postgresql://host/db?options=hunter2",
        "postgresql:///?dsn=hunter2",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dhunter2",
        "mysql://user%3Ahunter2@host/db",
        "mysql://user@host/db:hunter2",
        "mysql://user@host,hunter2/db",
        "postgresql:user:hunter2@host",
        "postgresql:/user:hunter2@host/db",
        "sqlite+pysqlcipher://:hunter2@/file.db",
        "sqlite:///file.db?key=hunter2",
        "sqlite://user:hunter2@host/file.db",
        "https:/user:hunter2@host",
        "user:hunter2@host",
        "ftp://user:hun/ter2@host",
        "redis://:hunter2@host",
    ],
)
def test_whatever_may_be_a_secret_is_refused(uri: str) -> None:
    refused(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "http://host",
        "http://host:5000/",
        "https://mlflow.lab.example/mlflow/a.b-c_d/~e",
        "http://[::1]:5000",
        "postgresql+psycopg2://user@host/db",
        "postgresql://user@host:5432/db?sslmode=verify-full&sslrootcert=/etc/ca.pem",
        "mysql+pymysql://us.er_1@10.0.0.5/db",
        "mssql+pyodbc://user@host/db?driver=ODBC+Driver+18+for+SQL+Server&Encrypt=yes",
        "postgresql://host/db",
        "sqlite:////shared/a:b@c/mlflow, mine #2.db",
        "sqlite:///runs.db",
        "",
    ],
)
def test_what_is_plainly_free_of_one_passes(uri: str) -> None:
    refuse_secrets([f"tracking.uri={uri}"])
    assert not uri or tracking.uris(replace(Config(), {"tracking.uri": uri})).uri == uri
    assert is_server(uri) == uri.startswith("http")


@pytest.mark.parametrize(
    "word", ["postgresql://u:hun/ter2@host/db", "--uri=mysql://u:hun ter2@host", "tracking.urj=mysql://u:a,ter2@h"]
)
def test_a_misplaced_address_is_not_shown_either(word: str) -> None:
    with pytest.raises(ConfigError, match="holds a password or a key") as error:
        refuse_secrets([word])
    assert "ter2" not in str(error.value)
