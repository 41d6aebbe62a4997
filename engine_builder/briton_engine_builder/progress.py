"""Progress of fetching and building: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import threading
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

logger = logging.getLogger(__name__)

_LOG_STEP = 0.25  # share of the work between two log lines


class ProgressBar:
    """One piece of work, shown on standard error. A context manager; its methods are safe from several threads.

    `total` may be unknown (None) until `update` tells it. `shown` False: nothing at all.
    """

    def __init__(self, description: str, total: int | None = None, *, shown: bool, in_bytes: bool = False) -> None:
        self._description = description
        self._total = total
        self._done = 0
        self._log_at = _LOG_STEP
        self._lock = threading.Lock()
        console = Console(stderr=True)
        self._logs = shown and not console.is_terminal
        amount: ProgressColumn = DownloadColumn() if in_bytes else TaskProgressColumn()
        columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
        self._bars = Progress(*columns, console=console, disable=not shown or self._logs)
        self._task = self._bars.add_task(description, total=total)

    def advance(self, amount: int) -> None:
        """So much was done since the last call."""
        with self._lock:
            self._done += amount
            self._show()

    def update(self, done: int, total: int) -> None:
        """So much is done in all."""
        with self._lock:
            self._done, self._total = done, total
            self._show()

    def _show(self) -> None:
        self._bars.update(self._task, completed=self._done, total=self._total)
        share = self._done / self._total if self._total else 0.0
        if self._logs and share >= self._log_at:
            logger.info("%s: %d %%", self._description, share * 100)
            self._log_at = share // _LOG_STEP * _LOG_STEP + _LOG_STEP

    def __enter__(self) -> ProgressBar:
        if self._logs:
            logger.info("%s", self._description)
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()
