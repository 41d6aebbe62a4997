"""Built engines on disk: cache_dir/engines/KEY. A directory there is complete, or it is not there."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from briton.errors import BuildError
from briton.model.engine_dir import load_manifest

logger = logging.getLogger(__name__)

_BUILDING = ".building"


def readable_name(name: str) -> str:
    """A checkpoint's name as the first part of a directory's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "model"


class EngineCache:
    """The engines of one cache directory."""

    def __init__(self, cache_dir: Path) -> None:
        self.directory = cache_dir / "engines"

    def find(self, key: str) -> Path | None:
        """The engine directory of a key, checked; None when there is none, or one that was damaged."""
        directory = self.directory / key
        if not directory.is_dir():
            return None
        try:
            load_manifest(directory)
        except BuildError as error:
            logger.warning("the cached engine is not used: %s", error)
            return None
        return directory

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Held by the one process that builds this key; others wait. Ends with the process, however that ends."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.directory / f".{key}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                logger.info("another process is building this engine: waiting for it")
                lock.acquire()
        except OSError as error:
            raise BuildError(f"cannot write to the cache directory {self.directory}: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def new_directory(self, key: str) -> Iterator[Path]:
        """An empty directory to build in: the key's when the block ends well, gone when it does not.

        Call it with the lock held.
        """
        building = self._building(key)
        self._sweep()
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        try:
            yield building
            shutil.rmtree(self.directory / key, ignore_errors=True)  # a damaged one
            building.rename(self.directory / key)
        except OSError as error:
            raise BuildError(f"cannot build an engine in {self.directory}: {error}") from error
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _building(self, key: str) -> Path:
        return self.directory / f".{key}{_BUILDING}"

    def _sweep(self) -> None:
        """Remove what killed builders left: directories whose lock nobody holds."""
        for building in self.directory.glob(f".*{_BUILDING}"):
            lock = FileLock(self.directory / f"{building.name.removesuffix(_BUILDING)}.lock")
            with suppress(Timeout), lock.acquire(timeout=0):
                shutil.rmtree(building, ignore_errors=True)
