"""Safetensors files, read without torch: https://github.com/huggingface/safetensors#format.

The header is parsed here because numpy has no bfloat16, which the library's own numpy reader refuses.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from briton.errors import BuildError
from briton_engine_builder.tensor import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_NUMPY: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F64": np.dtype("<f8"),
}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of one file by name, mapped. Raises BuildError when the file is damaged or truncated."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise BuildError(f"{path} is truncated: it has {size} bytes, less than a safetensors header")
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > min(_MAX_HEADER_BYTES, size - 8):
            raise BuildError(
                f"{path} is truncated or not a safetensors file: its header would have {header_bytes} bytes of {size}"
            )
        try:
            header: dict[str, Any] = json.loads(file.read(header_bytes))
        except ValueError as error:
            raise BuildError(f"{path} is damaged: its safetensors header is not JSON ({error})") from None
    header.pop("__metadata__", None)
    data_start = 8 + header_bytes
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    return {name: _tensor(path, name, entry, mapped, data_start) for name, entry in header.items()}


def read_safetensors_directory(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint directory: its index's shards, or its single file. Raises BuildError."""
    index = directory / INDEX
    if not index.is_file():
        files = [directory / SINGLE] if (directory / SINGLE).is_file() else sorted(directory.glob("*.safetensors"))
        if len(files) != 1:
            found = f"{len(files)} .safetensors files and no {INDEX}" if files else "no .safetensors file"
            raise BuildError(f"{directory} has {found}: a checkpoint is {SINGLE}, or shards with their index")
        return read_safetensors(files[0])
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BuildError(f"{index} is not a safetensors index: {error!r}") from None
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if not (directory / shard).is_file():
            raise BuildError(f"{directory / shard} is missing: {index.name} names it")
        tensors.update(read_safetensors(directory / shard))
    return tensors


def _tensor(path: Path, name: str, entry: dict[str, Any], mapped: np.memmap[Any, Any], data_start: int) -> Tensor:
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
        return Tensor(name, path, dtype, shape, mapped[:0])
    expected = math.prod(shape) * _NUMPY[dtype].itemsize
    if begin < 0 or end - begin != expected:
        raise BuildError(
            f"{path} is damaged: tensor {name} has {end - begin} bytes; {dtype} {list(shape)} needs {expected}"
        )
    # tensors need not be aligned in the file, and views of unaligned bytes are allowed
    data = np.ndarray(shape, _NUMPY[dtype], buffer=mapped, offset=data_start + begin)
    return Tensor(name, path, dtype, shape, data)
