"""The tables of fields in docs/openai-api.md: from the request models, and from what is refused or ignored.

What a model declares is enforced, unless REFUSED says when it is not. tests/docs sends each row to a gateway.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from briton.text.stop import MAX_STOP_LENGTH, MAX_STOPS
from briton_server.guides import UNENFORCED
from briton_server.protocol.chat import ChatCompletionRequest
from briton_server.protocol.completions import CompletionRequest
from briton_server.protocol.fields import MAX_BAD_WORDS
from briton_server.protocol.generation import GenerationFields
from tools.docs.json_types import Schema, branches, limits_of, reference, type_of
from tools.docs.sections import table

# Fields of the models that are refused, and when.
REFUSED = {
    "tools": "with any tool, unless `tool_choice` is `none`",
    "tool_choice": "any but `none` and `auto`",
    "functions": "with any function",
    "suffix": "unless empty",
    "best_of": "above `n`",
    "modalities": "with any but `text`",
    "nvext": "with `guided_json` and the like",
    "text": "with a `format` other than `text`",
    **dict.fromkeys(UNENFORCED, "unless empty"),
}
# OpenAI's fields that no model declares: taken, and without effect.
IGNORED_IN_CHAT = (
    "audio", "function_call", "metadata", "moderation", "parallel_tool_calls", "prompt_cache_key",
    "prompt_cache_options", "prompt_cache_retention", "reasoning_effort", "safety_identifier", "service_tier", "store",
    "verbosity", "web_search_options",
)  # fmt: skip
# What the models' own words do not say.
_NOTES = {
    "model": "The served model's name or that of an adapter; any other is 404. Absent: the served model.",
    "messages": "Roles `system`, `developer`, `user`, `assistant`, `tool`, `function`; text only.",
    "max_completion_tokens": "As `max_tokens`; both only when they are equal.",
    "n": "Answers to one prompt; prompts times `n` are at most 128.",
    "temperature": "0 is greedy.",
    "top_p": "Sample from the likeliest tokens that together have this probability.",
    "presence_penalty": "Above 0: tokens of the answer become less likely.",
    "frequency_penalty": "Above 0: the more often, the less likely.",
    "logit_bias": "Token id to what is added to its logit.",
    "seed": "The same seed gives the same tokens, whatever else is in the batch.",
    "stop": f"The answer ends before any of these: up to {MAX_STOPS} of 1 to {MAX_STOP_LENGTH} characters.",
    "bad_words": f"Strings whose tokens are not generated: up to {MAX_BAD_WORDS} of 1 to {MAX_STOP_LENGTH} characters.",
    "stream": "Server-sent events.",
    "stream_options": "`include_usage`: a last chunk with `usage`.",
    "response_format": "`text`, `json_object` or `json_schema`, enforced token by token whatever `strict` says.",
    "logprobs": "Log probabilities of the answer's tokens; in completions those of so many of the likeliest.",
    "top_logprobs": "The likeliest tokens at each position; needs `logprobs`.",
    "prediction": "Text that the answer will largely repeat: guesses are taken from it.",
    "prompt": "A string, a list of strings, token ids, or a list of lists of token ids.",
    "echo": "The prompt before the answer. Refused together with `logprobs`.",
    "tools": "Tool calls are not supported.",
    "tool_choice": "There are no tools to choose from.",
    "functions": "Function calls are not supported.",
    "suffix": "Insertion is not supported.",
    "best_of": "Only the n that are returned are generated.",
    **{name: f"{why[:1].upper()}{why[1:]}." for name, why in UNENFORCED.items()},
}

_OBJECT_NOTES = {
    "response_format.type": "What the answer is.",
    "response_format.json_schema": "Required with `json_schema`.",
    "response_format.schema": "Beside `json_object`: a schema, as some servers spell it.",
    "response_format.json_schema.name": "Without effect.",
    "response_format.json_schema.description": "Without effect.",
    "response_format.json_schema.schema": "The schema. Keys of the answer come in its order.",
    "response_format.json_schema.strict": "Without effect: a schema is always enforced.",
    "structured_outputs.regex": "As `guided_regex`.",
    "structured_outputs.choice": "As `guided_choice`.",
    "structured_outputs.json_object": "As `response_format` of type `json_object`.",
    "stream_options.include_usage": "A last chunk with `usage` and no choices.",
    "lookahead_decoding_config.window_size": "W, columns of the window; no larger than the engine's.",
    "lookahead_decoding_config.ngram_size": "N, tokens of an n-gram; no larger than the engine's.",
    "lookahead_decoding_config.verification_set_size": "G, n-grams tried in a step; 1, 1, 0 turns lookahead off.",
    "messages[].role": "`developer` is `system` to the model.",
    "messages[].content": "Text, or parts of type `text`; any other part is refused.",
    "messages[].name": "Given to the chat template.",
    "messages[].tool_calls": "Of an assistant's message: given to the chat template.",
    "messages[].tool_call_id": "Of a tool's message: given to the chat template.",
    "prediction.type": "",
    "prediction.content": "The text, or parts of type `text`.",
}


def sections() -> dict[str, str]:
    """Fields of both endpoints, then of each; and what is ignored."""
    common = {field.alias or name for name, field in GenerationFields.model_fields.items()}
    common_schema, chat_schema = GenerationFields.model_json_schema(), ChatCompletionRequest.model_json_schema()
    return {
        "common-fields": _table(GenerationFields, set()),
        "chat-fields": _table(ChatCompletionRequest, common),
        "completion-fields": _table(CompletionRequest, common),
        "common-objects": _objects(common_schema, set()),
        "chat-objects": _objects(chat_schema, set(common_schema["$defs"])),
        "ignored-fields": table(
            ("endpoint", "OpenAI's fields without effect"),
            [("`/v1/chat/completions`", ", ".join(f"`{name}`" for name in IGNORED_IN_CHAT))],
        ),
    }


def _objects(schema: Schema, without: set[str]) -> str:
    """Fields that are objects themselves, and what those hold."""
    definitions: dict[str, Schema] = schema["$defs"]
    rows = [
        (
            f"`{field}`",
            f"`{name}`",
            f"{type_of(inner, definitions).replace('section', 'object')}{_required(name, model)}",
            limits_of(inner),
            _OBJECT_NOTES.get(f"{field}.{name}") or inner.get("description", ""),
        )
        for field, model in _object_fields(schema, definitions, without)
        for name, inner in model["properties"].items()
    ]
    return table(("object", "field", "type", "limits", "what it is"), rows)


def _object_fields(
    schema: Schema, definitions: dict[str, Schema], without: set[str], path: str = ""
) -> Iterator[tuple[str, Schema]]:
    for field, inner in schema["properties"].items():
        for branch in branches(inner):
            is_list = branch.get("type") == "array"
            name = reference(branch.get("items", {}) if is_list else branch)
            if name is not None and name not in without:
                where = f"{path}{field}{'[]' if is_list else ''}"
                yield where, definitions[name]
                yield from _object_fields(definitions[name], definitions, without, f"{where}.")


def _required(name: str, model: Schema) -> str:
    return ", required" if name in model.get("required", ()) else ""


def _table(model: type[BaseModel], without: set[str]) -> str:
    schema = model.model_json_schema()
    definitions: dict[str, Schema] = schema.get("$defs", {})
    rows = [
        (
            f"`{name}`",
            type_of(field, definitions).replace("section", "object"),
            limits_of(field),
            f"refused {REFUSED[name]}" if name in REFUSED else "enforced",
            _NOTES.get(name) or field.get("description", ""),
        )
        for name, field in schema["properties"].items()
        if name not in without
    ]
    return table(("field", "type", "limits", "effect", "what it is"), rows)
