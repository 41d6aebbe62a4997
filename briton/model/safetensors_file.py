"""Safetensors files, mapped, and read without torch: https://github.com/huggingface/safetensors#format.

The header is parsed here because numpy has no bfloat16, which the library's own numpy reader refuses.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from briton.errors import BuildError

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_NUMPY: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F64": np.dtype("<f8"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
}


class StoredTensor(NamedTuple):
    """One tensor of a file. `data` is a view of the mapping, BF16 as uint16; empty for a dtype that is not read
    here."""

    dtype: str
    shape: tuple[int, ...]
    data: NDArray[Any]


def map_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file by name. Raises BuildError, naming file and tensor, when it is damaged or truncated."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes, header = _read_header(path, file.read(8), size, file)
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        raise BuildError(f"{path} cannot be read: {error.strerror or error}") from None
    header.pop("__metadata__", None)
    return {name: _stored(path, name, entry, mapped, 8 + header_bytes) for name, entry in header.items()}


def _read_header(path: Path, prefix: bytes, size: int, file: Any) -> tuple[int, dict[str, Any]]:
    if len(prefix) < 8:
        raise BuildError(f"{path} is truncated: it has {size} bytes, less than a safetensors header")
    (header_bytes,) = struct.unpack("<Q", prefix)
    if header_bytes > min(_MAX_HEADER_BYTES, size - 8):
        raise BuildError(
            f"{path} is truncated or not a safetensors file: its header would have {header_bytes} bytes of {size}"
        )
    try:
        return header_bytes, json.loads(file.read(header_bytes))
    except ValueError as error:
        raise BuildError(f"{path} is damaged: its safetensors header is not JSON ({error})") from None


def _stored(path: Path, name: str, entry: dict[str, Any], mapped: NDArray[np.uint8], data_start: int) -> StoredTensor:
    try:
        dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
        begin, end = (int(n) for n in entry["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise BuildError(f"{path} is damaged: the header's entry of tensor {name} cannot be read") from None
    if data_start + end > mapped.size:
        raise BuildError(
            f"{path} is truncated: tensor {name} ends at byte {data_start + end}, the file at byte {mapped.size}"
        )
    if dtype not in _NUMPY:  # integers that old exports have (position ids), and whatever nobody here can read
        return StoredTensor(dtype, shape, mapped[:0])
    expected = math.prod(shape) * _NUMPY[dtype].itemsize
    if begin < 0 or end - begin != expected:
        raise BuildError(
            f"{path} is damaged: tensor {name} has {end - begin} bytes; {dtype} {list(shape)} needs {expected}"
        )
    # tensors need not be aligned in the file, and views of unaligned bytes are allowed
    return StoredTensor(dtype, shape, np.ndarray(shape, _NUMPY[dtype], buffer=mapped, offset=data_start + begin))
