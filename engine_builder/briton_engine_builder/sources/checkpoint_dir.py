"""Directories of downloaded checkpoints: complete, or under another name. One process at a time fetches one."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from briton_engine_builder.cache_files import locked, readable_name

_PARTIAL = ".partial"


class CheckpointDirs:
    """All the versions of one checkpoint, below cache_dir: NAME-HASH-VERSION."""

    def __init__(self, cache_dir: Path, name: str, identity: str) -> None:
        self._cache_dir = cache_dir
        self._stem = f"{readable_name(name)}-{_short_hash(identity)}"

    def lock(self) -> AbstractContextManager[None]:
        """Held while fetching; another process that holds it is waited for. Raises OSError."""
        return locked(self._cache_dir / f".{self._stem}.lock", "fetching this checkpoint")

    def final(self, version: str) -> Path:
        """Where a complete version is."""
        return self._cache_dir / f"{self._stem}-{_short_hash(version)}"

    def partial(self, version: str) -> Path:
        """Where a version is put together, kept from call to call; what was begun of other versions is removed."""
        mine = self._cache_dir / f".{self._stem}-{_short_hash(version)}{_PARTIAL}"
        for directory in self._cache_dir.glob(f".{self._stem}-*{_PARTIAL}"):
            if directory != mine:
                shutil.rmtree(directory, ignore_errors=True)
        mine.mkdir(exist_ok=True)
        return mine


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
