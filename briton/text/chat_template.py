"""Chat templates: a conversation to the prompt text its model was trained on, rendered by transformers' own sandbox."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from typing_extensions import Self

from briton.errors import BuildError, InvalidRequest, Unsupported

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
_PROCESSOR_FILE = "chat_template.json"  # where processors of before transformers 4.50 keep theirs
# What is no variable of a template, but says how it is rendered.
RENDERING_ARGUMENTS = frozenset(
    {
        "messages",
        "conversations",
        "tools",
        "chat_template",
        "tokenize",
        "add_generation_prompt",
        "continue_final_message",
        "return_assistant_tokens_mask",
        "sanitize_control_tokens",
    }
)
_PROBE = "Where does the tide go"


class ChatTemplate:
    """The template of one model, or of none: then `render` says that the model has none.

    Immutable. `variables` are what a template may name beside the conversation: the spellings of BOS, EOS and the like.
    """

    def __init__(self, templates: Mapping[str, str], variables: Mapping[str, Any]) -> None:
        self.templates = dict(templates)  # by name; "default", and "tool_use" where a model has one of its own
        self.variables = dict(variables)
        self._renderer: Any = _import_renderer() if templates else None
        self.takes_parts = {name: self._probe_parts(name) for name in templates}

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read chat_template.jinja, or else the template inside tokenizer_config.json. Raises BuildError."""
        config = _read_object(Path(directory) / TOKENIZER_CONFIG_FILE)
        processor = _read_object(Path(directory) / _PROCESSOR_FILE)
        templates = _declared_templates(config) | _declared_templates(processor)
        file = Path(directory) / TEMPLATE_FILE
        if file.is_file():
            templates["default"] = file.read_text(encoding="utf-8")
        return cls(templates, _variables(config))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt of a conversation in OpenAI's shape, control tokens spelled out: encode it without special tokens.

        Content parts of type "text" are joined by newlines where the template expects a string. `kwargs` reach the
        template (enable_thinking, documents, ...). Raises Unsupported when the model has no template, InvalidRequest
        when the template refuses the conversation, in the template's own words.
        """
        if not self.templates:
            raise Unsupported("this model has no chat template: use /v1/completions", "messages")
        name = "tool_use" if tools and "tool_use" in self.templates else "default"
        name = name if name in self.templates else next(iter(self.templates))
        prepared = [_checked(message, i, self.takes_parts[name]) for i, message in enumerate(messages)]
        try:
            return self._render(name, prepared, tools, add_generation_prompt, kwargs)
        except Exception as error:  # a template is a program: whatever it raises is about this conversation
            raise InvalidRequest(f"the model's chat template refuses these messages: {error}", "messages") from error

    def _render(
        self,
        name: str,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        kwargs: Mapping[str, Any],
    ) -> str:
        rendered, _ = self._renderer(
            [list(messages)],
            tools=[dict(tool) for tool in tools] if tools else None,
            chat_template=self.templates[name],
            add_generation_prompt=add_generation_prompt,
            **{**self.variables, **kwargs},
        )
        text: str = rendered[0]
        return text

    def _probe_parts(self, name: str) -> bool:
        """Whether the template walks a list of content parts itself, found by handing it one. Raises BuildError."""
        messages = [{"role": "user", "content": [{"type": "text", "text": _PROBE}]}]
        try:
            text = self._render(name, messages, None, True, {})
        except jinja2.TemplateSyntaxError as error:
            raise BuildError(f"the chat template {name!r} is not a template: line {error.lineno}: {error}") from None
        except Exception:  # it wanted a string
            return False
        return _PROBE in text and "'type'" not in text and '"type"' not in text


def _checked(message: Mapping[str, Any], index: int, takes_parts: bool) -> dict[str, Any]:
    """The message, its content parts joined where the template does not take them.

    Raises InvalidRequest for a part that is not text: a template may have words for an image, but no executor sees it.
    """
    content = message.get("content")
    if not isinstance(content, (list, tuple)):
        return dict(message)
    texts: list[str] = []
    for i, part in enumerate(content):
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise InvalidRequest(
                f"messages[{index}].content[{i}] is of type {kind!r}: this model takes text only",
                f"messages[{index}].content[{i}]",
            )
        texts.append(text)
    parts = [{"type": "text", "text": text} for text in texts]
    return {**message, "content": parts if takes_parts else "\n".join(texts)}


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object; {} where there is no file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise BuildError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BuildError(f"{path} is not a JSON object")
    return content


def _declared_templates(config: Mapping[str, Any]) -> dict[str, str]:
    """`chat_template` of a config by name: one template, or a list of named ones."""
    declared = config.get("chat_template")
    if isinstance(declared, str):
        return {"default": declared}
    entries = declared if isinstance(declared, list) else []
    return {
        entry["name"]: entry["template"]
        for entry in entries
        if isinstance(entry, dict) and {"name", "template"} <= entry.keys()
    }


def _variables(config: Mapping[str, Any]) -> dict[str, Any]:
    """The spellings of special tokens: every `bos_token`, `eos_token`, ... of tokenizer_config.json."""
    variables: dict[str, Any] = {}
    for key, value in config.items():
        if not key.endswith("_token"):
            continue
        if isinstance(value, Mapping):  # an AddedToken, serialized
            value = value.get("content")
        if isinstance(value, str):
            variables[key] = value
    return variables


class _NoTorchNotice(logging.Filter):
    """Drops the notice transformers prints at import when torch is not installed: it is not wanted here."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "PyTorch" not in record.getMessage()


def _import_renderer() -> Any:
    """transformers' renderer, imported on first use: it costs half a second, and a tokenizer alone does not need it."""
    notice = _NoTorchNotice()
    library = logging.getLogger("transformers")
    library.addFilter(notice)
    try:
        return importlib.import_module("transformers.utils.chat_template_utils").render_jinja_template
    finally:
        library.removeFilter(notice)
