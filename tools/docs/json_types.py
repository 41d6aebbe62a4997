"""A JSON schema's types and limits in a few words, for tables."""

from __future__ import annotations

import json
from typing import Any

Schema = dict[str, Any]
_BOUNDS = (("minimum", "≥ {}"), ("exclusiveMinimum", "> {}"), ("maximum", "≤ {}"), ("exclusiveMaximum", "< {}"))


def branches(schema: Schema) -> list[Schema]:
    """What a value may be, without null."""
    options = schema.get("anyOf") or schema.get("oneOf") or [schema]
    return [option for option in options if option.get("type") != "null"]


def type_of(schema: Schema, definitions: dict[str, Schema]) -> str:
    """`integer`, `list of string`, the values of an enumeration, ..."""
    return " or ".join(dict.fromkeys(_type(branch, definitions) for branch in branches(schema)))


def limits_of(schema: Schema) -> str:
    """Bounds of numbers, lengths and items; empty where there are none."""
    return "; ".join(dict.fromkeys(text for branch in branches(schema) if (text := _limits(branch))))


def default_of(schema: Schema) -> str:
    """The default as a config or a request spells it."""
    default = schema.get("default")
    if default is None or default == []:
        return ""
    return f"`{default if isinstance(default, str) else json.dumps(default, ensure_ascii=False)}`"


def reference(schema: Schema) -> str | None:
    """The name of the definition that this is, if it is one."""
    ref = schema.get("$ref")
    return ref.rpartition("/")[2] if isinstance(ref, str) else None


def _type(schema: Schema, definitions: dict[str, Schema]) -> str:
    if (name := reference(schema)) is not None:
        target = definitions[name]
        return "section" if "properties" in target else _type(target, definitions)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {type_of(schema.get('items', {}), definitions)}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"mapping to {type_of(schema['additionalProperties'], definitions)}"
    return {"object": "mapping", "boolean": "true or false"}.get(kind, str(kind))


def _limits(schema: Schema) -> str:
    parts = [text.format(_number(schema[key])) for key, text in _BOUNDS if key in schema]
    if "multipleOf" in schema:
        parts.append(f"a multiple of {schema['multipleOf']}")
    kind = {"array": "items", "string": "characters", "object": "entries"}.get(str(schema.get("type")), "")
    for low, high in (("minLength", "maxLength"), ("minItems", "maxItems"), ("minProperties", "maxProperties")):
        if schema.get(low):
            parts.append(f"at least {schema[low]} {kind}")
        if high in schema:
            parts.append(f"at most {schema[high]} {kind}")
    if "pattern" in schema:
        parts.append(f"matches `{schema['pattern']}`")
    inner = schema.get("items") or schema.get("additionalProperties")
    if isinstance(inner, dict) and (of_items := limits_of(inner)):
        parts.append(f"each {of_items}")
    return ", ".join(parts)


def _number(value: float) -> str:
    for power, text in ((63, "2^63"), (32, "2^32"), (31, "2^31")):
        if value in (2**power - 1, -(2**power)):
            return f"{text} - 1" if value > 0 else f"-{text}"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
