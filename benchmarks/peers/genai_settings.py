"""What openvino-genai's peers share: their arguments, and the pipelines' properties and scheduler."""

from __future__ import annotations

import argparse
from typing import Any

import openvino_genai as genai

BLOCK_SIZE = 32  # tokens


def parse_arguments() -> argparse.Namespace:
    """The model and the limits that every side of a benchmark is given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for name in ("threads", "batch", "max-num-tokens", "kv-cache-tokens"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("precision", "kv-cache"):
        parser.add_argument(f"--{name}", required=True)
    return parser.parse_args()


def configure(arguments: argparse.Namespace) -> tuple[dict[str, Any], genai.SchedulerConfig]:
    """Properties of a pipeline, and the scheduler of a continuously batching one."""
    properties = {
        "INFERENCE_NUM_THREADS": arguments.threads,
        "INFERENCE_PRECISION_HINT": arguments.precision,
        "KV_CACHE_PRECISION": arguments.kv_cache,
        "PERFORMANCE_HINT": "LATENCY",
    }
    scheduler = genai.SchedulerConfig()
    scheduler.max_num_batched_tokens = arguments.max_num_tokens
    scheduler.max_num_seqs = arguments.batch
    scheduler.num_kv_blocks = arguments.kv_cache_tokens // BLOCK_SIZE
    scheduler.enable_prefix_caching = False
    return properties, scheduler
