"""Lookahead's sizes as a config says them."""

from __future__ import annotations

from typing import Any

from briton.types import LookaheadConfig


def speculator(sizes: LookaheadConfig) -> dict[str, Any]:
    """Changes of a config."""
    return {
        "trt_llm.build.gather_all_token_logits": False,
        "trt_llm.build.speculator": {
            "speculative_decoding_mode": "LOOKAHEAD_DECODING",
            "lookahead_windows_size": sizes.window_size,
            "lookahead_ngram_size": sizes.ngram_size,
            "lookahead_verification_set_size": sizes.verification_set_size,
        },
    }
