"""A web server on this machine that misbehaves on demand."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Served:
    """One file, and how it is served."""

    content: bytes
    etag: str = '"one"'
    ranges: bool = True
    if_range: bool = True
    """Whether If-Range is heeded."""
    cuts: list[int] = field(default_factory=list)
    """Body bytes after which the next connections are closed, one number a connection."""
    length: bool = True
    """Whether the length is stated; if not, the end of the connection ends the file."""
    headers: dict[str, str] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    """What the next GETs get instead of the file."""
    redirect: str = ""
    head: bool = True


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    if_range: str | None
    status: int
    sent: int = 0
    """Bytes of the body."""


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, Served] = {}
        self.requests: list[Request] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def gets(self, path: str) -> list[Request]:
        return [request for request in self.requests if (request.method, request.path) == ("GET", path)]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.close_connection = True
        file = self.server.files.get(self.path)
        request = Request(self.command, self.path, self.headers["Range"], self.headers["If-Range"], 200)
        self.server.requests.append(request)
        get = self.command == "GET"
        if file is None or not (get or file.head) or (get and file.statuses):
            return self.plain(request, 404 if file is None else file.statuses.pop(0) if get else 405)
        if file.redirect:
            return self.plain(request, 302, {"Location": file.redirect})
        start = self.start(file, request)
        if start is None:
            return self.plain(request, 416)
        self.send(file, request, start, get)
        return None

    def start(self, file: Served, request: Request) -> int | None:
        heeded = not file.if_range or request.if_range in (None, file.etag, file.headers.get("Last-Modified"))
        if not (request.range and file.ranges and heeded):
            return 0
        start = int(request.range.removeprefix("bytes=").removesuffix("-"))
        if start >= len(file.content):
            return None
        request.status = 206
        return start

    def send(self, file: Served, request: Request, start: int, get: bool) -> None:
        body, total = file.content[start:], len(file.content)
        headers = dict(file.headers) | {"ETag": file.etag}
        headers |= {"Content-Length": str(len(body))} if file.length else {"Connection": "close"}
        headers |= {"Content-Range": f"bytes {start}-{total - 1}/{total}"} if request.status == 206 else {}
        self.begin(request.status, headers)
        if get:
            body = body[: file.cuts.pop(0)] if file.cuts else body
            request.sent = len(body)  # before the write: the client may read the count as soon as it has the bytes
            self.wfile.write(body)

    def plain(self, request: Request, status: int, headers: dict[str, str] | None = None) -> None:
        request.status = status
        self.begin(status, {"Content-Length": "0"} | (headers or {}))

    def begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
