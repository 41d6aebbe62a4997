"""Request fields to the engine's SamplingParams. An unset field stays unset: the engine knows the model's defaults."""

from __future__ import annotations

from collections.abc import Sequence

from briton.errors import InvalidRequest
from briton.text.tokenizer import Tokenizer
from briton.v1 import engine_pb2
from briton_server.protocol.generation import GenerationFields


def sampling_params(
    fields: GenerationFields, tokenizer: Tokenizer, *, max_tokens: int | None, logprobs: int | None
) -> engine_pb2.SamplingParams:
    """Ranges were checked by the request model; what only two fields together get wrong is refused here."""
    if max_tokens is not None and (fields.min_tokens or 0) > max_tokens:
        raise InvalidRequest(
            f"min_tokens: {fields.min_tokens} is more than max_tokens, which is {max_tokens}", "min_tokens"
        )
    return engine_pb2.SamplingParams(
        max_tokens=max_tokens,
        min_tokens=fields.min_tokens,
        n=fields.n,
        temperature=fields.temperature,
        top_k=None if fields.top_k is None else max(0, fields.top_k),
        top_p=fields.top_p,
        min_p=fields.min_p,
        repetition_penalty=fields.repetition_penalty,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        logit_bias={int(token_id): bias for token_id, bias in (fields.logit_bias or {}).items()},
        bad_words=[engine_pb2.TokenIds(ids=ids) for ids in _bad_words(fields.bad_words or (), tokenizer)],
        seed=fields.seed,
        logprobs=logprobs,
        stop_token_ids=fields.stop_token_ids,
        ignore_eos=fields.ignore_eos or False,
    )


def _bad_words(words: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Each word as it is tokenized at the start of a line and after a space."""
    spellings: list[list[int]] = []
    for i, word in enumerate(words):
        for text in (word, f" {word.lstrip()}"):
            ids = tokenizer.encode(text, field=f"bad_words[{i}]")
            if ids and ids not in spellings:
                spellings.append(ids)
    return spellings
