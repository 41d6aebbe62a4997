"""Where checkpoints come from: a path, the Hugging Face hub, a package that ships weights, object stores, a URL."""

from briton_engine_builder.sources.fetch import Fetcher
from briton_engine_builder.sources.fetched import FetchedCheckpoint

__all__ = ["FetchedCheckpoint", "Fetcher"]
