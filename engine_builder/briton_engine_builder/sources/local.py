"""source: LOCAL, a checkpoint that is already on this machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from briton.errors import BuildError
from briton_engine_builder.hf_checkpoint import ADAPTER_CONFIG, CONFIG
from briton_engine_builder.sources.fetched import FetchedCheckpoint

_SUFFIXES = (".safetensors", ".json", ".jinja", ".gguf")


def fetch_local(repo: str) -> FetchedCheckpoint:
    """`repo` is the path of a directory or a .gguf file. Raises BuildError."""
    path = Path(repo).absolute()  # links are not followed: a hub snapshot's lead to blobs without a suffix
    if path.is_dir():
        if not any((path / name).is_file() for name in (CONFIG, ADAPTER_CONFIG)):
            ggufs = sorted(path.glob("*.gguf"))
            if len(ggufs) != 1:
                raise BuildError(
                    f"checkpoint_repository.repo {path} has {len(ggufs)} .gguf files and no config.json: name one file"
                    if ggufs
                    else f"checkpoint_repository.repo {path} has neither config.json nor a .gguf file"
                )
            path = ggufs[0]
    elif not path.is_file():
        raise BuildError(f"checkpoint_repository.repo {path} does not exist")
    elif path.suffix != ".gguf":
        raise BuildError(f"checkpoint_repository.repo {path} is neither a directory nor a .gguf file")
    return FetchedCheckpoint(path, identity_of(path), {"source": "LOCAL", "repo": str(path), "revision": ""})


def identity_of(path: Path) -> str:
    """Names, sizes and modification times of the files that matter: quick, whatever the weights' size."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    # stat() follows links: a hub snapshot's files are links into its blobs
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([str(path), stats]).encode()).hexdigest()
