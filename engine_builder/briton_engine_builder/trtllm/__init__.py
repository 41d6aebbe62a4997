"""Engines of target "trtllm", built by the library itself.

    config -> plan (briton.trtllm) -> BuildJob -> child process: LLM(...).save() -> engine directory, in the cache

The library, its CUDA context and what its workers do wrong stay in the child: `python -m
briton_engine_builder.trtllm.child JOB`. Written after release 1.2.1's public code. Not yet run on a GPU.
"""

from briton_engine_builder.trtllm.builder import build_trtllm_engine, find_trtllm_engine

__all__ = ["build_trtllm_engine", "find_trtllm_engine"]
