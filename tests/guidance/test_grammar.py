"""JSON schema and JSON object: what the masks let through is valid, what is valid is let through."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from briton.guidance.compiler import GuideCompiler
from briton.guidance.grammar import WHITESPACE_IS_BOUNDED
from briton.guidance.grammar_guide import GrammarGuide
from briton.guidance.guide import GuideSpec
from tests.guidance.vocabularies import TestVocabulary
from tests.guidance.walks import random_walk

SCHEMAS: dict[str, Any] = {
    "flat": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer"},
            "ok": {"type": "boolean"},
        },
        "required": ["name", "age", "ok"],
        "additionalProperties": False,
    },
    "bounds": {
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": -3, "maximum": 17},
            "x": {"type": "number", "exclusiveMinimum": 0, "maximum": 2.5},
            "m": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 100},
        },
        "required": ["n", "x", "m"],
        "additionalProperties": False,
    },
    "array": {"type": "array", "items": {"enum": ["red", "green", 3, None]}, "minItems": 1, "maxItems": 3},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}], "items": False, "minItems": 2},
    "recursive": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "v": {"type": "integer"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                },
                "required": ["v", "next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    "union": {
        "type": "object",
        "properties": {
            "shape": {
                "oneOf": [
                    {
                        "type": "object",
                        "properties": {"kind": {"const": "circle"}, "r": {"type": "number"}},
                        "required": ["kind", "r"],
                        "additionalProperties": False,
                    },
                    {
                        "type": "object",
                        "properties": {"kind": {"const": "square"}, "side": {"type": "integer"}},
                        "required": ["kind", "side"],
                        "additionalProperties": False,
                    },
                ],
                "discriminator": {"propertyName": "kind"},
            }
        },
        "required": ["shape"],
        "additionalProperties": False,
    },
    "strings": {
        "type": "object",
        "properties": {
            "date": {"type": "string", "format": "date"},
            "id": {"type": "string", "pattern": "^[a-z]{2}-[0-9]+$"},
            "some": {"type": ["string", "null"], "minLength": 1, "maxLength": 3},
        },
        "required": ["date", "id", "some"],
        "additionalProperties": False,
    },
    "map": {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 2},
    "optional": {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
        "additionalProperties": False,
    },
    "quotes": {"enum": ['a "quoted" \\ word\n', "naïve 猫 \u0001"]},
}


@pytest.mark.parametrize("name", SCHEMAS)
async def test_every_walk_gives_a_valid_instance(
    compiler: GuideCompiler, vocabulary: TestVocabulary, name: str
) -> None:
    template = await compiler.compile(GuideSpec("json_schema", json.dumps(SCHEMAS[name])))
    checker = jsonschema.Draft202012Validator(SCHEMAS[name], format_checker=jsonschema.FormatChecker())
    rng = random.Random(name)
    texts = [random_walk(template.copy(), vocabulary, rng) for _ in range(12)]
    finished = [t for t in texts if t is not None]
    assert len(finished) >= 6, texts
    for text in finished:
        checker.validate(json.loads(text))


async def test_every_walk_of_a_json_object_gives_an_object(compiler: GuideCompiler, vocabulary: TestVocabulary) -> None:
    template = await compiler.compile(GuideSpec("json_object"))
    rng = random.Random(5)
    texts = [t for t in (random_walk(template.copy(), vocabulary, rng) for _ in range(15)) if t is not None]
    assert len(texts) >= 5
    assert all(isinstance(json.loads(t), dict) for t in texts)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["flat", "recursive", "union", "strings"])
async def test_compact_and_pretty_json_are_let_through(
    compiler: GuideCompiler, vocabulary: TestVocabulary, name: str, indent: int | None
) -> None:
    instances = {
        "flat": {"name": "Zoë", "age": -3, "ok": True},
        "recursive": {"v": 1, "next": {"v": 2, "next": None}},
        "union": {"shape": {"kind": "square", "side": 4}},
        "strings": {"date": "2024-02-29", "id": "ab-12", "some": None},
    }
    separators = None if WHITESPACE_IS_BOUNDED else (",", ":")
    if indent and separators:
        pytest.skip("llguidance before 1.8: JSON without whitespace")
    guide = await compiler.compile(GuideSpec("json_schema", json.dumps(SCHEMAS[name])))
    text = json.dumps(instances[name], indent=indent, separators=separators, ensure_ascii=False)
    if indent and name in ("recursive", "union"):
        text = text.replace("    ", "  ")  # an indent is at most 4 characters of whitespace, the newline included
    assert guide.advance(vocabulary.tokens_of(text))
    assert guide.is_terminated()


async def test_whitespace_is_bounded(compiler: GuideCompiler, vocabulary: TestVocabulary) -> None:
    """Models loop on whitespace when it is free."""
    for spec in (GuideSpec("json_schema", json.dumps(SCHEMAS["flat"])), GuideSpec("json_object")):
        guide = await compiler.compile(spec)
        assert guide.advance(vocabulary.tokens_of("{\n   " if WHITESPACE_IS_BOUNDED else "{"))
        assert not guide.advance(vocabulary.tokens_of(" "))
        assert not guide.advance(vocabulary.tokens_of("\t"))


async def test_no_whitespace_before_or_after_the_value(compiler: GuideCompiler, vocabulary: TestVocabulary) -> None:
    guide = await compiler.compile(GuideSpec("json_object"))
    assert not guide.advance(vocabulary.tokens_of(" "))
    assert guide.advance(vocabulary.tokens_of("{}"))
    assert vocabulary.allowed(guide) == sorted(vocabulary.stop_token_ids)


async def test_the_order_of_keys_is_the_schemas(compiler: GuideCompiler, vocabulary: TestVocabulary) -> None:
    one = {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "required": ["a", "b"]}
    other = {**one, "properties": {"b": {"type": "null"}, "a": {"type": "null"}}}
    first = await compiler.compile(GuideSpec("json_schema", json.dumps(one)))
    second = await compiler.compile(GuideSpec("json_schema", json.dumps(other)))
    assert first.advance(vocabulary.tokens_of('{"a"'))
    assert second.advance(vocabulary.tokens_of('{"b"'))
    assert not second.copy().advance(vocabulary.tokens_of(':null,"c"'))


async def test_control_tokens_are_illegal_inside_strings(byte_level: TestVocabulary) -> None:
    """With the bytes of `<|im_end|>` in the vocabulary it would be a legal part of a string."""
    from tests.guidance.conftest import new_compiler

    compiler = new_compiler(byte_level)
    guide = await compiler.compile(GuideSpec("json_object"))
    assert guide.advance(byte_level.tokens_of('{"'))
    allowed = byte_level.allowed(guide)
    assert not {0, 1, 2} & set(allowed)
    assert not guide.advance([1])
    assert guide.advance(byte_level.tokens_of("<|im_end|>"))  # as plain text it is
    compiler.close()


async def test_a_failed_parser_gives_an_empty_mask_not_the_end(
    compiler: GuideCompiler, vocabulary: TestVocabulary, caplog: pytest.LogCaptureFixture
) -> None:
    """LLMatcher offers the end once it is in error: an unfinished value would look finished."""
    guide = await compiler.compile(GuideSpec("json_object"))
    assert guide.advance(vocabulary.tokens_of('{"a'))
    assert isinstance(guide, GrammarGuide)
    guide._matcher.consume_token(vocabulary.tokens_of("\n")[0])  # a raw newline in a string: an error for good
    assert vocabulary.allowed(guide) == []
    assert "a guide failed" in caplog.text
    assert not guide.advance([vocabulary.stop_token_ids[0]])
    assert not guide.is_terminated()
    assert guide.forced_tokens() == []


async def test_a_parser_that_reaches_its_limit_ends_in_an_empty_mask(
    byte_level_compiler: GuideCompiler, byte_level: TestVocabulary, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in a refused token: the mask allowed it. 2,000 optional properties, without the check that refuses them."""
    wide = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2000)}}
    guide = byte_level_compiler._grammars.compile(wide)
    brace = byte_level.tokens_of("{")
    assert brace[0] in byte_level.allowed(guide)
    assert guide.advance(brace)
    assert byte_level.allowed(guide) == []
    assert "a guide failed: Parser Error" in caplog.text
    assert not guide.is_terminated()
    assert not guide.advance(byte_level.tokens_of("}"))
    assert not guide.advance([0])
