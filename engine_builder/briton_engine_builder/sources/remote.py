"""What a store of remote files is to the code that downloads from it: a listing, and bytes from anywhere on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from briton.errors import BuildError, ConfigError

CHUNK = 1 << 20  # bytes that are read at a time


@dataclass(eq=False)
class Unreachable(BuildError):
    """The store does not answer, is overloaded, or the connection broke: another try may do."""


class CannotResume(Exception):
    """This file can only be read from its beginning. Never raised for a read that begins there."""


class Digest(Protocol):
    """What hashlib's objects are."""

    def update(self, data: bytes, /) -> None:
        """So much more."""
        ...

    def digest(self) -> bytes:
        """Of all so far."""
        ...


@dataclass(frozen=True, slots=True)
class Checksum:
    """What a store says about the content of a file."""

    name: str  # of the algorithm, for people
    expected: bytes
    new: Callable[[], Digest]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as its store lists it."""

    key: str  # what the store calls it
    name: str  # what it is called on this machine: one part, without slashes
    size: int | None  # in bytes; None where the server does not say
    version: str  # another content has another: ETag or generation; empty where the server does not say
    label: str  # how errors name it
    checksum: Checksum | None = None


class RemoteFiles(Protocol):
    """What can be downloaded from. Errors are BuildErrors of one line that name `repo`, Unreachable among them."""

    def read(self, file: RemoteFile, begin: int) -> Iterator[bytes]:
        """The bytes of exactly this version from `begin` on, in pieces. Raises BuildError, CannotResume."""
        ...

    def checksum_of(self, file: RemoteFile) -> Checksum | None:
        """What the whole file's content is to be checked with, if the store knows."""
        ...


class ObjectStore(RemoteFiles, Protocol):
    """S3, GCS or AZURE, at one path."""

    def list_files(self) -> list[RemoteFile]:
        """The files in the path's directory, or the one .gguf file that the path is. Raises BuildError."""
        ...


class Secret(NamedTuple):
    """A secret that the config names."""

    name: str
    value: str

    def fields(self, *required: str) -> dict[str, str]:
        """The secret read as a JSON object of strings. Raises ConfigError, which does not show the value."""
        try:
            fields = json.loads(self.value)
        except ValueError:
            fields = None
        if not isinstance(fields, dict) or not all(isinstance(fields.get(name), str) for name in required):
            raise ConfigError(
                f"runtime_secret_name: the secret {self.name} is not a JSON object with {' and '.join(required)}",
                "runtime_secret_name",
            )
        return {name: value for name, value in fields.items() if isinstance(value, str)}


def describe(repo: str) -> str:
    """How errors name a checkpoint: the field and its value."""
    return f"checkpoint_repository.repo {repo}"


def one_line(error: BaseException) -> str:
    """The first line of what an error says, with its kind."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return f"{type(error).__name__}: {line}"
