"""The served model of `bench_traffic.py`: the example's config as it is in this tree, and variants of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from briton.config.config import Config
from briton.config.environment import load_environment
from briton.config.loader import load_config
from briton_engine_builder import build_engine

EXAMPLE = Path(__file__).parents[1] / "examples" / "smollm2-135m-instruct" / "config.yaml"


def example() -> tuple[Config, Path]:
    """The config, and its engine directory, built now if need be."""
    config = load_config(EXAMPLE)
    return config, build_engine(config, load_environment())


def variant(name: str, **briton: Any) -> Path:
    """A config file in the cache: the example's, with other values of its `briton` section, and quiet logs."""
    content = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    content["briton"] = merged(content.get("briton") or {}, {"logging": {"level": "error"}, **briton})
    folder = load_environment().cache_dir / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"traffic-{name}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings joined key by key, all the way down; what is above wins."""
    return {
        key: merged(below[key], above[key])
        if isinstance(below.get(key), Mapping) and isinstance(above.get(key), Mapping)
        else above.get(key, below.get(key))
        for key in {**below, **above}
    }
