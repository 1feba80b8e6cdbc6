"""A file over https: its size and checksum first, resumed where it broke off, checked when it is complete.

Bytes that have arrived lie beside the target as `<name>.part`, with the server's validator in `<name>.part.json`.
The next attempt asks for the rest (Range) on condition that the file has not changed (If-Range, RFC 9110 13.1.5);
a server that cannot do that, or whose file has changed, sends all of it and the part is begun again.
"""

import base64
import hashlib
import json
import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError as BodyError
from urllib3.exceptions import ProtocolError
from urllib3.util import Retry

from midibert_ray.corpora.sources import ArchiveError, DownloadError, PublisherUnreachableError, megabytes

logger = logging.getLogger(__name__)

ALLOWED = ("https://",)
"""How the addresses begin that are fetched from."""

_BLOCK = 1 << 16
_RECORD_BYTES = 4 << 20  # a Zenodo record is some 10 kB of JSON
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_PAUSE_S = 60  # whatever Retry-After says
_BROKEN = (requests.RequestException, BodyError)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for a server, and how much to take from it."""

    timeout_s: float = 30
    """Silence after which a connection counts as broken."""
    attempts: int = 5
    """Times that a request is sent, and that a transfer may break off, before giving up."""
    pause_s: float = 1
    """Wait before the second attempt; it doubles with every further one."""
    most_bytes: int = 2 << 30
    """A longer file is refused."""


PATIENT = Patience()


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file as its server describes it."""

    url: str
    size: int | None = None
    """Bytes; None where the server does not say."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """Algorithm -> hexadecimal digest of the whole file."""
    licence: str = ""
    """Licence id of the Zenodo record."""


def probe(url: str, *, record: str = "", patience: Patience = PATIENT) -> Remote:
    """Ask for a file's size and checksum without fetching it.

    They are those of its Zenodo record (JSON); without one, or where it cannot be read, those of the headers.

    Raises:
        PublisherUnreachableError: no connection.
        DownloadError: the server says that there is no such file, or the address is not https.
    """
    remote = Remote(url=url)
    try:
        with _request("HEAD", url, patience) as response:
            if response.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
                raise DownloadError(f"{url} is gone: {response.status_code} {response.reason}")
            if response.ok:  # some servers answer no HEAD; what they answer to GET will tell
                remote = replace(remote, size=_length(response), checksums=_header_checksum(response.headers))
    except _BROKEN as error:
        raise PublisherUnreachableError(f"{url} cannot be reached ({_reason(error)})") from error
    if not record:
        return remote
    try:
        with _request("GET", record, patience) as response:
            response.raise_for_status()
            return _with_record(remote, json.loads(response.raw.read(_RECORD_BYTES, decode_content=True)))
    except (*_BROKEN, DownloadError, ValueError, LookupError, TypeError, AttributeError) as error:
        logger.warning("%s does not tell the checksum of %s (%s)", record, url, _reason(error))
        return remote


def fetch(remote: Remote, target: Path, *, patience: Patience = PATIENT) -> None:
    """Fetch a file to `target`, going on from an earlier part; nothing stands at `target` before it is whole.

    Raises:
        PublisherUnreachableError: the connection broke too often; what has arrived is kept for the next call.
        DownloadError: the server refuses, the file is too long, or not what the checksums promise (then it is removed).
    """
    part = target.with_name(target.name + ".part")
    for attempt in range(1, patience.attempts + 1):
        try:
            _receive(remote, part, patience)
            break
        except _BROKEN as error:
            kept = f"{megabytes(_size(part))} kept in {part}"
            # A request without an answer has been sent often enough by the session.
            if attempt == patience.attempts or isinstance(error, requests.RequestException):
                raise PublisherUnreachableError(
                    f"{remote.url} broke off {attempt} times, at last with: {_reason(error)}. {kept}; the same command "
                    "again goes on from there"
                ) from error
            logger.info("%s broke off (%s), %s", remote.url, _reason(error), kept)
            time.sleep(patience.pause_s * 2 ** (attempt - 1))
    try:
        verify(part, remote.checksums)
    except ArchiveError as error:
        _discard(part)
        raise ArchiveError(f"{error}; what {remote.url} sent was removed, run the same command again") from None
    part.replace(target)
    _discard(part)


def verify(file: Path, checksums: Mapping[str, str]) -> None:
    """Raise an ArchiveError unless a file has these checksums (algorithm -> hexadecimal digest)."""
    for algorithm, expected in checksums.items():
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, algorithm).hexdigest()
        if found != expected.lower():
            size = megabytes(_size(file))
            raise ArchiveError(f"{file} ({size}) has {algorithm} {found}, but the publisher states {expected}")


def _discard(part: Path) -> None:
    """Remove a part and its state."""
    part.unlink(missing_ok=True)
    _state(part).unlink(missing_ok=True)


def _check_url(url: str) -> None:
    if not url.lower().startswith(ALLOWED):
        raise DownloadError(f"{url} is not fetched: only https:// is allowed, redirects included")


class _Session(requests.Session):
    """Sends to allowed addresses only."""

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send one request; each redirect comes here anew."""
        _check_url(request.url or "")
        return super().send(request, **options)


