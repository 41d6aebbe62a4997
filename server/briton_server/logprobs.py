"""The engine's log probabilities in the two shapes of OpenAI's API."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from briton.text.sequence_text import PlacedLogprob
from briton.text.tokenizer import Tokenizer
from briton.v1 import engine_pb2

_LEAST = -9999.0  # OpenAI's word for "impossible": JSON has no infinity


def chat_logprobs(entries: Sequence[PlacedLogprob[engine_pb2.TokenLogprob]], tokenizer: Tokenizer) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion or chunk."""
    return {
        "content": [
            _token(entry.logprob, tokenizer) | {"top_logprobs": [_token(top, tokenizer) for top in entry.logprob.top]}
            for entry in entries
        ]
    }


def completion_logprobs(
    entries: Sequence[PlacedLogprob[engine_pb2.TokenLogprob]], tokenizer: Tokenizer
) -> dict[str, Any]:
    """`choices[].logprobs` of a completion or chunk."""
    return {
        "tokens": [_name(entry.logprob.token_id, tokenizer) for entry in entries],
        "token_logprobs": [_finite(entry.logprob.logprob) for entry in entries],
        "top_logprobs": [_by_name(entry.logprob, tokenizer) for entry in entries],
        "text_offset": [entry.start for entry in entries],
    }


def _by_name(entry: engine_pb2.TokenLogprob, tokenizer: Tokenizer) -> dict[str, float]:
    """The most likely tokens and the sampled one, by name."""
    most_likely = {_name(top.token_id, tokenizer): _finite(top.logprob) for top in entry.top}
    return most_likely | {_name(entry.token_id, tokenizer): _finite(entry.logprob)}


def _token(entry: engine_pb2.TokenLogprob | engine_pb2.TopLogprob, tokenizer: Tokenizer) -> dict[str, Any]:
    content = tokenizer.token_bytes(entry.token_id)
    return {
        "token": content.decode("utf-8", "replace"),
        "logprob": _finite(entry.logprob),
        "bytes": list(content),
    }


def _name(token_id: int, tokenizer: Tokenizer) -> str:
    """A token's text; of one that is no whole character its bytes, so that the names of different tokens differ."""
    content = tokenizer.token_bytes(token_id)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def _finite(logprob: float) -> float:
    """As JSON can say it, with the digits that a float32 has."""
    return max(round(logprob, 6), _LEAST) if math.isfinite(logprob) else _LEAST
