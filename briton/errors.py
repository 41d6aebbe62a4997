"""One tree of errors, and the one table that maps it to gRPC and HTTP. The gateway reads the table backwards, too
(`briton_server.engine_errors`), and adds what HTTP alone knows.

An error carries data (field, limit, retry hint), not formatting. Whatever is not a BritonError is a bug: INTERNAL, 500.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(eq=False)
class BritonError(Exception):
    """Base of everything that is told to a caller. `message` is complete by itself."""

    message: str

    def __str__(self) -> str:
        return self.message


@dataclass(eq=False)
class InvalidRequest(BritonError):
    """The request can never succeed. `field` is the path of the offending value, as the caller spells it
    ("sampling.top_p", "messages[0].role")."""

    field: str | None = None
    code: str | None = None  # OpenAI's error code, where it has one ("context_length_exceeded")


@dataclass(eq=False)
class Unsupported(BritonError):
    """Well-formed, but this model or executor cannot do it."""

    field: str | None = None


@dataclass(eq=False)
class ModelNotFound(BritonError):
    """No such model is served here."""

    field: str | None = "model"


QUEUE_SIZE = "queue_size"


@dataclass(eq=False)
class QueueFull(BritonError):
    """Too many requests are waiting; nothing was accepted. Worth a retry. With the code QUEUE_SIZE any other request
    would be refused as well; without, it is this one's own matter: its length, its deadline, its guide."""

    retry_after_s: float = 1.0
    code: str | None = None


@dataclass(eq=False)
class Unavailable(BritonError):
    """Starting or draining. Worth a retry elsewhere, or later."""

    retry_after_s: float = 2.0


@dataclass(eq=False)
class EngineDead(Unavailable):
    """The executor has failed: every open request ended with this."""


@dataclass(eq=False)
class DeadlineExceeded(BritonError):
    """The request's own deadline, or the server's, has passed."""


@dataclass(eq=False)
class ConfigError(BritonError):
    """A config file, a flag or the environment is wrong: exit code 2 of the command line. `field` is the path in the
    file."""

    field: str | None = None


@dataclass(eq=False)
class BuildError(BritonError):
    """A checkpoint cannot be fetched, read or converted: exit code 1 of the command line."""


class WireStatus(NamedTuple):
    """How an error looks on the wire."""

    grpc_code: str  # the name of a gRPC status code
    http_status: int
    openai_type: str  # `error.type` of the OpenAI error body


# The first entry that matches by isinstance holds.
ERROR_TABLE: tuple[tuple[type[BritonError], WireStatus], ...] = (
    (InvalidRequest, WireStatus("INVALID_ARGUMENT", 400, "invalid_request_error")),
    (Unsupported, WireStatus("UNIMPLEMENTED", 400, "invalid_request_error")),
    (ModelNotFound, WireStatus("NOT_FOUND", 404, "invalid_request_error")),
    (QueueFull, WireStatus("RESOURCE_EXHAUSTED", 429, "rate_limit_error")),
    (Unavailable, WireStatus("UNAVAILABLE", 503, "service_unavailable_error")),
    (DeadlineExceeded, WireStatus("DEADLINE_EXCEEDED", 504, "timeout_error")),
)
INTERNAL = WireStatus("INTERNAL", 500, "server_error")


def wire_status_of(error: BaseException) -> WireStatus:
    """The table's row for an error; INTERNAL for whatever is not in it."""
    return next((status for kind, status in ERROR_TABLE if isinstance(error, kind)), INTERNAL)


EXIT_ERROR = 1
EXIT_CONFIG_ERROR = 2  # a wrong config or command line


def exit_code_of(error: BaseException) -> int:
    """Of a command that ends with this error."""
    return EXIT_CONFIG_ERROR if isinstance(error, ConfigError) else EXIT_ERROR
