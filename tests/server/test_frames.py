"""The hand-made chunks are what json.dumps would make, and what the official client's models take."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from briton_server.frames import ChatFrames, CompletionFrames


def parsed(event: str) -> Any:
    assert event.startswith("data: ")
    assert event.endswith("\n\n")
    data = event[6:-2]
    assert data.isascii(), "no U+2028, U+0085 or other line end that a client could split at"
    assert "\n" not in data
    return json.loads(data)


@given(text=st.text(), model=st.text(), index=st.integers(0, 2), include_usage=st.booleans())
def test_chat_chunks(text: str, model: str, index: int, include_usage: bool) -> None:
    frames = ChatFrames("chatcmpl-1", 7, model, 3, include_usage=include_usage)
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": model}
    logprobs = {"content": [{"token": text, "logprob": -0.5, "bytes": [1], "top_logprobs": []}]}

    def choice(delta: dict[str, Any], finish_reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        told = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**head, "choices": [told], **({"usage": None} if include_usage else {})}

    chunks = {
        frames.first(index): choice({"role": "assistant", "content": ""}),
        frames.text(index, text): choice({"content": text}),
        frames.text(index, text, logprobs): choice({"content": text}, logprobs=logprobs),
        frames.finish(index, "length"): choice({}, "length"),
        frames.usage({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}): {
            **head,
            "choices": [],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        },
    }
    for event, wanted in chunks.items():
        assert parsed(event) == wanted
        ChatCompletionChunk.model_validate(parsed(event))


@given(text=st.text(), model=st.text(), include_usage=st.booleans())
def test_completion_chunks(text: str, model: str, include_usage: bool) -> None:
    frames = CompletionFrames("cmpl-1", 7, model, 2, include_usage=include_usage)
    chunk = parsed(frames.text(1, text))
    assert chunk["choices"] == [{"index": 1, "text": text, "logprobs": None, "finish_reason": None}]
    assert chunk["object"] == "text_completion"
    assert chunk.get("usage", "absent") == (None if include_usage else "absent")
    assert parsed(frames.finish(0, "stop")).get("usage", "absent") == (None if include_usage else "absent")
    for event in (
        frames.finish(0, "stop"),
        frames.usage({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}),
    ):
        Completion.model_validate(parsed(event))
