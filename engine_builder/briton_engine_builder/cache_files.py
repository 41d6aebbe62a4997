"""What all caches on disk share: names that people can read, and locks that one process holds at a time."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)


def readable_name(name: str) -> str:
    """A checkpoint's name as the first part of a file's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "model"


@contextmanager
def locked(file: Path, doing: str) -> Iterator[None]:
    """Hold the lock `file`, for which its directory is made; wait where another process holds it, `doing` the same.

    The lock ends with the process, however that ends. Raises OSError.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process is %s: waiting for it", doing)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def locked_if_free(file: Path) -> Iterator[bool]:
    """Hold the lock `file`; False where another process holds it."""
    try:
        with FileLock(file).acquire(timeout=0):
            yield True
    except Timeout:
        yield False
