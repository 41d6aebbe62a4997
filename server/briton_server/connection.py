"""What a request may ask of the connection that it came by: what ASGI has no words for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

CONNECTION_KEY = "briton.connection"  # in a scope's state


@dataclass(frozen=True)
class Connection:
    """One connection, as its requests see it."""

    abort: Callable[[], None]  # ends it at once, with what was not sent; the request hears that its client left
    is_over_limit: bool = False  # more of them are open than are allowed


def connection_of(scope: Mapping[str, Any]) -> Connection | None:
    """The connection of an ASGI scope; None when another server than ours made the scope."""
    connection: Connection | None = scope.get("state", {}).get(CONNECTION_KEY)
    return connection
