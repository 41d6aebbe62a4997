"""HTTP servers on loopback that stand in for the hub and for a package index."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import NamedTuple


class Reply(NamedTuple):
    """What is sent; `cut_at`: the connection breaks after so many bytes of the body."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = MappingProxyType({})
    cut_at: int | None = None


class Request(NamedTuple):
    """What came."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case


@contextmanager
def serve(answer: Callable[[Request], Reply]) -> Iterator[tuple[str, list[Request]]]:
    """Serve GET and HEAD until the block ends; yields the base URL and the list of requests, which grows."""
    requests: list[Request] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or a kept connection waits 40 ms for each body

        def do_GET(self) -> None:
            request = Request(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
            requests.append(request)
            status, body, headers, cut_at = answer(request)
            self.send_response(status)
            headers = {"Content-Length": str(len(body)), **headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                with suppress(ConnectionError):  # a client that looks at the headers only
                    self.wfile.write(body[:cut_at])
            if cut_at is not None:
                self.close_connection = True

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
