"""source: REMOTE_URL, a model in a tar.gz at an HTTP URL."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from briton.config.checkpoint import CheckpointRepository
from briton.errors import BuildError
from briton_engine_builder.hashing import sha256_of
from briton_engine_builder.hf_checkpoint import CONFIG
from briton_engine_builder.progress import ProgressBar
from briton_engine_builder.sources.archive import DamagedArchive, unpack
from briton_engine_builder.sources.checkpoint_dir import CheckpointDirs
from briton_engine_builder.sources.download import PART, download
from briton_engine_builder.sources.fetched import FetchedCheckpoint
from briton_engine_builder.sources.http_file import HTTPFile
from briton_engine_builder.sources.remote import RemoteFile, describe
from briton_engine_builder.weights_file import check_free_space

logger = logging.getLogger(__name__)

RECORD = ".archive.json"  # beside the model's files, written last
_ARCHIVE = "archive.tar.gz"


def fetch_archive(
    checkpoint: CheckpointRepository, cache_dir: Path, *, token: str | None, progress: bool
) -> FetchedCheckpoint:
    """The model of the archive at checkpoint.secret_url, below cache_dir. Raises BuildError.

    Fetched again unless the server's ETag or date, and the size, are those of an archive that is here unpacked.
    """
    url = checkpoint.repo
    remote = HTTPFile(checkpoint.secret_url, url, token)
    file = remote.look(_ARCHIVE)
    version = json.dumps([file.version, file.size])
    directories = CheckpointDirs(cache_dir, checkpoint.name, url)
    try:
        with directories.lock():
            directory = directories.final(version)
            known = _read_record(directory, url)
            if known is not None and file.version:
                return known
            logger.info("fetching %s", url)
            partial = directories.partial(version)
            archive = partial / _ARCHIVE
            _fetch_into(archive, remote, file, url, progress)
            digest = sha256_of(archive)
            if known is not None and known.source["revision"] == digest:
                shutil.rmtree(partial)
                return known  # another process may be reading it now
            record = {"sha256": digest, "files": _unpack_into(partial, archive, url, progress)}
            (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            archive.unlink()
            shutil.rmtree(directory, ignore_errors=True)  # a damaged one
            partial.rename(directory)
            return _fetched(directory, url, record)
    except OSError as error:
        raise BuildError(f"cannot fetch {describe(url)}: {error}") from error


def _fetch_into(archive: Path, remote: HTTPFile, file: RemoteFile, url: str, progress: bool) -> None:
    """The archive itself: whole, from here or from the server."""
    if not file.version:
        archive.unlink(missing_ok=True)
    if file.size is not None:
        parts = (archive, archive.with_name(archive.name + PART))
        check_free_space(archive.parent, file.size - sum(p.stat().st_size for p in parts if p.is_file()), describe(url))
    with ProgressBar(f"Fetching {url}", file.size, shown=progress, in_bytes=True) as bar:
        download(remote, file, archive, bar.advance)


def _unpack_into(partial: Path, archive: Path, url: str, progress: bool) -> dict[str, int]:
    """The model's files beside the archive; names and sizes. A damaged archive is removed."""
    unpacked = partial / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir()
    try:
        with ProgressBar(f"Unpacking {url}", archive.stat().st_size, shown=progress, in_bytes=True) as bar:
            unpack(archive, unpacked, describe(url), bar.advance)
    except DamagedArchive:
        archive.unlink()
        raise
    sizes = {path.name: path.stat().st_size for path in unpacked.iterdir()}
    for name in sizes:
        (unpacked / name).rename(partial / name)
    unpacked.rmdir()
    return sizes


def _read_record(directory: Path, url: str) -> FetchedCheckpoint | None:
    """What was unpacked here; None if there is nothing, or less than there was."""
    try:
        record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
        if any((directory / name).stat().st_size != size for name, size in record["files"].items()):
            return None
        return _fetched(directory, url, record)
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _fetched(directory: Path, url: str, record: dict[str, Any]) -> FetchedCheckpoint:
    digest, names = record["sha256"], record["files"]
    ggufs = [name for name in names if name.endswith(".gguf")]
    source = {"source": "REMOTE_URL", "repo": url, "revision": digest}
    path = directory / ggufs[0] if ggufs and CONFIG not in names else directory
    return FetchedCheckpoint(path, f"REMOTE_URL {url} {digest}", source)
