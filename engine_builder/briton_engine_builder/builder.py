"""Config in, engine directory out: the one in the cache, or one that is built now.

What fetches and converts is imported when there is something to build: a server whose engine is there starts sooner.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from briton.config.config import Config
from briton.config.environment import Environment
from briton.errors import BuildError
from briton.model.engine_dir import load_manifest
from briton.process.executor_choice import check_servable, choose_executor, local_target
from briton_engine_builder.cache import EngineCache
from briton_engine_builder.engine_key import check_limits, engine_key
from briton_engine_builder.sources.remembered import remembered


def build_engine(config: Config, environment: Environment, *, progress: bool = True) -> Path:
    """The engine directory of a config, for the executor that is chosen: the cached one, or one built now.

    Raises ConfigError for a limit that the model cannot meet, Unsupported for a model or source that the local executor
    has not got, BuildError for a checkpoint that cannot be fetched, read or converted, and for a disk that is full.
    """
    check_servable(config)
    with _file_errors(config):
        if choose_executor(config).name == "trtllm":
            from briton_engine_builder.trtllm import build_trtllm_engine

            return build_trtllm_engine(config, environment, progress=progress)
        found = find_cached_engine(config, environment)
        if found is not None:
            return found
        from briton_engine_builder.local_build import fetch_and_build

        return fetch_and_build(config, environment, progress)


def find_cached_engine(config: Config, environment: Environment) -> Path | None:
    """The engine directory that `build_engine` would return at once, without network; None when it would have to build.

    Raises as `build_engine` does.
    """
    check_servable(config)
    cache_dir = config.cache_dir(environment)
    with _file_errors(config):
        if choose_executor(config).name == "trtllm":
            from briton_engine_builder.trtllm import find_trtllm_engine

            return find_trtllm_engine(config, environment)
        fetched = remembered(config.checkpoint, cache_dir)
        if fetched is None:
            return None
        found = EngineCache(cache_dir).find(engine_key(config, local_target(config), fetched))
    if found is not None:
        check_limits(config, load_manifest(found).local_model)
    return found


@contextmanager
def _file_errors(config: Config) -> Iterator[None]:
    """A file or directory that cannot be read or made, in one line with its name."""
    try:
        yield
    except OSError as error:
        raise BuildError(f"cannot build an engine from {config.checkpoint}: {error}") from error