@contextmanager
def _request(method: str, url: str, patience: Patience, **headers: str) -> Iterator[requests.Response]:
    """A response whose body has not been read, asked for again where a server is busy or does not answer."""
    _check_url(url)
    retry = Retry(
        total=patience.attempts - 1,
        backoff_factor=patience.pause_s,
        status_forcelist=_BUSY,
        raise_on_status=False,
        retry_after_max=_LONGEST_PAUSE_S,
    )
    # Ranges and checksums are of the file's own bytes.
    headers |= {"User-Agent": "midibert-ray", "Accept-Encoding": "identity"}
    with _Session() as session:
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        with session.request(method, url, headers=headers, stream=True, timeout=patience.timeout_s) as response:
            yield response


def _receive(remote: Remote, part: Path, patience: Patience) -> None:
    """A transfer: all of the file, or the rest of it."""
    have, validator = _resumable(remote, part)
    if have and have == remote.size:
        return
    rest = {"Range": f"bytes={have}-", "If-Range": validator} if have else {}
    with _request("GET", remote.url, patience, **rest) as response:
        # A server may ignore If-Range, or send another range: then what is there cannot be continued.
        begins = re.match(rf"bytes {have}-\d+/", response.headers.get("Content-Range", ""))
        continued = have and begins and _validator(response) in ("", validator)
        stale = response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        if stale or (response.status_code == HTTPStatus.PARTIAL_CONTENT and not continued):
            _discard(part)
            raise ProtocolError("what it sent does not continue what had arrived; beginning again")
        if not response.ok and response.status_code not in _BUSY:
            raise DownloadError(f"{remote.url} is refused: {response.status_code} {response.reason}")
        response.raise_for_status()
        if response.status_code != HTTPStatus.PARTIAL_CONTENT:
            _discard(part)
            have = 0
            _state(part).write_text(json.dumps({"url": remote.url, "validator": _validator(response)}))
        _append(response, part, have, patience)


def _append(response: requests.Response, part: Path, have: int, patience: Patience) -> None:
    """Append a body to a part that has the first `have` bytes."""
    size, said = have + (_length(response) or 0), time.monotonic()
    with part.open("ab") as stream:
        for block in response.raw.stream(_BLOCK, decode_content=False):
            have += len(block)
            if max(have, size) > patience.most_bytes:
                limit = megabytes(patience.most_bytes)
                raise DownloadError(f"{response.url} sends more than the {limit} allowed; look at it before going on")
            stream.write(block)
            if time.monotonic() - said > 5:
                said = time.monotonic()
                logger.info("  %s of %s", megabytes(have), megabytes(size) if size > have else "unknown")


def _resumable(remote: Remote, part: Path) -> tuple[int, str]:
    """How much of the file is there, and the validator that it was sent with; 0 where it must be begun again."""
    try:
        state = json.loads(_state(part).read_text())
        have, url, validator = _size(part), state["url"], str(state["validator"])
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return 0, ""
    sound = url == remote.url and validator and (remote.size is None or have <= remote.size)
    return (have, validator) if sound else (0, "")


def _validator(response: requests.Response) -> str:
    """The strong validator of a response: weak ones (W/) promise less than equal bytes."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _length(response: requests.Response) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def _header_checksum(headers: Mapping[str, str]) -> dict[str, str]:
    """Of Content-MD5 (base64 in RFC 1864, though some servers write hexadecimal) or an ETag of the form "md5:..."."""
    for text in (headers.get("ETag", "").strip('"'), "md5:" + headers.get("Content-MD5", "")):
        if re.fullmatch(r"md5:[0-9a-fA-F]{32}", text):
            return {"md5": text[4:].lower()}
        if re.fullmatch(r"md5:[A-Za-z0-9+/]{22}==", text):
            return {"md5": base64.b64decode(text[4:]).hex()}
    return {}


def _with_record(remote: Remote, record: Any) -> Remote:
    """Add what a Zenodo record says of the file, whose name may hold slashes; a KeyError where it does not list it."""
    name = unquote(urlsplit(remote.url).path).partition("/files/")[2]
    entry = {entry["key"]: entry for entry in record["files"]}[name]
    algorithm, _, digest = entry["checksum"].rpartition(":")
    licence = (record.get("metadata", {}).get("license") or {}).get("id", "")
    checksums = dict(remote.checksums) | {algorithm or "md5": str(digest)}
    return replace(remote, size=int(entry["size"]), checksums=checksums, licence=str(licence))


def _reason(error: Exception) -> str:
    """The cause alone, without the request, which the messages of requests repeat."""
    inner = error.args[0] if error.args else error
    return str(getattr(inner, "reason", inner)) or type(error).__name__


def _state(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
