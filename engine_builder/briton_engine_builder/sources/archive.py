"""The model in a tar.gz, unpacked. Nothing in an archive is trusted: names, links, sizes or its being whole."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from briton.errors import BuildError
from briton_engine_builder.hf_checkpoint import ADAPTER_CONFIG, CONFIG
from briton_engine_builder.sources.remote import CHUNK
from briton_engine_builder.weights_file import check_free_space

_SUFFIXES = (".safetensors", ".json", ".jinja", ".gguf")
_MAX_MEMBERS = 100_000
_MAX_HEADER_BYTES = 1 << 16  # of all the headers of one member: names and attributes have some hundreds
_MAX_JSON_BYTES = 1 << 30  # a tokenizer has some 30 MB; what is larger is no text of a model


@dataclass(eq=False)
class DamagedArchive(BuildError):
    """It is not whole, or not a tar.gz: another download may do."""


class _Content(gzip.GzipFile):
    """What is in the archive. tarfile reads a header of any size into memory: here its headers are bounded."""

    header_bytes_left: int | None = _MAX_HEADER_BYTES  # None: what is read is no header

    def read(self, size: int | None = -1) -> bytes:
        """See `io.BufferedIOBase`. Raises _LongHeader."""
        if self.header_bytes_left is not None:
            self.header_bytes_left -= size if size is not None and size >= 0 else _MAX_HEADER_BYTES + 1
            if self.header_bytes_left < 0:
                raise _LongHeader
        return super().read(size)


class _LongHeader(Exception):
    """A member's headers have more than _MAX_HEADER_BYTES."""


def unpack(archive: Path, directory: Path, where: str, advance: Callable[[int], None]) -> None:
    """Put the files of the archive's one model into `directory`, which is empty: a .gguf, or config.json and weights.

    `where` is what errors call the archive; `advance` is told of the archive's bytes. Raises BuildError.
    """
    tree = directory / "tree"
    tree.mkdir()
    try:
        with archive.open("rb") as file, _Content(fileobj=file) as content:
            position = 0
            for count, (tar, member) in enumerate(_members(content), 1):
                if count > _MAX_MEMBERS:
                    raise BuildError(f"{where} has more than {_MAX_MEMBERS} members: it is no model")
                if _is_wanted(member, where):
                    _write(tar, member, tree, where)
                advance(file.tell() - position)
                position = file.tell()
            while content.read(CHUNK):  # to the end, where the checksum of all is
                pass
    except (_LongHeader, RecursionError):  # tarfile reads a member's headers one within the other
        raise BuildError(
            f"{where}: a member has more than {_MAX_HEADER_BYTES} bytes of headers: pack it without attributes"
        ) from None
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        if not _begins_like_gzip(archive):
            raise DamagedArchive(f"{where} is not a tar.gz") from error
        raise DamagedArchive(f"{where} is damaged or cut short: {type(error).__name__}: {error}") from error
    model = _find_model(tree, where)
    for path in [model] if model.is_file() else [path for path in model.iterdir() if path.is_file()]:
        path.rename(directory / path.name)
    shutil.rmtree(tree)


def _members(content: _Content) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """All, one after the other. Nothing is kept of those before: tarfile would, and their headers with them."""
    try:
        with tarfile.open(fileobj=content, mode="r:") as tar:
            while (member := tar.next()) is not None:
                content.header_bytes_left = None
                yield tar, member
                content.header_bytes_left = _MAX_HEADER_BYTES
                tar.members.clear()  # type: ignore[attr-defined]
                tar.pax_headers = {}  # of global headers
    except (ValueError, IndexError) as error:  # what tarfile lets through where a sparse file's map is none
        raise tarfile.ReadError(f"bad header: {error}") from error
    content.header_bytes_left = None


def _is_wanted(member: tarfile.TarInfo, where: str) -> bool:
    """Whether a member may be part of the model. Raises BuildError for one that is elsewhere, a link or too large."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise BuildError(f"{where}: its member {member.name!r} points out of the archive")
    if path.suffix not in _SUFFIXES or path.name.startswith("._"):  # what macOS adds
        return False
    if not member.name.isprintable():
        raise BuildError(f"{where}: its member {member.name!r} has a name that cannot be used")
    if member.issym() or member.islnk():
        raise BuildError(
            f"{where}: its member {member.name!r} is a link: pack the files themselves (tar --dereference)"
        )
    if path.suffix in (".json", ".jinja") and member.size > _MAX_JSON_BYTES:
        raise BuildError(f"{where}: its member {member.name!r} has {member.size} bytes, the limit is {_MAX_JSON_BYTES}")
    return member.isfile()


def _begins_like_gzip(archive: Path) -> bool:
    with archive.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, tree: Path, where: str) -> None:
    check_free_space(tree, member.size, f"{member.name} of {where}")
    path = tree / member.name
    path.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None  # it is a regular file
    with source, path.open("wb") as file:
        shutil.copyfileobj(source, file, CHUNK)
        if file.tell() != member.size:
            raise DamagedArchive(
                f"{where} is damaged or cut short: {member.name} has {file.tell()} of {member.size} bytes"
            )


def _find_model(tree: Path, where: str) -> Path:
    """The one directory with config.json (or a LoRA adapter's) and weights, or the one .gguf file."""
    configs = [path.parent for path in tree.rglob(CONFIG)] or [path.parent for path in tree.rglob(ADAPTER_CONFIG)]
    found = sorted(folder for folder in configs if next(folder.glob("*.safetensors"), None)) or sorted(
        tree.rglob("*.gguf")
    )
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(path.relative_to(tree)) for path in found)
        raise BuildError(f"{where} has {len(found)} models ({names}): pack one")
    if next(tree.rglob("*.safetensors"), None):
        raise BuildError(f"{where} has .safetensors weights and no {CONFIG} beside them")
    raise BuildError(f"{where} has no model: neither a .gguf nor {CONFIG} with .safetensors")
