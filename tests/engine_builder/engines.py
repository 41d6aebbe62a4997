"""Engine directories as a test sees them: configs to build from, and weights read back by nothing of the builder's."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from briton.config.config import Config
from briton.config.loader import load_config
from briton.model.engine_dir import rank_file

Arrays = dict[str, NDArray[Any]]
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I8": np.int8, "U8": np.uint8}


def config_for(
    repo: Path | str,
    folder: Path,
    quantization: str = "no_quant",
    *,
    source: str = "LOCAL",
    precision: str = "auto",
    **build: Any,
) -> Config:
    """A config.yaml in `folder` that builds from a checkpoint, loaded; `build` adds keys to trt_llm.build."""
    optional = {"revision": build.pop("revision", None), "runtime_secret_name": build.pop("secret", None)}
    checkpoint = {"source": source, "repo": str(repo), **{key: value for key, value in optional.items() if value}}
    raw = {
        "trt_llm": {
            "build": {"checkpoint_repository": checkpoint, "quantization_type": quantization, **build},
        },
        "briton": {"local": {"precision": precision}},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return load_config(path)


def open_engine(directory: Path, rank: int = 0) -> Arrays:
    """Every array of a rank as it is stored (BF16 as uint16)."""
    content = (directory / rank_file(rank)).read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    header.pop("__metadata__")
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        data = np.frombuffer(content[8 + size + begin : 8 + size + end], _DTYPES[entry["dtype"]])
        arrays[name] = data.reshape(entry["shape"])
    return arrays


def dequantized(arrays: Arrays, name: str) -> NDArray[np.float32]:
    """A matrix [out, in] in float32, by the words of briton/engine_dir.py: weight = (q - zero) * scale."""
    stored = arrays[name]
    if stored.dtype == np.float32:
        return stored
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    out = stored.shape[0]
    scale = arrays[f"{name}.scale"].astype(np.float32)[:, :, None]
    if stored.dtype == np.int8:
        return (stored.astype(np.float32).reshape(out, scale.shape[1], -1) * scale).reshape(out, -1)
    values = np.stack([stored & 15, stored >> 4], axis=-1).reshape(out, scale.shape[1], -1).astype(np.float32)
    zero = arrays[f"{name}.zero"].astype(np.float32)[:, :, None]
    return ((values - zero) * scale).reshape(out, -1)
