"""sources S3, GCS and AZURE: the files at one path of an object store, in a directory here."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from briton.config.enums import CheckpointSource
from briton.config.object_url import ObjectURL
from briton.errors import BuildError
from briton_engine_builder.progress import ProgressBar
from briton_engine_builder.sources.checkpoint_dir import CheckpointDirs
from briton_engine_builder.sources.download import PART, download
from briton_engine_builder.sources.fetched import FetchedCheckpoint
from briton_engine_builder.sources.model_files import needed_files
from briton_engine_builder.sources.remote import ObjectStore, RemoteFile, describe
from briton_engine_builder.weights_file import check_free_space

logger = logging.getLogger(__name__)

_CONNECTIONS = 4


def fetch_objects(
    source: CheckpointSource, url: ObjectURL, store: ObjectStore, cache_dir: Path, *, progress: bool
) -> FetchedCheckpoint:
    """The checkpoint at `url`, below cache_dir; what is there already is not fetched again. Raises BuildError."""
    listed = {file.name: file for file in store.list_files()}
    if not listed:
        raise BuildError(f"{describe(str(url))}: there is nothing at this path of {url.bucket}")
    files = [listed[name] for name in needed_files(describe(str(url)), list(listed))]
    version = hashlib.sha256(json.dumps([[file.name, file.size, file.version] for file in files]).encode()).hexdigest()
    directories = CheckpointDirs(cache_dir, url.path.rpartition("/")[2] or url.bucket, str(url))
    try:
        with directories.lock():
            directory = directories.final(version)
            if not _is_complete(directory, files):
                logger.info("fetching %s", url)
                partial = directories.partial(version)
                _download_all(url, store, files, partial, progress)
                shutil.rmtree(directory, ignore_errors=True)  # a damaged one
                partial.rename(directory)
    except OSError as error:
        raise BuildError(f"cannot fetch {describe(str(url))}: {error}") from error
    path = directory / files[0].name if files[0].name.endswith(".gguf") else directory
    return FetchedCheckpoint(
        path, f"{source} {url} {version}", {"source": source, "repo": str(url), "revision": version}
    )


def _is_complete(directory: Path, files: list[RemoteFile]) -> bool:
    return all((directory / f.name).is_file() and (directory / f.name).stat().st_size == f.size for f in files)


def _download_all(url: ObjectURL, store: ObjectStore, files: list[RemoteFile], partial: Path, progress: bool) -> None:
    """Several at a time, since one connection is slower than most networks. The first failure stops all."""
    total = sum(file.size or 0 for file in files)
    paths = [path for f in files for path in (partial / f.name, partial / (f.name + PART))]
    check_free_space(partial, total - sum(path.stat().st_size for path in paths if path.is_file()), describe(str(url)))
    stopped = threading.Event()
    with ProgressBar(f"Fetching {url}", total, shown=progress, in_bytes=True) as bar:

        def advance(amount: int) -> None:
            if stopped.is_set():
                raise BuildError("another file has failed")  # which is the error that is shown
            bar.advance(amount)

        with ThreadPoolExecutor(_CONNECTIONS, "fetch") as pool:
            by_size = sorted(files, key=lambda file: file.size or 0)  # if small ones fail, that costs least
            fetches = [pool.submit(download, store, file, partial / file.name, advance) for file in by_size]
            try:
                for fetched in as_completed(fetches):
                    fetched.result()
            finally:
                stopped.set()  # all have ended well, or one has not, or Ctrl-C
                pool.shutdown(wait=False, cancel_futures=True)
