"""Messages and prompts to token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from briton.errors import InvalidRequest
from briton.text.chat_template import RENDERING_ARGUMENTS, ChatTemplate
from briton.text.control_tokens import ControlTokens
from briton.text.tokenizer import Tokenizer
from briton_server.protocol.chat import Message
from briton_server.protocol.completions import Prompt

PREDICTION_FIELD = "prediction.content"
MAX_PARTS = 2048  # of a message's content


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

    def of_chat(
        self,
        messages: Sequence[Message],
        variables: Mapping[str, Any] | None = None,
        *,
        max_seq_len: int,
        sanitize: bool = True,
    ) -> list[int]:
        """The prompt of a conversation; `variables` are the template's. Raises InvalidRequest naming the message or
        part that is wrong, and, before anything is rendered, for more text than `max_seq_len` tokens can hold.

        Control tokens that a message or a variable spells are text, unless `sanitize` is false.
        """
        checked: Sequence[Mapping[str, Any]] = [_message(message, i) for i, message in enumerate(messages)]
        self._check_characters(sum(_num_characters(message["content"]) for message in checked), max_seq_len, "messages")
        given = _template_variables(variables or {})
        if sanitize:
            checked = [self.control_tokens.mark_message(message) for message in checked]
            given = self.control_tokens.mark(given)
        text = self.template.render(checked, **given)
        self._check_characters(len(text), max_seq_len, "messages")  # of calls, names and variables as well
        encode = self.control_tokens.encode if sanitize else self.tokenizer.encode
        return encode(text, field="messages")

    def of_completion(self, prompt: Prompt, *, max_seq_len: int) -> list[int]:
        """A text's token ids, with the BOS that the model wants; token ids as they are. Raises InvalidRequest."""
        if not isinstance(prompt, str):
            return prompt
        self._check_characters(len(prompt), max_seq_len, "prompt")
        return self.tokenizer.encode(prompt, add_special_tokens=True, field="prompt")

    def of_prediction(self, content: Any, *, max_seq_len: int) -> list[int]:
        """The token ids of what an answer may repeat. Raises InvalidRequest naming the part that is wrong."""
        checked = _content(content, PREDICTION_FIELD)
        self._check_characters(_num_characters(checked), max_seq_len, PREDICTION_FIELD)
        text = checked if isinstance(checked, str) else "".join(part["text"] for part in checked)
        return self.tokenizer.encode(text, field=PREDICTION_FIELD)

    def _check_characters(self, num_characters: int, max_seq_len: int, field: str) -> None:
        """Raise InvalidRequest for a text that is too long even if it is made of the longest tokens."""
        longest = self.tokenizer.longest_token
        if longest is not None and num_characters > longest * max_seq_len:
            raise InvalidRequest(
                f"{field}: has {num_characters} characters; the maximum sequence length of {max_seq_len} tokens "
                f"holds at most {longest * max_seq_len}",
                field,
                "context_length_exceeded",
            )


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
    if len(content) > MAX_PARTS:
        raise InvalidRequest(f"{path}: has {len(content)} parts; the limit is {MAX_PARTS}", path)
    return [{"type": "text", "text": _part(part, f"{path}[{i}]")} for i, part in enumerate(content)]


def _num_characters(content: str | list[dict[str, str]]) -> int:
    return len(content) if isinstance(content, str) else sum(len(part["text"]) for part in content)


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
