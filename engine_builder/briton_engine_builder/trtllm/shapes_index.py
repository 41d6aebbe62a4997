"""Shapes of checkpoints that were fetched once, so that a cached engine is found without the checkpoint's files."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from briton.model.shapes import ModelShapes, read_shapes
from briton_engine_builder.hf_checkpoint import CONFIG
from briton_engine_builder.sources.fetched import FetchedCheckpoint


class ShapesIndex:
    """One small JSON file for each identity of a checkpoint, in cache_dir/checkpoints/shapes."""

    def __init__(self, cache_dir: Path) -> None:
        self._directory = cache_dir / "checkpoints" / "shapes"

    def look_up(self, fetched: FetchedCheckpoint) -> ModelShapes | None:
        """From the checkpoint's config.json, else from the index; None where neither is there. Raises ConfigError."""
        if (fetched.path / CONFIG).is_file():
            return read_shapes(fetched.path / CONFIG)
        try:
            return ModelShapes(**json.loads(self._file(fetched).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None  # as good as never fetched

    def remember(self, fetched: FetchedCheckpoint, shapes: ModelShapes) -> None:
        """Write the entry, replacing an older one at once. Raises OSError."""
        file = self._file(fetched)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(json.dumps(asdict(shapes), indent=2) + "\n", encoding="utf-8")
        partial.replace(file)

    def _file(self, fetched: FetchedCheckpoint) -> Path:
        return self._directory / f"{hashlib.sha256(fetched.identity.encode()).hexdigest()[:24]}.json"
