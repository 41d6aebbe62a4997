"""A checkpoint that is on this machine, and what is remembered of it, so that the next start needs no network."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FetchedCheckpoint:
    """A directory with config.json or a .gguf file, and which exact content that is."""

    path: Path
    identity: str  # changes when the content does: a commit, a version with its hash, sizes and times
    source: dict[str, str] = field(default_factory=dict)  # for the manifest: source, repo, revision


class FetchIndex:
    """What a (source, repository's key, revision) was last time: one JSON file each, in cache_dir/checkpoints/index.

    A branch or "the latest version" stays what it was at the first fetch until its file is deleted.
    """

    def __init__(self, cache_dir: Path) -> None:
        self.directory = cache_dir / "checkpoints" / "index"

    def look_up(self, source: str, key: str, revision: str | None) -> FetchedCheckpoint | None:
        """The remembered checkpoint, whose files may have been deleted since; None when there is none."""
        try:
            entry = json.loads(self._file(source, key, revision).read_text(encoding="utf-8"))
            return FetchedCheckpoint(Path(entry["path"]), entry["identity"], dict(entry["source"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None  # as good as never fetched

    def remember(self, source: str, key: str, revision: str | None, fetched: FetchedCheckpoint) -> None:
        """Write the entry, replacing an older one at once."""
        file = self._file(source, key, revision)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(
            json.dumps({**asdict(fetched), "path": str(fetched.path)}, indent=2) + "\n", encoding="utf-8"
        )
        partial.replace(file)

    def _file(self, source: str, key: str, revision: str | None) -> Path:
        digest = hashlib.sha256(json.dumps([source, key, revision]).encode()).hexdigest()[:24]
        return self.directory / f"{digest}.json"
