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
    """Every tensor of a checkpoint directory: each from the shard that the index names, or all of its single file.

    Raises BuildError, also for an index that contradicts the shards.
    """
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
    found_in: dict[str, str] = {}
    for shard in shards:
        if not (directory / shard).is_file():
            raise BuildError(f"{directory / shard} is missing: {index.name} names it")
        for name, tensor in read_safetensors(directory / shard).items():
            named = weight_map.get(name)
            if named is None and name in tensors:
                raise BuildError(f"{directory}: {name} is in {found_in[name]} and {shard}, and {index.name} in neither")
            if named in (None, shard):
                tensors[name] = tensor
            found_in[name] = shard
    for name, shard in weight_map.items():
        if name not in tensors and name in found_in:  # what is nowhere may not be needed: a tied lm_head
            raise BuildError(f"{directory}: {index.name} names {shard} for {name}, which is in {found_in[name]}")
    return tensors
