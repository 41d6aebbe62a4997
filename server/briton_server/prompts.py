"""Messages and prompts to token ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anyio.to_thread

from briton.errors import InvalidRequest
from briton.text.chat_template import RENDERING_ARGUMENTS, ChatTemplate
from briton.text.control_tokens import ControlTokens
from briton.text.tokenizer import Tokenizer
from briton_server.protocol.chat import Message
from briton_server.protocol.completions import Prompt

PREDICTION_FIELD = "prediction.content"
_LONG_TEXT = 16 * 1024  # characters: more than a millisecond of tokenizing, which other streams would feel


class Prompts(NamedTuple):
    """A model's tokenizer and chat template."""

    tokenizer: Tokenizer
    template: ChatTemplate
    control_tokens: ControlTokens

    @classmethod
    def load(cls, directory: Path) -> Prompts:
        """Read both from an engine directory. Raises BuildError."""
        tokenizer, template = Tokenizer.load(directory), ChatTemplate.load(directory)
        return cls(tokenizer, template, ControlTokens(tokenizer, template))

    async def of_chat(
        self, messages: Sequence[Message], variables: Mapping[str, Any] | None = None, *, sanitize: bool = True
    ) -> list[int]:
        """The prompt of a conversation; `variables` are the template's. Raises InvalidRequest naming the message or
        part that is wrong.

        Control tokens that a message or a variable spells are text, unless `sanitize` is false.
        """
        checked = [_message(message, i) for i, message in enumerate(messages)]
        given = _template_variables(variables or {})
        if not sanitize:
            return await self._encode(
                self.template.render(checked, **given), add_special_tokens=False, field="messages"
            )
        marked = [self.control_tokens.mark_message(message) for message in checked]
        text = self.template.render(marked, **self.control_tokens.mark(given))
        return await self._in_thread_if_long(text, lambda: self.control_tokens.encode(text, field="messages"))

    async def of_completion(self, prompt: Prompt) -> list[int]:
        """A text's token ids, with the BOS that the model wants; token ids as they are."""
        if isinstance(prompt, str):
            return await self._encode(prompt, add_special_tokens=True, field="prompt")
        return prompt

    async def of_prediction(self, content: Any) -> list[int]:
        """The token ids of what an answer may repeat. Raises InvalidRequest naming the part that is wrong."""
        checked = _content(content, PREDICTION_FIELD)
        text = checked if isinstance(checked, str) else "".join(part["text"] for part in checked)
        return await self._encode(text, add_special_tokens=False, field=PREDICTION_FIELD)

    async def _encode(self, text: str, *, add_special_tokens: bool, field: str) -> list[int]:
        return await self._in_thread_if_long(text, lambda: self.tokenizer.encode(text, add_special_tokens, field=field))

    async def _in_thread_if_long(self, text: str, encode: Callable[[], list[int]]) -> list[int]:
        return encode() if len(text) <= _LONG_TEXT else await anyio.to_thread.run_sync(encode)


def _template_variables(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """The variables themselves. Raises InvalidRequest for what is no variable, but an argument of the rendering."""
    for name in RENDERING_ARGUMENTS.intersection(variables):
        path = f"chat_template_kwargs.{name}"
        raise InvalidRequest(f"{path}: is not a variable of a chat template, and cannot be set here", path)
    return variables


def _message(message: Message, index: int) -> Mapping[str, Any]:
    """A message as templates know it: unset fields are absent, and `developer` is what it replaced, `system`."""
    path = f"messages[{index}].content"
    fields: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    if message.content is None:
        if message.role != "assistant":
            raise InvalidRequest(f"{path}: field required for the role {message.role!r}", path)
        fields["content"] = ""
    else:
        fields["content"] = _content(message.content, path)
    for name in ("name", "tool_calls", "tool_call_id"):
        if (value := getattr(message, name)) is not None:
            fields[name] = value
    return fields


def _content(content: Any, path: str) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return _checked_text(content, path)
    if not isinstance(content, list):
        raise InvalidRequest(f"{path}: must be a string or a list of content parts", path)
    if not content:
        raise InvalidRequest(f"{path}: must have at least 1 part", path)
    return [{"type": "text", "text": _part(part, f"{path}[{i}]")} for i, part in enumerate(content)]


def _part(part: Any, path: str) -> str:
    if not isinstance(part, dict):
        raise InvalidRequest(f"{path}: must be an object with a type and a text", path)
    if (kind := part.get("type")) != "text":
        raise InvalidRequest(f"{path}.type: {kind!r} is not supported: this model takes text only", f"{path}.type")
    if not isinstance(text := part.get("text"), str):
        raise InvalidRequest(f"{path}.text: must be a string", f"{path}.text")
    return _checked_text(text, f"{path}.text")


def _checked_text(text: str, path: str) -> str:
    if "\0" in text:
        raise InvalidRequest(f"{path}: must not contain NUL characters (U+0000)", path)
    return text
