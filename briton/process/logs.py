"""How log lines look, and how those of several processes share one stream.

text: `2026-01-31 12:00:00 INFO briton.engine: message`, under `briton serve` with `engine  | ` in front.
json: one object a line with time, level, logger, process, message and, where there is one, request and traceback.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import threading
import time
from typing import TextIO

from briton.v1.current_request import current_request

_ROUTINE_TEXT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (DEBUG|INFO|WARNING) ")
_ROUTINE_JSON = re.compile(r'\{"time": "[^"]*", "level": "(debug|info|warning)"')


def is_routine(line: str) -> bool:
    """Whether a line is a log record below ERROR, which does not say why a process has ended."""
    return bool(_ROUTINE_TEXT.match(line) or _ROUTINE_JSON.match(line))


class LineWriter:
    """Whole lines from several threads to one stream. A closed stream loses lines, not the caller."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def write_line(self, line: str) -> None:
        """Write one line and flush it."""
        with self._lock, contextlib.suppress(OSError, ValueError):  # ValueError: the stream was closed
            self._stream.write(line + "\n")
            self._stream.flush()


class ChildLines:
    """Passes a child's lines on to the supervisor's stream: prefixed as text; as json each line stays one object."""

    def __init__(self, writer: LineWriter, process: str, log_format: str) -> None:
        self._writer = writer
        self._process = process
        self._log_format = log_format

    def __call__(self, line: str) -> None:
        """Pass one line on."""
        if self._log_format == "text":
            self._writer.write_line(f"{self._process:<7} | {line}")
        elif line.startswith("{"):
            self._writer.write_line(line)
        elif line.strip():  # what a library prints past the logger
            entry = {"time": _iso_time(time.time()), "level": "info", "process": self._process, "message": line}
            self._writer.write_line(json.dumps(entry))


class _LineHandler(logging.Handler):
    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.write_line(self.format(record))
        except Exception:
            self.handleError(record)


class _TextFormatter(logging.Formatter):
    """With the request in the end, where the message does not name it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        request = current_request.get()
        suffix = f" (request {request!r})" if request and request not in record.message else ""
        return super().formatMessage(record) + suffix


class _JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _iso_time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._process,
            "message": record.getMessage(),
        }
        if request := current_request.get():
            entry["request"] = request
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def configure_logging(level: str, log_format: str, *, process: str, rank: int | None = None) -> LineWriter:
    """Send all log records of this process to standard error; a `rank` is told in each, where there are several.
    Returns the writer, for whoever passes other lines on."""
    process, prefix = (process, "") if rank is None else (f"{process} rank {rank}", f"rank {rank}: ")
    writer = LineWriter(sys.stderr)
    handler = _LineHandler(writer)
    if log_format == "json":
        handler.setFormatter(_JsonFormatter(process))
    else:
        form = f"%(asctime)s %(levelname)s %(name)s: {prefix}%(message)s"
        handler.setFormatter(_TextFormatter(form, "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in (
        "httpx",
        "httpcore",
        "urllib3",
        "filelock",
        "botocore",
        "azure",
        "google",
    ):  # a line a request, at info
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    return writer


def _iso_time(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"
