"""What a checkpoint is, as far as that can be said without network, and without the libraries that fetch."""

from __future__ import annotations

from pathlib import Path

from briton.config.checkpoint import CheckpointRepository
from briton.config.enums import CheckpointSource
from briton_engine_builder.sources.fetched import FetchedCheckpoint, FetchIndex


def remembered(checkpoint: CheckpointRepository, cache_dir: Path) -> FetchedCheckpoint | None:
    """That of a path, or the one that was fetched last time; None when there is none. Raises BuildError for a path that
    is no checkpoint."""
    if checkpoint.source is CheckpointSource.LOCAL:
        from briton_engine_builder.sources.local import fetch_local

        return fetch_local(checkpoint.repo)
    return FetchIndex(cache_dir).look_up(checkpoint.source, checkpoint.key, checkpoint.revision)
