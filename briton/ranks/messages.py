"""What a hub and its members say to each other over TCP: one JSON object a line."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from briton.errors import BritonError

BEAT_S = 0.25  # between two words of a member, and of the hub
_MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class HubAddress:
    """Where a hub listens, as it is passed to ranks in the environment: TOKEN@PORT@HOST,HOST,..."""

    hosts: tuple[str, ...]  # its addresses: a rank takes the first that answers
    port: int
    token: str  # keeps strangers out

    def __str__(self) -> str:
        return f"{self.token}@{self.port}@{','.join(self.hosts)}"

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """The reverse of `str`. Raises BritonError."""
        token, _, rest = text.partition("@")
        port, _, hosts = rest.partition("@")
        if not (token and hosts and port.isdigit()):
            raise BritonError("the address of the job's hub cannot be read: BRITON_JOB is set by `briton engine` alone")
        return cls(tuple(hosts.split(",")), int(port), token)


def encode(kind: str, **fields: Any) -> bytes:
    """One message as a line."""
    return json.dumps({"kind": kind, **fields}, separators=(",", ":")).encode() + b"\n"


class Lines:
    """The messages that arrive on a socket, whole ones only."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = b""

    def receive(self) -> Iterator[dict[str, Any]]:
        """Read what is there, once. Raises ConnectionError at the end of the stream, or for what is no message."""
        data = self._connection.recv(1 << 16)
        if not data:
            raise ConnectionError("the connection was closed")
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            raise ConnectionError("a line without an end")
        for line in lines:
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                raise ConnectionError("a line that is not JSON") from None
            if not isinstance(message, dict) or "kind" not in message:
                raise ConnectionError("a line that is no message")
            yield message
