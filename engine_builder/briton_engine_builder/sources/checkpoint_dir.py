"""Directories of downloaded checkpoints: complete, or under another name. One process at a time fetches one."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

_PARTIAL = ".partial"


class CheckpointDirs:
    """All the versions of one checkpoint, below cache_dir: NAME-HASH-VERSION."""

    def __init__(self, cache_dir: Path, name: str, identity: str) -> None:
        self._cache_dir = cache_dir
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "model"
        self._stem = f"{readable}-{_short_hash(identity)}"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while fetching; another process that holds it is waited for. Raises OSError."""
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._cache_dir / f".{self._stem}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("another process is fetching this checkpoint: waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

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
