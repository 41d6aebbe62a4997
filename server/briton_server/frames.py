"""The bytes of a streamed answer's chunks. Built by hand: this runs once a token, beside the model on the same cores.

All strings are written in ASCII (`\\uXXXX`), so no client can take a character such as U+2028 for the end of a line.
"""

from __future__ import annotations

import json
from json.encoder import encode_basestring_ascii as quote
from typing import Any


class ChatFrames:
    """Chunks of one chat completion stream: role, deltas, finish, usage."""

    def __init__(
        self, completion_id: str, created: int, model: str, num_choices: int, *, include_usage: bool = False
    ) -> None:
        """`include_usage`: the last chunk has `usage`, and all others say that they have none, as OpenAI's do."""
        self._head = _head(completion_id, "chat.completion.chunk", created, model)
        self._heads = [f'{self._head}{{"index":{index},"delta":{{' for index in range(num_choices)]
        self._end = _end(include_usage)
        self._no_logprobs = f'}},"logprobs":null,"finish_reason":null{self._end}'

    def first(self, index: int, text: str = "") -> str:
        """The chunk that opens a choice: the only one with a role."""
        return f'{self._heads[index]}"role":"assistant","content":{quote(text)}{self._no_logprobs}'

    def text(self, index: int, text: str, logprobs: dict[str, Any] | None = None) -> str:
        """New text of a choice, with the log probabilities of its tokens."""
        content = f'{self._heads[index]}"content":{quote(text)}'
        if logprobs is None:
            return content + self._no_logprobs
        return f'{content}}},"logprobs":{_dumps(logprobs)},"finish_reason":null{self._end}'

    def finish(self, index: int, reason: str) -> str:
        """The chunk that ends a choice."""
        return f'{self._heads[index]}}},"logprobs":null,"finish_reason":"{reason}"{self._end}'

    def usage(self, usage: dict[str, Any]) -> str:
        """The chunk after all choices."""
        return f'{self._head}],"usage":{_dumps(usage)}}}\n\n'


class CompletionFrames:
    """Chunks of one legacy completion stream: texts, finish, usage."""

    def __init__(
        self, completion_id: str, created: int, model: str, num_choices: int, *, include_usage: bool = False
    ) -> None:
        """`include_usage`: as with chat completions."""
        self._head = _head(completion_id, "text_completion", created, model)
        self._heads = [f'{self._head}{{"index":{index},"text":' for index in range(num_choices)]
        self._end = _end(include_usage)

    def first(self, index: int, text: str = "") -> str:
        """The chunk that opens a choice, with what comes before its own text."""
        return self.text(index, text)

    def text(self, index: int, text: str, logprobs: dict[str, Any] | None = None) -> str:
        """New text of a choice, with the log probabilities of its tokens."""
        told = "null" if logprobs is None else _dumps(logprobs)
        return f'{self._heads[index]}{quote(text)},"logprobs":{told},"finish_reason":null{self._end}'

    def finish(self, index: int, reason: str) -> str:
        """The chunk that ends a choice."""
        return f'{self._heads[index]}"","logprobs":null,"finish_reason":"{reason}"{self._end}'

    def usage(self, usage: dict[str, Any]) -> str:
        """The chunk after all choices."""
        return f'{self._head}],"usage":{_dumps(usage)}}}\n\n'


def _head(completion_id: str, kind: str, created: int, model: str) -> str:
    """Every chunk of a stream, up to its choices."""
    names = f'"id":{quote(completion_id)},"object":"{kind}","created":{created},"model":{quote(model)}'
    return f'data: {{{names},"choices":['


def _end(include_usage: bool) -> str:
    """Every chunk of a stream, after its choice."""
    return '}],"usage":null}\n\n' if include_usage else "}]}\n\n"


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
