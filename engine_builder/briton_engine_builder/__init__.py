"""Builds engine directories: checkpoint sources, weight conversion and quantization, the build cache."""

from briton_engine_builder.builder import build_engine, find_cached_engine

__all__ = ["build_engine", "find_cached_engine"]
