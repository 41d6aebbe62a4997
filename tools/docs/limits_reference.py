"""The table of fixed limits in docs/operations.md, from the constants of the gateway."""

from __future__ import annotations

from briton_server.answer import READ_GRACE_S
from briton_server.body import ACCEPTED_ENCODING, BODY_TIMEOUT_S
from briton_server.http_connection import MAX_HEAD_BYTES
from briton_server.http_protocol import HEADER_TIMEOUT_S, SEND_TIMEOUT_S
from briton_server.http_server import KEEP_ALIVE_S
from briton_server.protocol.chat import MAX_MESSAGES
from briton_server.routers.completions import MAX_SEQUENCES
from tools.docs.sections import table


def sections() -> dict[str, str]:
    """What no config changes; what a request's fields may hold stands in the tables of the API."""
    rows = [
        ("a request's head", f"{MAX_HEAD_BYTES // 1024} KiB", "431, and the connection ends"),
        ("its arrival", f"{HEADER_TIMEOUT_S:g} s", "the connection ends"),
        ("a body's arrival", f"{BODY_TIMEOUT_S:g} s", "408, and the connection ends"),
        ("a body's coding", ACCEPTED_ENCODING, "415"),
        ("a connection without a request", f"{KEEP_ALIVE_S:g} s", "it ends"),
        ("a client that reads nothing", f"{SEND_TIMEOUT_S:g} s", "its connection ends, and its request"),
        ("a stream that is read slowly", f"the request's time and {READ_GRACE_S:g} s", "likewise"),
        ("messages, and parts of a message", str(MAX_MESSAGES), "400"),
        ("texts of one completion request", str(MAX_SEQUENCES), "400"),
    ]
    return {"fixed-limits": table(("limit", "value", "what happens beyond it"), rows)}
