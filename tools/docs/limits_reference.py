"""The table of fixed limits in docs/operations.md, from the constants of the gateway."""

from __future__ import annotations

import dataclasses

from briton_server.body import BODY_TIMEOUT_S
from briton_server.http_connection import MAX_HEAD_BYTES
from briton_server.http_protocol import HEADER_TIMEOUT_S, SEND_TIMEOUT_S
from briton_server.http_server import KEEP_ALIVE_S
from briton_server.routers.completions import MAX_SEQUENCES
from briton_server.settings import Settings
from tools.docs.sections import table


def sections() -> dict[str, str]:
    """What no config changes; what a request's fields may hold stands in the tables of the API."""
    body = next(field.default for field in dataclasses.fields(Settings) if field.name == "max_body_bytes")
    assert isinstance(body, int)
    rows = [
        ("a request's head", f"{MAX_HEAD_BYTES // 1024} KiB", "431, and the connection ends"),
        ("its arrival", f"{HEADER_TIMEOUT_S:g} s", "the connection ends"),
        ("a request's body", f"{body // 1024**2} MiB", "413"),
        ("its arrival", f"{BODY_TIMEOUT_S:g} s", "408, and the connection ends"),
        ("a connection without a request", f"{KEEP_ALIVE_S:g} s", "it ends"),
        ("a client that reads nothing", f"{SEND_TIMEOUT_S:g} s", "its connection ends, and its request"),
        ("texts of one completion request", str(MAX_SEQUENCES), "400"),
    ]
    return {"fixed-limits": table(("limit", "value", "what happens beyond it"), rows)}
