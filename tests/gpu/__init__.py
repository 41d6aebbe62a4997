"""Tests on the real TensorRT-LLM: `make test-gpu`. Not part of `make test`; not yet run on a GPU."""
