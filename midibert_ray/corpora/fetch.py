"""One file over https: its size and checksum first, resumed where it broke off, checked when it is complete.

What has arrived is kept beside the target as `<name>.part`, with the server's validator in `<name>.part.json`.
The next attempt asks for the rest (Range) on condition that the file has not changed (If-Range, RFC 9110 13.1.5);
a server that cannot do that, or whose file has changed, sends all of it and the part is begun again.
"""

import base64
import hashlib
import http.client
import json
import logging
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from midibert_ray.corpora.sources import ArchiveError, DownloadError, UnreachableError, megabytes

logger = logging.getLogger(__name__)

_BLOCK = 1 << 16
_RECORD_BYTES = 4 << 20  # a Zenodo record is some 10 kB of JSON
_BROKEN = (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, ConnectionError, TimeoutError)
_RANGE_REFUSED = 416
_WORTH_ANOTHER_TRY = (408, _RANGE_REFUSED, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for a server, and how much to take from it."""

    timeout_s: float = 30
    """Silence after which a connection counts as broken."""
    attempts: int = 5
    """Connections made for one file before giving up."""
    pause_s: float = 1
    """Wait before the second attempt; it doubles with every further one."""
    most_bytes: int = 2 << 30
    """A longer file is refused."""


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file as its server describes it."""

    url: str
    local: bool = False
    """Plain http to 127.0.0.1 is allowed; for tests."""
    size: int | None = None
    """Bytes; None where the server does not say."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """Algorithm -> hexadecimal digest of the whole file."""
    licence: str = ""
    """Licence id of the Zenodo record."""


def probe(url: str, *, record: str = "", local: bool = False, patience: Patience | None = None) -> Remote:
    """Ask for a file's size and checksum without fetching it.

    Args:
        url: the file.
        record: the Zenodo record (JSON) that states size, md5 and licence; without one, or where it cannot be
            read, the checksum is what the file's own headers state.
        local: allow plain http to 127.0.0.1.
        patience: times and limits.

    Raises:
        UnreachableError: no connection.
        DownloadError: the server says that there is no such file, or the address is not https.
    """
    patience = patience or Patience()
    headers = _head(url, local, patience)
    remote = Remote(url=url, local=local, size=_length(headers), checksums=_header_checksum(headers))
    if not record:
        return remote
    try:
        with _open(record, {}, local, patience) as response:
            return _with_record(remote, json.loads(response.read(_RECORD_BYTES)))
    except (*_BROKEN, DownloadError, ValueError, LookupError, TypeError, AttributeError) as error:
        logger.warning("%s does not tell the checksum of %s (%s)", record, url, _reason(error))
        return remote


def fetch(remote: Remote, target: Path, *, patience: Patience | None = None) -> None:
    """Fetch a file to `target`, going on from an earlier part; nothing stands at `target` before it is whole.

    Raises:
        UnreachableError: the connection broke too often; what has arrived is kept for the next call.
        DownloadError: the server refuses, the file is too long, or it is not what the checksums promise (then
            the part is removed).
        OSError: the part cannot be written.
    """
    patience = patience or Patience()
    part = target.with_name(target.name + ".part")
    for attempt in range(1, patience.attempts + 1):
        try:
            _receive(remote, part, patience)
            break
        except _BROKEN as error:
            if isinstance(error, urllib.error.HTTPError) and error.code not in _WORTH_ANOTHER_TRY:
                raise DownloadError(f"{remote.url} is refused: {error.code} {error.reason}") from error
            kept = f"{megabytes(_size(part))} kept in {part}"
            if attempt == patience.attempts:
                message = f"{remote.url} broke off {attempt} times, at last with: {_reason(error)}"
                raise UnreachableError(f"{message}. {kept}; the same command again goes on from there") from error
            logger.info("%s broke off (%s), %s", remote.url, _reason(error), kept)
            time.sleep(patience.pause_s * 2 ** (attempt - 1))
    try:
        verify(part, remote.checksums)
    except ArchiveError as error:
        discard(part)
        raise ArchiveError(f"{error}; what {remote.url} sent was removed, run the same command again") from None
    part.replace(target)
    discard(part)


def verify(file: Path, checksums: Mapping[str, str]) -> None:
    """Compare a file with its checksums (algorithm -> hexadecimal digest).

    Raises:
        ArchiveError: it is another file.
    """
    for algorithm, expected in checksums.items():
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, algorithm).hexdigest()
        if found != expected.lower():
            size = megabytes(_size(file))
            raise ArchiveError(f"{file} ({size}) has {algorithm} {found}, but the publisher states {expected}")


def discard(part: Path) -> None:
    """Remove a part and what is known of it."""
    part.unlink(missing_ok=True)
    _state(part).unlink(missing_ok=True)


def check_address(url: str, local: bool = False) -> None:
    """Allow https and, for tests, plain http to this machine.

    Raises:
        DownloadError: for any other address.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" and not (local and parts.scheme == "http" and parts.hostname == "127.0.0.1"):
        raise DownloadError(f"{url} is not fetched: only https:// is allowed, redirects included")


def _receive(remote: Remote, part: Path, patience: Patience) -> None:
    """One connection: all of the file, or the rest of it."""
    have, validator = _resumable(remote, part)
    if have and have == remote.size:
        return
    try:
        rest = {"Range": f"bytes={have}-", "If-Range": validator} if have else {}
        response = _open(remote.url, rest, remote.local, patience)
    except urllib.error.HTTPError as error:
        if error.code == _RANGE_REFUSED:
            discard(part)
        raise
    with response:
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            _check_rest(response.headers, part, have, validator)
        else:
            have = 0
            _state(part).write_text(json.dumps({"url": remote.url, "validator": _validator(response.headers)}))
        length = _length(response.headers)
        with part.open("ab" if have else "wb") as stream:
            got = _copy(response, stream, have, None if length is None else have + length, patience)
    if length is not None and got < have + length:
        raise http.client.IncompleteRead(b"", have + length - got)


def _copy(source: Any, target: IO[bytes], have: int, size: int | None, patience: Patience) -> int:
    """Copy what a response holds after `have` bytes that are there; the bytes there are then."""
    said = time.monotonic()
    while block := source.read(_BLOCK):
        have += len(block)
        if max(have, size or 0) > patience.most_bytes:
            limit = megabytes(patience.most_bytes)
            raise DownloadError(f"{source.url} sends more than the {limit} allowed; look at what it is before going on")
        target.write(block)
        if time.monotonic() - said > 5:
            said = time.monotonic()
            logger.info("  %s of %s", megabytes(have), "unknown" if size is None else megabytes(size))
    return have


def _resumable(remote: Remote, part: Path) -> tuple[int, str]:
    """How much of the file is there, and the validator that it was sent with; 0 where it must be begun again."""
    try:
        state = json.loads(_state(part).read_text())
        url, validator = state["url"], state["validator"]
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return 0, ""
    have = _size(part)
    sound = url == remote.url and validator and isinstance(validator, str)
    return (have, validator) if sound and (remote.size is None or have <= remote.size) else (0, "")


def _check_rest(headers: Any, part: Path, have: int, validator: str) -> None:
    """A server may ignore If-Range, or send another range; then what is there cannot be continued."""
    begins = re.match(rf"bytes {have}-\d+/", headers.get("Content-Range", ""))
    if not (have and begins and _validator(headers) in ("", validator)):
        discard(part)
        raise http.client.HTTPException("what it sent does not continue what had arrived; beginning again")


def _validator(headers: Any) -> str:
    """The strong validator of a response: weak ones (W/) promise less than equal bytes."""
    tag = headers.get("ETag", "")
    return str(tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", ""))


def _head(url: str, local: bool, patience: Patience, attempts: int = 2) -> Any:
    try:
        with _open(url, {}, local, patience, method="HEAD") as response:
            return response.headers
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            raise DownloadError(f"{url} is gone: {error.code} {error.reason}") from error
        return {}  # some servers answer no HEAD; what they answer to GET will tell
    except _BROKEN as error:
        if attempts <= 1:
            raise UnreachableError(f"{url} cannot be reached ({_reason(error)})") from error
    time.sleep(patience.pause_s)
    return _head(url, local, patience, attempts - 1)


def _with_record(remote: Remote, record: Any) -> Remote:
    """Add what a Zenodo record says of the file, whose name may hold slashes.

    Raises:
        LookupError: the record does not list the file.
    """
    name = unquote(urlsplit(remote.url).path).partition("/files/")[2]
    for entry in record["files"]:
        if entry["key"] == name:
            algorithm, _, digest = entry["checksum"].rpartition(":")
            licence = (record.get("metadata", {}).get("license") or {}).get("id", "")
            checksums = dict(remote.checksums) | {algorithm or "md5": str(digest)}
            return replace(remote, size=int(entry["size"]), checksums=checksums, licence=str(licence))
    raise LookupError(f"it lists no file {name!r}")


def _header_checksum(headers: Any) -> dict[str, str]:
    """Of Content-MD5 (base64 in RFC 1864, though some servers write hexadecimal) or an ETag of the form "md5:..."."""
    for text in (headers.get("ETag", "").strip('"'), "md5:" + headers.get("Content-MD5", "")):
        if re.fullmatch(r"md5:[0-9a-fA-F]{32}", text):
            return {"md5": text[4:].lower()}
        if re.fullmatch(r"md5:[A-Za-z0-9+/]{22}==", text):
            return {"md5": base64.b64decode(text[4:]).hex()}
    return {}


def _length(headers: Any) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() else None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to allowed addresses only, and keeps HEAD a HEAD."""

    def __init__(self, local: bool) -> None:
        self.local = local

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        check_address(newurl, self.local)
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None:
            new.method = req.get_method()
        return new


def _open(url: str, headers: dict[str, str], local: bool, patience: Patience, method: str = "GET") -> Any:
    check_address(url, local)
    handlers: list[urllib.request.BaseHandler] = [_Redirects(local)]
    handlers += [urllib.request.ProxyHandler({})] if local else []  # this machine needs no proxy
    request = urllib.request.Request(url, headers={"User-Agent": "midibert-ray"} | headers, method=method)
    return urllib.request.build_opener(*handlers).open(request, timeout=patience.timeout_s)


def _reason(error: Exception) -> str:
    return str(error.reason if isinstance(error, urllib.error.URLError) else error) or type(error).__name__


def _state(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
