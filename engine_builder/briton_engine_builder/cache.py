"""Built engines on disk: cache_dir/engines/KEY. A directory there is complete, or it is not there."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from briton.errors import BuildError
from briton.model.engine_dir import load_manifest
from briton_engine_builder.cache_files import locked, locked_if_free

logger = logging.getLogger(__name__)

_BUILDING = ".building"


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
        with ExitStack() as held:
            try:
                held.enter_context(locked(self.directory / f".{key}.lock", "building this engine"))
            except OSError as error:
                raise BuildError(f"cannot write to the cache directory {self.directory}: {error.strerror}") from error
            yield

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
            with locked_if_free(self.directory / f"{building.name.removesuffix(_BUILDING)}.lock") as is_left:
                if is_left:
                    shutil.rmtree(building, ignore_errors=True)
