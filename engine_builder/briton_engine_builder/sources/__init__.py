"""Where checkpoints come from: a path, the Hugging Face hub, a package that ships weights."""

from briton_engine_builder.sources.fetch import FetchedCheckpoint, Fetcher

__all__ = ["FetchedCheckpoint", "Fetcher"]
