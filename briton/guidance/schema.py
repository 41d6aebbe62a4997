"""Reading a JSON schema and refusing, by keyword and JSON pointer, what could not be enforced.

llguidance ignores keywords it has never heard of, as JSON Schema allows; a caller who wrote one meant something by it,
so here every keyword is known to be enforced, known to be an annotation, or refused. Schemas are read as draft 2020-12,
whatever `$schema` says: a keyword that another draft ignores is enforced, one that only another draft has is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from briton.errors import InvalidRequest, Unsupported
from briton.guidance.limits import GuideLimits
from briton.guidance.one_of import is_exclusive

SCHEMA_FIELD = "response_format.json_schema.schema"

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
# They say nothing about what is valid.
ANNOTATIONS = (
    *("title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$comment", "$schema", "$id", "contentMediaType", "contentEncoding", "discriminator"),
)
# With this value they say nothing either.
_VACUOUS: Mapping[str, Any] = {"uniqueItems": False, "nullable": False}


_MAX_SHOWN = 200  # characters of a caller's text in a message


class Subschema(NamedTuple):
    """A schema inside a schema, and where."""

    pointer: str  # "" is the root
    schema: dict[str, Any]
    depth: int


@dataclass(frozen=True, slots=True)
class CheckedSchema:
    """A schema with only enforced keywords left, in the order of its text."""

    root: dict[str, Any]
    subschemas: tuple[Subschema, ...]  # of `root`, outermost first


def read_schema(text: str, limits: GuideLimits) -> CheckedSchema:
    """Parse and check a schema. Raises InvalidRequest and Unsupported, naming keyword and JSON pointer."""
    size = len(text.encode(errors="surrogatepass"))
    if size > limits.max_schema_bytes:
        raise InvalidRequest(f"{SCHEMA_FIELD} has {size} bytes; the limit is {limits.max_schema_bytes}", SCHEMA_FIELD)
    too_deep = InvalidRequest(
        f"{SCHEMA_FIELD} is nested deeper than the limit of {limits.max_depth} levels", SCHEMA_FIELD
    )
    try:
        root = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_representable,
        )
        json.dumps(root, ensure_ascii=False).encode()
    except RecursionError:
        raise too_deep from None
    except UnicodeEncodeError:
        raise InvalidRequest(f"{SCHEMA_FIELD} holds half a surrogate pair", SCHEMA_FIELD) from None
    except ValueError as error:
        raise InvalidRequest(f"{SCHEMA_FIELD} is not valid JSON: {error}", SCHEMA_FIELD) from None
    if not isinstance(root, dict):
        raise InvalidRequest(f"{SCHEMA_FIELD} must be a JSON object", SCHEMA_FIELD)
    subschemas: list[Subschema] = []
    references: list[tuple[str, str]] = []
    pending = [Subschema("", root, 1)]
    while pending:
        subschema = pending.pop()
        if subschema.depth > limits.max_depth:
            raise too_deep
        subschemas.append(subschema)
        pointer, schema, depth = subschema
        _check_keywords(pointer, schema)
        for keyword in ("enum", "const"):
            if depth + _value_depth(schema.get(keyword)) > limits.max_depth + 1:
                raise too_deep
        if "$ref" in schema:
            references.append((pointer, schema["$ref"]))
        for inner_pointer, inner in _inner_schemas(pointer, schema):
            if isinstance(inner, dict):
                pending.append(Subschema(inner_pointer, inner, depth + 1))
            elif not isinstance(inner, bool):
                raise InvalidRequest(
                    f"{SCHEMA_FIELD}: {shown(inner_pointer)} must be a schema, not {_kind(inner)}", SCHEMA_FIELD
                )
    by_pointer = {s.pointer: s.schema for s in subschemas}
    _check_references(references, by_pointer.keys())
    for subschema in subschemas:
        for keyword in [k for k in subschema.schema if k not in _KEYWORDS]:
            del subschema.schema[keyword]
        _union_of_exclusive(subschema.schema, lambda target: by_pointer[target[1:]])
    return CheckedSchema(root, tuple(sorted(subschemas, key=lambda s: s.depth)))


def unsupported_keyword(keyword: str, pointer: str, reason: str = "") -> Unsupported:
    """The one sentence for a keyword that cannot be enforced."""
    detail = f": {reason}" if reason else ""
    return Unsupported(
        f"{SCHEMA_FIELD}: keyword '{keyword[:_MAX_SHOWN]}' at {shown(pointer)} is not supported{detail}", SCHEMA_FIELD
    )


def shown(pointer: str) -> str:
    """A pointer in a message: an error crosses the wire in headers, so it is cut in the middle when it is long."""
    if len(pointer) > _MAX_SHOWN:
        return f"{pointer[: _MAX_SHOWN // 2]}...{pointer[-_MAX_SHOWN // 2 :]}"
    return pointer or "the root"


def _check_keywords(pointer: str, schema: Mapping[str, Any]) -> None:
    for keyword, value in schema.items():
        check = _KEYWORDS.get(keyword)
        if check is not None:
            if not check.holds(value):
                raise InvalidRequest(
                    f"{SCHEMA_FIELD}: keyword '{keyword}' at {shown(pointer)} must be {check.must_be}, "
                    f"not {_kind(value)}",
                    SCHEMA_FIELD,
                )
        elif keyword == "$id" and pointer:
            raise unsupported_keyword(keyword, pointer, "it is allowed at the root alone")
        elif not _says_nothing(keyword, value):
            raise unsupported_keyword(keyword, pointer)
    # Keys outside `properties` may repeat in the output, so their number is not the object's size.
    at_least = schema.get("minProperties", 0)
    if at_least > 1 and at_least > len(set(schema.get("required", ()))):
        raise unsupported_keyword(
            "minProperties", pointer, "above 1 it must not exceed the number of required properties"
        )


def _says_nothing(keyword: str, value: Any) -> bool:
    if keyword in _VACUOUS:
        return value is _VACUOUS[keyword]
    return keyword in ANNOTATIONS or (keyword.startswith("x-") and keyword != "x-guidance")


def _check_references(references: list[tuple[str, str]], known: Collection[str]) -> None:
    for pointer, target in references:
        if target != "#" and not target.startswith("#/"):
            raise unsupported_keyword("$ref", pointer, f"{target[:80]!r} is not a local reference ('#/...')")
        if target[1:] not in known:
            raise InvalidRequest(
                f"{SCHEMA_FIELD}: keyword '$ref' at {shown(pointer)} points to {target[:80]!r}, "
                "which is no schema in this document",
                SCHEMA_FIELD,
            )


def _union_of_exclusive(schema: dict[str, Any], resolve: Callable[[str], Any]) -> None:
    """Rename `oneOf` to `anyOf` in its place, where that means the same."""
    if "oneOf" in schema and "anyOf" not in schema and is_exclusive(schema["oneOf"], resolve):
        renamed = [("anyOf" if keyword == "oneOf" else keyword, value) for keyword, value in schema.items()]
        schema.clear()
        schema.update(renamed)


def _inner_schemas(pointer: str, schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for keyword, value in schema.items():
        check = _KEYWORDS.get(keyword)
        if check is None or not check.holds_schemas:
            continue
        if keyword in _MAPS_OF_SCHEMAS:
            for name, inner in value.items():
                yield f"{pointer}/{keyword}/{_escape(name)}", inner
        elif isinstance(value, list):
            for i, inner in enumerate(value):
                yield f"{pointer}/{keyword}/{i}", inner
        else:
            yield f"{pointer}/{keyword}", value


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _value_depth(value: Any) -> int:
    """Levels of containers in a JSON value."""
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, dict | list)]:
        depth += 1
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return depth


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        seen: set[str] = set()
        repeated = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise ValueError(f"key {repeated[:_MAX_SHOWN]!r} occurs twice in one object")
    return keys


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


def _representable(text: str) -> int:
    """Integers that llguidance keeps exactly; larger ones it would round."""
    value = int(text) if len(text) <= 20 else 1 << 64
    if not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "an array", bool: "a boolean", type(None): "null"}
    if isinstance(value, str):
        return repr(value[:40])
    return kinds.get(type(value)) or f"{value!r}"[:40]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(n, str) and n in TYPES for n in names)


class _Keyword(NamedTuple):
    """What the value of an enforced keyword has to be."""

    must_be: str
    holds: Callable[[Any], bool]
    holds_schemas: bool = False


_COUNT = _Keyword("a non-negative integer", _is_count)
_NUMBER = _Keyword("a number", _is_number)
_STRING = _Keyword("a string", lambda v: isinstance(v, str))
_SCHEMA = _Keyword("a schema", lambda v: isinstance(v, dict | bool), holds_schemas=True)
_SCHEMAS = _Keyword("an array of at least 1 schema", lambda v: isinstance(v, list) and len(v) > 0, holds_schemas=True)
_MAP = _Keyword("an object of schemas", lambda v: isinstance(v, dict), holds_schemas=True)
_STRINGS = _Keyword("an array of strings", lambda v: isinstance(v, list) and all(isinstance(item, str) for item in v))
_MAPS_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")

_KEYWORDS: Mapping[str, _Keyword] = {
    "type": _Keyword(f"one of {', '.join(TYPES)}, or an array of them", _is_type),
    "enum": _Keyword("an array of at least 1 value", lambda v: isinstance(v, list) and len(v) > 0),
    "const": _Keyword("a value", lambda v: True),
    "$ref": _STRING,
    **dict.fromkeys(("anyOf", "oneOf", "allOf", "prefixItems"), _SCHEMAS),
    **dict.fromkeys(_MAPS_OF_SCHEMAS, _MAP),
    **dict.fromkeys(("additionalProperties", "items"), _SCHEMA),
    "required": _STRINGS,
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _COUNT),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), _NUMBER),
    **dict.fromkeys(("pattern", "format"), _STRING),
}
