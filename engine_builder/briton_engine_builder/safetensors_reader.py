"""Safetensors checkpoints: one file, or shards with their index."""

from __future__ import annotations

import json
from pathlib import Path

from briton.errors import BuildError
from briton.model.safetensors_file import map_safetensors
from briton_engine_builder.tensor import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of one file by name, mapped. Raises BuildError when the file is damaged or truncated."""
    return {
        name: Tensor(name, path, stored.dtype, stored.shape, stored.data)
        for name, stored in map_safetensors(path).items()
    }


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
