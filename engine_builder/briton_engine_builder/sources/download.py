"""One remote file to one file here: gone on with where it stopped, checked, there as a whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from briton.errors import BuildError
from briton_engine_builder.sources.remote import CHUNK, CannotResume, Checksum, RemoteFile, RemoteFiles, Unreachable
from briton_engine_builder.weights_file import SPARE_BYTES, check_free_space

PART = ".part"  # suffix of a file that is not whole
_TRIES = 6  # in a row that come no further
_MAX_BYTES = 1 << 40  # of a file whose size the server does not say; the largest checkpoints have as much
_PAUSE_S = 0.5  # before the second try; doubles


def download(remote: RemoteFiles, file: RemoteFile, path: Path, advance: Callable[[int], None]) -> None:
    """Make `path` the remote file. What an earlier call left in PATH.part is kept and gone on from.

    The caller sees to it that PATH.part is of the same version. `advance` is told of bytes, negative when a part of
    them is fetched anew. Raises BuildError: for a content that is not what the store says, after which PATH.part is
    gone; for a full disk and for a server that does not answer (Unreachable), after which it is kept.
    """
    if path.is_file():
        advance(path.stat().st_size)
        return
    part = path.with_name(path.name + PART)
    if not file.version:  # nobody can say that this is still the same file
        part.unlink(missing_ok=True)
    try:
        _complete(remote, file, part, advance)
        if checksum := remote.checksum_of(file):
            _check(part, checksum, file)
        part.replace(path)
    except OSError as error:
        raise BuildError(f"cannot write {part}: {error.strerror}") from error


def _complete(remote: RemoteFiles, file: RemoteFile, part: Path, advance: Callable[[int], None]) -> None:
    """Fetch the rest of PATH.part. It never has more than the server said, nor does it fill the disk."""
    part.touch()
    failures = furthest = 0
    advance(part.stat().st_size)
    while (begin := part.stat().st_size) != file.size:
        if file.size is not None and begin > file.size:
            _refuse_longer(file, part)
        try:
            with part.open("ab") as sink:
                for data in remote.read(file, begin):
                    if file.size is None:
                        check_free_space(part.parent, len(data) + SPARE_BYTES, file.label)
                    if sink.tell() + len(data) > (_MAX_BYTES if file.size is None else file.size):
                        _refuse_longer(file, part)
                    sink.write(data)
                    advance(len(data))
            if file.size is None:
                return
            if part.stat().st_size < file.size:
                raise Unreachable(
                    f"{file.label}: the connection ended after {part.stat().st_size} of {file.size} bytes"
                )
        except CannotResume:
            part.write_bytes(b"")
            advance(-begin)
        except Unreachable:
            position = part.stat().st_size
            failures, furthest = (1, position) if position > furthest else (failures + 1, furthest)
            if failures == _TRIES:
                raise
            time.sleep(_PAUSE_S * 2 ** (failures - 1))


def _refuse_longer(file: RemoteFile, part: Path) -> NoReturn:
    part.unlink()
    if file.size is None:
        raise BuildError(f"{file.label} has more than {_MAX_BYTES} bytes, and its server does not say how many")
    raise BuildError(f"{file.label} is longer than the {file.size} bytes that its server said: try again")


def _check(part: Path, checksum: Checksum, file: RemoteFile) -> None:
    digest = checksum.new()
    with part.open("rb") as content:
        while data := content.read(CHUNK):
            digest.update(data)
    if digest.digest() != checksum.expected:
        part.unlink()
        raise BuildError(
            f"{file.label} arrived damaged: its {checksum.name} is {digest.digest().hex()}, "
            f"the server says {checksum.expected.hex()}: try again"
        )
