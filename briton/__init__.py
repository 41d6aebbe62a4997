"""Briton: the text-generation serving runtime around the TensorRT-LLM executor."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("briton")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
