"""A safetensors file written in slices, in any order and from several threads, without holding a tensor in memory."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from briton.errors import BuildError
from briton_engine_builder.encodings import Arrays
from briton_engine_builder.tensor import Rows

_ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1}
_ALIGNMENT = 64  # of the first tensor, in bytes: a mapped file is read by vector instructions
SPARE_BYTES = 64 * 1024**2  # left free for the tokenizer and whatever else the machine writes meanwhile


class WeightsFile:
    """One new file, its size and header fixed at once, its arrays filled in by `write_rows`. A context manager.

    Raises BuildError when the disk has not got the room.
    """

    def __init__(self, path: Path, arrays: Arrays, metadata: Mapping[str, str]) -> None:
        self.path = path
        self._begin: dict[str, int] = {}
        self._row_bytes: dict[str, int] = {}
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        end = 0
        # larger items first, so that every array is aligned to its item
        for name, (dtype, shape) in sorted(arrays.items(), key=lambda item: -_ITEM_BYTES[item[1][0]]):
            size = math.prod(shape) * _ITEM_BYTES[dtype]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
            self._begin[name], self._row_bytes[name] = end, size // max(1, shape[0])
            end += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % _ALIGNMENT)
        self._data_start = 8 + len(text)
        self.size = self._data_start + end
        check_free_space(path.parent, self.size + SPARE_BYTES, path.name)
        self._descriptor = -1
        self._header = len(text).to_bytes(8, "little") + text

    def write_rows(self, name: str, first_row: int, rows: Rows) -> None:
        """Put rows into an array, from first_row on. Safe from several threads. BuildError if the disk is full."""
        begin = self._data_start + self._begin[name] + first_row * self._row_bytes[name]
        if rows.nbytes != len(rows) * self._row_bytes[name]:
            raise ValueError(f"{name}: {rows.nbytes} bytes for {len(rows)} rows of {self._row_bytes[name]}")
        self._write(np.ascontiguousarray(rows).data.cast("B"), begin)

    def _write(self, data: bytes | memoryview, position: int) -> None:
        rest = memoryview(data)
        try:
            while rest:
                written = os.pwrite(self._descriptor, rest, position)
                rest, position = rest[written:], position + written
        except OSError as error:
            raise BuildError(f"cannot write {self.path}: {error.strerror}") from error

    def __enter__(self) -> WeightsFile:
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.truncate(self._descriptor, self.size)
        self._write(self._header, 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                os.fsync(self._descriptor)  # the directory's new name must not survive a crash that its content did not
        except OSError as failed:
            raise BuildError(f"cannot write {self.path}: {failed.strerror}") from failed
        finally:
            os.close(self._descriptor)


def check_free_space(directory: Path, needed: int, what: str) -> None:
    """Raise BuildError, with both numbers, when the disk of a directory has less than `needed` bytes free."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise BuildError(
            f"not enough disk space in {directory} for {what}: {needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free"
        )
