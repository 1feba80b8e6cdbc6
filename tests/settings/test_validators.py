"""Names and addresses from users: what is refused before it reaches a path, and how it is said."""

import pytest

from midibert_ray import storage
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.settings.validators import ConfigError, require_address, require_name

OWN = "?endpoint_override=127.0.0.1:9000&scheme=http"


@pytest.mark.parametrize("name", ["", "a/b", "..", "a..b", "-x", ".x", "ü", "a b", "a\n", "a\0", "x" * 129, "a%2fb"])
def test_odd_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"study\.name=.* use letters, digits and . _ = , \+ -"):
        require_name("study.name", name)
    with pytest.raises(ConfigError, match=r"study\.name="):
        replace(Config(), {"study.name": name})


@pytest.mark.parametrize("name", ["ablation", "a", "lr=3e-4,5e-5", "2026-11-24_b.c+d", "x" * 128])
def test_plain_names_pass(name: str) -> None:
    assert replace(Config(), {"study.name": name}).study.name == name


@pytest.mark.parametrize(
    "address",
    [
        "",
        "out",
        "~/out",
        "/a b/ü?x=1#y%",
        "../out",
        "file:///a/b",
        "s3://bucket",
        "s3://bucket/",
        "s3://my.bucket-1/a/b/",
        f"s3://bucket/My Music/ü+(1)/{OWN}",
        "s3://bucket/x?region=eu-central-1",
        "s3://bucket/x?endpoint_override=[::1]:9000&scheme=https&tls_ca_file_path=/etc/ssl/lab.pem",
        "gs://under_score/x?project_id=mine&retry_limit_seconds=30",
    ],
)
def test_plain_addresses_pass(address: str) -> None:
    require_address("storage.root", address)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("/a\nb", "without control characters"),
        ("s3://bucket/a\x7f", "without control characters"),
        ("s3:/bucket/x", "two slashes"),
        ("gs:bucket", "two slashes"),
        ("file:/x", "two slashes"),
        ("file://host/x", "three slashes"),
        ("hdfs://host/x", r"s3://bucket/prefix or gs://bucket/prefix"),
        ("http://host/x", r"s3://bucket/prefix or gs://bucket/prefix"),
        ("/a://b", r"s3://bucket/prefix or gs://bucket/prefix"),
        ("s3://", "a bucket of 3 to 63"),
        ("s3:///x", "a bucket of 3 to 63"),
        ("s3://ab/x", "a bucket of 3 to 63"),
        (f"s3://{'x' * 64}/x", "a bucket of 3 to 63"),
        ("s3://Bucket/x", "a bucket of 3 to 63"),
        ("s3://under_score/x", "a bucket of 3 to 63"),
        ("s3://bucket-/x", "a bucket of 3 to 63"),
        ("s3://a..b/x", "a bucket of 3 to 63"),
        ("s3://../x", "a bucket of 3 to 63"),
        ("s3://bucket/../other", r"without empty parts, \. and \.\."),
        ("s3://bucket/a/./b", "without empty parts"),
        ("s3://bucket//a", "without empty parts"),
        ("s3://bucket/a//", "without empty parts"),
        ("s3://bucket/a%2e%2e/b", "as it stands in the bucket"),
        ("s3://bucket/a#b", "as it stands in the bucket"),
        ("s3://bucket/a\\b", "as it stands in the bucket"),
        ("s3://bucket/x?endpoint=h:1", "nothing but endpoint_override, scheme, region"),
        ("s3://bucket/x?allow_bucket_creation=true", "nothing but endpoint_override"),
        ("s3://bucket/x?region=a&region=b", "each part of the query once"),
        ("s3://bucket/x?scheme=ftp", r"https\? for scheme"),
        ("s3://bucket/x?endpoint_override=http://h:1", "HOST:PORT for endpoint_override"),
        ("s3://bucket/x?endpoint_override=", "HOST:PORT for endpoint_override"),
        ("gs://bucket/x?region=eu", "nothing but endpoint_override, scheme, project_id"),
    ],
)
def test_odd_addresses_are_refused(address: str, told: str) -> None:
    for key in ("storage.root", "corpora.root"):
        with pytest.raises(ConfigError, match=f"{key}=.* is not allowed; use .*{told}"):
            replace(Config(), {key: address})
    with pytest.raises(ConfigError, match=f"corpora.names=.*{told}"):
        replace(Config(), {"corpora.names": ("pop909", f"folder:{address}")})
    with pytest.raises(ConfigError, match=f"finetune.corpus=.*{told}"):
        replace(Config(), {"finetune.corpus": f"folder:{address}"})


@pytest.mark.parametrize(
    "address",
    [
        "s3://KEY:hunter2@bucket/x",
        "s3://KEY:hun/ter2@bucket/x",
        "s3://hunter2@bucket/x",
        "s3://bucket/x?secret_key=hunter2",
        "s3://bucket/x?region=hunter2!",
        "gs://bucket/x?access_token=hunter2",
    ],
)
def test_what_may_be_a_key_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(ConfigError, match=r"storage\.root") as caught:
        replace(Config(), {"storage.root": address})
    assert "hunter2" not in str(caught.value) and "ter2" not in str(caught.value)


@pytest.mark.parametrize("folder", ["s3://bucket/cache", "s3:/x", "file:///x", "/a\tb"])
def test_the_cache_is_a_folder_of_the_node(folder: str) -> None:
    with pytest.raises(ConfigError, match=r"storage\.cache="):
        replace(Config(), {"storage.cache": folder})


def test_a_bucket_is_asked_for_by_its_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands behind the bucket is taken as it is; clients are shared by all addresses of a bucket."""
    for name, value in (("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "y")):
        monkeypatch.setenv(name, value)
    first, path = storage.filesystem(f"s3://bucket/My Music/a+b=c/{OWN}")
    second, other = storage.filesystem(storage.join(f"s3://bucket/x{OWN}", "y"))
    assert (path, other) == ("bucket/My Music/a+b=c", "bucket/x/y")
    assert first is second
