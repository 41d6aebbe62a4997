"""How long a prompt and a prediction may be: one check for both ends of the contract."""

from __future__ import annotations

from briton.errors import InvalidRequest


def check_prompt_length(num_tokens: int, max_seq_len: int, field: str = "prompt") -> None:
    """Raise InvalidRequest naming `field` for a prompt of no tokens, or of so many that no output fits."""
    if num_tokens == 0:
        raise InvalidRequest(f"{field}: the prompt must have at least 1 token", field)
    if num_tokens >= max_seq_len:
        raise InvalidRequest(
            f"{field}: the prompt has {num_tokens} tokens, which leaves no room for output: the maximum sequence "
            f"length is {max_seq_len} tokens",
            field,
            "context_length_exceeded",
        )


def check_prediction_length(num_tokens: int, max_seq_len: int, field: str = "prediction") -> None:
    """Raise InvalidRequest naming `field` for a prediction longer than any output can be."""
    if num_tokens > max_seq_len:
        raise InvalidRequest(
            f"{field}: the prediction has {num_tokens} tokens; the maximum sequence length is {max_seq_len} tokens",
            field,
        )
