"""Request fields to the engine's Guide: what the output must be. Two constraints are refused, none is dropped."""

from __future__ import annotations

import json
from typing import Any

from briton.errors import InvalidRequest, Unsupported
from briton.v1 import engine_pb2
from briton_server.protocol.generation import GenerationFields, ResponseFormat

SCHEMA_FIELD = "response_format.json_schema.schema"


def guide_of(fields: GenerationFields, max_schema_bytes: int) -> tuple[engine_pb2.Guide | None, str]:
    """(the guide or None, the path of the request field it came from). Raises InvalidRequest and Unsupported."""
    if fields.guided_grammar is not None:
        raise Unsupported(
            "guided_grammar: grammars are not supported; use guided_regex or guided_json", "guided_grammar"
        )
    found = [
        (guide, path)
        for guide, path in (
            _of_response_format(fields.response_format, max_schema_bytes),
            _of_guided_json(fields.guided_json, max_schema_bytes),
            (engine_pb2.Guide(regex=fields.guided_regex) if fields.guided_regex is not None else None, "guided_regex"),
            (_of_choice(fields.guided_choice), "guided_choice"),
        )
        if guide is not None
    ]
    if len(found) > 1:
        paths = " and ".join(path.partition(".")[0] for _, path in found)
        raise InvalidRequest(f"only one of {paths} can constrain a request", found[1][1].partition(".")[0])
    return found[0] if found else (None, "response_format")


def _of_response_format(wanted: ResponseFormat | None, max_bytes: int) -> tuple[engine_pb2.Guide | None, str]:
    if wanted is None or wanted.type == "text":
        return None, "response_format"
    if wanted.type == "json_object":
        return engine_pb2.Guide(json_object=True), "response_format"
    if wanted.json_schema is None:
        raise InvalidRequest(
            "response_format.json_schema: field required with type json_schema", "response_format.json_schema"
        )
    if wanted.json_schema.json_schema is None:
        raise InvalidRequest(f"{SCHEMA_FIELD}: field required", SCHEMA_FIELD)
    return _of_schema(wanted.json_schema.json_schema, SCHEMA_FIELD, max_bytes), SCHEMA_FIELD


def _of_guided_json(schema: dict[str, Any] | str | None, max_bytes: int) -> tuple[engine_pb2.Guide | None, str]:
    if schema is None:
        return None, "guided_json"
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"guided_json: the string is not valid JSON: {error}", "guided_json") from None
        if not isinstance(schema, dict):
            raise InvalidRequest("guided_json: the schema must be an object", "guided_json")
    return _of_schema(schema, "guided_json", max_bytes), "guided_json"


def _of_schema(schema: dict[str, Any], path: str, max_bytes: int) -> engine_pb2.Guide:
    # Keys stay in the caller's order: it is the order of the output's.
    text = json.dumps(schema, separators=(",", ":"), ensure_ascii=False)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(f"{path}: the schema holds half a surrogate pair", path) from None
    if size > max_bytes:
        raise InvalidRequest(f"{path}: the schema has {size} bytes; the limit is {max_bytes}", path)
    return engine_pb2.Guide(json_schema=text)


def _of_choice(choices: list[str] | None) -> engine_pb2.Guide | None:
    return None if choices is None else engine_pb2.Guide(choice=engine_pb2.Choice(choices=choices))
