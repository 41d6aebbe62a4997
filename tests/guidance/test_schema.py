"""Schemas that cannot be enforced are refused before the first token, by keyword and JSON pointer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from briton.errors import InvalidRequest, Unsupported
from briton.guidance.compiler import GuideCompiler
from briton.guidance.guide import GuideSpec
from briton.guidance.limits import GuideLimits
from briton.guidance.schema import read_schema

FIELD = "response_format.json_schema.schema"


def an_object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


@pytest.fixture
def compiler(byte_level_compiler: GuideCompiler) -> GuideCompiler:
    return byte_level_compiler


async def refusal(compiler: GuideCompiler, schema: Any) -> InvalidRequest | Unsupported:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    with pytest.raises((InvalidRequest, Unsupported)) as caught:
        await compiler.compile(GuideSpec("json_schema", text))
    error = caught.value
    assert isinstance(error, (InvalidRequest, Unsupported))
    assert error.field == FIELD
    assert error.message.startswith(FIELD)
    return error


@pytest.mark.parametrize(
    ("schema", "keyword", "pointer"),
    [
        (an_object(tags={"type": "array", "uniqueItems": True}), "uniqueItems", "/properties/tags"),
        (an_object(a={"not": {"type": "null"}}), "not", "/properties/a"),
        (
            an_object(a={"anyOf": [{"type": "null"}, {"type": "array", "contains": {}}]}),
            "contains",
            "/properties/a/anyOf/1",
        ),
        ({"if": {}, "then": {}}, "if", "the root"),
        (an_object(**{"a/b~c": {"dependentRequired": {}}}), "dependentRequired", "/properties/a~1b~0c"),
        ({"$defs": {"t": {"propertyNames": {}}}, "type": "object"}, "propertyNames", "/$defs/t"),
        ({"type": "object", "minLenght": 3}, "minLenght", "the root"),
        ({"type": "string", "nullable": True}, "nullable", "the root"),
        ({"x-guidance": {"lenient": True}, "type": "object"}, "x-guidance", "the root"),
        (an_object(a={"$ref": "https://example.com/s.json"}), "$ref", "/properties/a"),
        (an_object(a={"$ref": "#anchor"}), "$ref", "/properties/a"),
        (an_object(a={"$id": "other", "type": "null"}), "$id", "/properties/a"),
        ({"type": "object", "minProperties": 2, "additionalProperties": {"type": "null"}}, "minProperties", "the root"),
        # Refused by llguidance, which does not say where.
        (an_object(a=an_object(b={"type": "string", "pattern": "(?=x)y"})), "pattern", "/properties/a/properties/b"),
        (an_object(a={"type": "string", "format": "iri"}), "format", "/properties/a"),
        (an_object(a={"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf", "/properties/a"),
        (
            {
                **an_object(q={"anyOf": [an_object(r={"$ref": "#/$defs/t"})]}),
                "$defs": {"t": {"type": "string", "format": "iri"}},
            },
            "format",
            "/$defs/t",
        ),
        ({"type": "object", "patternProperties": {"^a": {}, "^ab": {"type": "null"}}}, "patternProperties", "the root"),
    ],
)
async def test_what_cannot_be_enforced_is_refused_by_name(
    compiler: GuideCompiler, schema: Any, keyword: str, pointer: str
) -> None:
    error = await refusal(compiler, schema)
    assert isinstance(error, Unsupported)
    assert error.message.startswith(f"{FIELD}: keyword '{keyword}' at {pointer} is not supported")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("", "is not valid JSON: Expecting value"),
        ('{"type": "object"', "is not valid JSON: Expecting ',' delimiter"),
        ("[]", "must be a JSON object"),
        ('"object"', "must be a JSON object"),
        ('{"const": NaN}', "is not valid JSON: NaN is not JSON"),
        ('{"const": 1e999}', "is not valid JSON: the number 1e999 is out of range"),
        ('{"const": 18446744073709551616}', "the number 18446744073709551616 is out of range"),
        ('{"type": "null", "type": "string"}', "key 'type' occurs twice in one object"),
        ('{"const": "\\ud800"}', "holds half a surrogate pair"),
        ('{"const": "\x00"}', "is not valid JSON: Invalid control character"),
        ({"type": "strin"}, "keyword 'type' at the root must be one of null, boolean, integer"),
        ({"type": []}, "keyword 'type' at the root must be"),
        ({"type": [["null"]]}, "keyword 'type' at the root must be"),
        (an_object(a={"enum": []}), "keyword 'enum' at /properties/a must be an array of at least 1 value"),
        ({"properties": []}, "keyword 'properties' at the root must be an object of schemas, not an array"),
        ({"required": ["a", 1]}, "keyword 'required' at the root must be an array of strings"),
        ({"minLength": -1}, "keyword 'minLength' at the root must be a non-negative integer, not -1"),
        ({"maxItems": True}, "keyword 'maxItems' at the root must be a non-negative integer, not a boolean"),
        ({"minimum": "3"}, "keyword 'minimum' at the root must be a number, not '3'"),
        ({"minimum": 1, "exclusiveMinimum": True}, "keyword 'exclusiveMinimum' at the root must be a number"),
        ({"items": [{"type": "null"}]}, "keyword 'items' at the root must be a schema, not an array"),
        ({"anyOf": []}, "keyword 'anyOf' at the root must be an array of at least 1 schema"),
        ({"anyOf": [{}, 3]}, "/anyOf/1 must be a schema, not 3"),
        ({"$ref": 3}, "keyword '$ref' at the root must be a string"),
        (an_object(a={"$ref": "#/$defs/missing"}), "points to '#/$defs/missing', which is no schema in this document"),
        ({"type": "string", "enum": [1]}, "no JSON value can satisfy it"),
        ({"type": "string", "minLength": 5, "maxLength": 3}, "no JSON value can satisfy it"),
        (an_object(a=False), "no JSON value can satisfy it"),
    ],
)
async def test_a_malformed_schema_is_the_callers_error(compiler: GuideCompiler, schema: Any, message: str) -> None:
    error = await refusal(compiler, schema)
    assert isinstance(error, InvalidRequest)
    assert message in error.message


async def test_a_schema_that_refers_to_itself_alone_is_refused(compiler: GuideCompiler) -> None:
    assert "'$ref' at the root" in (await refusal(compiler, {"$ref": "#"})).message


@pytest.mark.parametrize("size", [262_145, 300_000])
async def test_a_schema_is_bounded_in_bytes(compiler: GuideCompiler, size: int) -> None:
    schema = json.dumps({"description": "é" * (size // 2)}, ensure_ascii=False)
    error = await refusal(compiler, schema)
    assert error.message == f"{FIELD} has {len(schema.encode())} bytes; the limit is 262144"


async def test_messages_stay_short(compiler: GuideCompiler) -> None:
    """An error crosses the wire in headers, which are bounded."""
    name = "n" * 100_000
    for schema in (
        an_object(**{name: {"not": {}}}),
        {name: 1},
        an_object(**{name: 3}),
        an_object(**{name: {"type": name}}),
    ):
        assert len((await refusal(compiler, schema)).message) < 700
    assert len((await refusal(compiler, f'{{"{name}": 1, "{name}": 2}}')).message) < 700


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels - 1):
        schema = an_object(inner=schema)
    return schema


async def test_a_schema_is_bounded_in_depth(compiler: GuideCompiler) -> None:
    await compiler.compile(GuideSpec("json_schema", json.dumps(nested(32))))
    deep: list[Any] = [1]
    for _ in range(40):
        deep = [deep]
    for schema in (nested(33), {"const": deep}, {"enum": [deep]}):
        error = await refusal(compiler, schema)
        assert isinstance(error, InvalidRequest)
        assert error.message == f"{FIELD} is nested deeper than the limit of 32 levels"


async def test_absurd_nesting_is_refused_by_the_depth_limit(compiler: GuideCompiler) -> None:
    for text in ('{"const":' + "[" * 100_000 + "]" * 100_000 + "}", '{"items":' * 20_000 + "{}" + "}" * 20_000):
        assert "is nested deeper than the limit of 32 levels" in (await refusal(compiler, text)).message


def test_annotations_are_dropped_and_names_that_look_like_them_kept() -> None:
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "T",
        "type": "object",
        "properties": {
            "title": {"type": "string", "description": "d", "default": ""},
            "default": {"const": {"title": 1}},
        },
        "required": ["title"],
        "x-order": 3,
    }
    assert read_schema(json.dumps(schema), GuideLimits()).root == {
        "type": "object",
        "properties": {"title": {"type": "string"}, "default": {"const": {"title": 1}}},
        "required": ["title"],
    }


async def test_what_pydantic_writes_is_supported(compiler: GuideCompiler) -> None:
    from enum import Enum
    from typing import Literal, Optional, Union

    from pydantic import BaseModel, Field

    class Colour(Enum):
        RED = "red"
        BLUE = "blue"

    class Cat(BaseModel):
        kind: Literal["cat"]
        lives: int = Field(ge=0, le=9)

    class Dog(BaseModel):
        kind: Literal["dog"]
        name: str = Field(min_length=1, max_length=20, deprecated=True)

    class Owner(BaseModel):
        """Somebody."""

        pets: list[Union[Cat, Dog]] = Field(max_length=3)  # noqa: UP007
        best: Union[Cat, Dog] = Field(discriminator="kind")  # noqa: UP007
        colour: Optional[Colour] = None  # noqa: UP045
        scores: dict[str, float] = {}

    await compiler.compile(GuideSpec("json_schema", json.dumps(Owner.model_json_schema())))
