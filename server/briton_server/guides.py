"""Request fields to the engine's Guide: what the output must be. Two constraints are refused, none is dropped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from briton.errors import InvalidRequest, Unsupported
from briton.v1 import engine_pb2
from briton_server.protocol.constraints import ConstraintFields, ResponseFormat, StructuredOutputs
from briton_server.protocol.fields import RequestModel

SCHEMA_FIELD = "response_format.json_schema.schema"
# How the engine's errors spell a guide, as fields and at the start of messages.
GUIDE_FIELDS = (
    *(SCHEMA_FIELD, "guided_regex", "guided_choice"),
    *("guide.json_schema", "guide.regex", "guide.choice.choices", "guide"),
)

_NO_GRAMMAR = "grammars are not supported; use a regular expression or a JSON schema"
_NO_SCHEMA = "not known here; use response_format with a schema, or guided_json"
_NO_CHOICE = "not known here; use guided_choice"
_NO_GUIDANCE = "not known here; use guided_json, guided_regex or guided_choice"
_NO_TAG = "structural tags are not supported; use a regular expression or a JSON schema"
_NO_WHITESPACE = "whitespace cannot be chosen; use a regular expression for a form of your own"
_NO_PROCESSOR = "code for logits is not supported; use guided_choice, guided_regex or logit_bias"
# What would constrain an answer elsewhere, and is not enforced here -> why, and what to use.
UNENFORCED = {
    "guided_grammar": _NO_GRAMMAR,
    "grammar": _NO_GRAMMAR,
    "ebnf": _NO_GRAMMAR,
    "structural_tag": _NO_TAG,
    "guided_whitespace_pattern": _NO_WHITESPACE,
    "lark": _NO_GRAMMAR,
    "format": _NO_SCHEMA,
    "json": _NO_SCHEMA,
    "schema": _NO_SCHEMA,
    "choice": _NO_CHOICE,
    "choices": _NO_CHOICE,
    "guided_decoding": _NO_GUIDANCE,
    "guided_params": _NO_GUIDANCE,
    "guidance": _NO_GUIDANCE,
    "allowed_token_ids": "not supported; use guided_choice or logit_bias",
    "logits_processors": _NO_PROCESSOR,
    "custom_logit_processor": _NO_PROCESSOR,
}
_UNENFORCED_BY_STRUCTURED_OUTPUTS = {
    "grammar": _NO_GRAMMAR,
    "structural_tag": _NO_TAG,
    "whitespace_pattern": _NO_WHITESPACE,
    "disable_any_whitespace": _NO_WHITESPACE,
    "disable_additional_properties": "not supported; say additionalProperties: false in the schema",
}

_Constraint = tuple[engine_pb2.Guide, str]  # and the path of the request field it came from


def guide_of(fields: ConstraintFields, max_schema_bytes: int) -> tuple[engine_pb2.Guide | None, str]:
    """(the guide or None, the path of the request field it came from). Raises InvalidRequest and Unsupported."""
    _refuse(fields, UNENFORCED, "")
    _refuse_parts(fields)
    found = [*_constraints(fields, max_schema_bytes)]
    if len(found) > 1:
        paths = " and ".join(path for _, path in found)
        raise InvalidRequest(f"only one of {paths} can constrain a request", found[1][1])
    return found[0] if found else (None, "response_format")


def _constraints(fields: ConstraintFields, max_bytes: int) -> Iterator[_Constraint]:
    if fields.response_format is not None:
        yield from _of_response_format(fields.response_format, max_bytes)
    if fields.structured_outputs is not None:
        yield from _of_structured_outputs(fields.structured_outputs, max_bytes)
    for path in ("guided_json", "json_schema"):
        if (schema := getattr(fields, path)) is not None:
            yield _of_schema(schema, path, max_bytes)
    for path in ("guided_regex", "regex"):
        if (regex := getattr(fields, path)) is not None:
            yield engine_pb2.Guide(regex=regex), path
    if fields.guided_choice is not None:
        yield _of_choice(fields.guided_choice), "guided_choice"
    if fields.guided_json_object:
        yield engine_pb2.Guide(json_object=True), "guided_json_object"


def _of_response_format(wanted: ResponseFormat, max_bytes: int) -> Iterator[_Constraint]:
    path = "response_format.json_schema"
    if wanted.json_schema is not None and wanted.type != "json_schema":
        raise InvalidRequest(f"{path}: goes with type json_schema only, not with {wanted.type}", path)
    if wanted.bare_schema is not None:
        path = "response_format.schema"
        if wanted.type == "text" or wanted.json_schema is not None:
            raise InvalidRequest(f"{path}: goes with type json_object, or json_schema in place of json_schema", path)
        yield _of_schema(wanted.bare_schema, path, max_bytes)
    elif wanted.type == "json_object":
        yield engine_pb2.Guide(json_object=True), "response_format"
    elif wanted.type == "json_schema":
        if wanted.json_schema is None:
            raise InvalidRequest(f"{path}: field required with type json_schema", path)
        if wanted.json_schema.json_schema is None:
            raise InvalidRequest(f"{SCHEMA_FIELD}: field required", SCHEMA_FIELD)
        yield _of_schema(wanted.json_schema.json_schema, SCHEMA_FIELD, max_bytes)


def _of_structured_outputs(wanted: StructuredOutputs, max_bytes: int) -> Iterator[_Constraint]:
    path = "structured_outputs"
    _refuse(wanted, _UNENFORCED_BY_STRUCTURED_OUTPUTS, f"{path}.")
    found: list[_Constraint] = []
    if wanted.json_schema is not None:
        found.append(_of_schema(wanted.json_schema, f"{path}.json", max_bytes))
    if wanted.regex is not None:
        found.append((engine_pb2.Guide(regex=wanted.regex), f"{path}.regex"))
    if wanted.choice is not None:
        found.append((_of_choice(wanted.choice), f"{path}.choice"))
    if wanted.json_object:
        found.append((engine_pb2.Guide(json_object=True), f"{path}.json_object"))
    if not found:
        raise InvalidRequest(f"{path}: one of json, regex, choice and json_object is required", path)
    yield from found


def _of_schema(schema: dict[str, Any] | str, path: str, max_bytes: int) -> _Constraint:
    """A schema, or the text of one."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{path}: the string is not valid JSON: {error}", path) from None
        if not isinstance(schema, dict):
            raise InvalidRequest(f"{path}: the schema must be an object", path)
    # Keys stay in the caller's order: it is the order of the output's.
    text = json.dumps(schema, separators=(",", ":"), ensure_ascii=False)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(f"{path}: the schema holds half a surrogate pair", path) from None
    if size > max_bytes:
        raise InvalidRequest(f"{path}: the schema has {size} bytes; the limit is {max_bytes}", path)
    return engine_pb2.Guide(json_schema=text), path


def _of_choice(choices: list[str]) -> engine_pb2.Guide:
    return engine_pb2.Guide(choice=engine_pb2.Choice(choices=choices))


def _refuse(fields: RequestModel, unenforced: dict[str, str], prefix: str) -> None:
    """Raise Unsupported for a constraint that would be dropped. Empty ones constrain nothing."""
    for attribute, field in type(fields).model_fields.items():
        name = field.alias or attribute
        if name in unenforced and getattr(fields, attribute):
            raise Unsupported(f"{prefix}{name}: {unenforced[name]}", f"{prefix}{name}")


def _refuse_parts(fields: ConstraintFields) -> None:
    """Raise Unsupported for a constraint in an object whose other fields are ignored."""
    if isinstance(fields.nvext, dict):
        for name, value in fields.nvext.items():
            if value and name.startswith("guided_") and name != "guided_decoding_backend":
                raise Unsupported(f"nvext.{name}: constraints stand beside nvext here, not in it", f"nvext.{name}")
    if isinstance(fields.text, dict) and fields.text.get("format") not in (None, {}, {"type": "text"}):
        raise Unsupported("text.format: is the Responses API's; use response_format", "text.format")
