"""An S3 server in this process (moto), which fails or lets a test act when it is told to."""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyarrow import fs

KEYS = {
    "AWS_ACCESS_KEY_ID": "of-the-test",
    "AWS_SECRET_ACCESS_KEY": "also-of-the-test",
    "AWS_EC2_METADATA_DISABLED": "true",  # else a client looks for a role of this machine first
}
"""What a client has in its environment."""


class S3:
    """A running server."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        """`METHOD /bucket/key?query` of every request so far."""
        self.hook: Callable[[str], bool | None] | None = None
        """Called with each request before it is served; True refuses it."""
        self.port = 0

    def bucket(self) -> str:
        """The name of a new bucket."""
        name = f"bucket-{uuid.uuid4().hex[:8]}"
        self.client(allow_bucket_creation=True).create_dir(name)
        return name

    def client(self, **options: Any) -> fs.S3FileSystem:
        """A client that takes its keys from the environment."""
        return fs.S3FileSystem(endpoint_override=f"127.0.0.1:{self.port}", scheme="http", **options)

    def address(self, path: str) -> str:
        """The URI of a bucket and what stands behind it."""
        return f"s3://{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http"

    def keys(self, path: str) -> list[str]:
        """The objects below a path, relative to it."""
        infos = self.client().get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
        return sorted(info.path.removeprefix(f"{path}/") for info in infos if info.is_file)

    def count(self, start: str) -> int:
        """Requests so far that start like this."""
        return sum(request.startswith(start) for request in self.requests)


@contextmanager
def serving() -> Iterator[S3]:
    """A server on a free port of loopback, empty at first."""
    from moto.core.model_instances import reset_model_data
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: Any) -> None:
            pass

    s3, moto = S3(), DomainDispatcherApplication(create_backend_app)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        query = environ.get("QUERY_STRING")
        path = environ["PATH_INFO"].encode("latin-1").decode()  # WSGI's way of spelling bytes
        request = f"{environ['REQUEST_METHOD']} {path}" + (f"?{query}" if query else "")
        s3.requests.append(request)
        if s3.hook and s3.hook(request):
            start_response("403 Forbidden", [("Content-Length", "0"), ("Connection", "close")])  # not tried again
            return [b""]
        return moto(environ, start_response)

    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    server.daemon_threads = True
    s3.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield s3
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        reset_model_data()
