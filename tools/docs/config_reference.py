"""The tables of docs/configuration.md and the JSON schema for editors, both from the pydantic models."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from briton.config.briton_section import BritonSection
from briton.config.trt_llm import TRTLLMConfigurationV1, TRTLLMConfigurationV2
from briton.config.truss import Resources, TrussConfig
from tools.docs.json_types import Schema, branches, default_of, limits_of, reference, type_of
from tools.docs.sections import table

_SECTIONS: dict[str, tuple[str, type[BaseModel]]] = {
    "briton": ("briton", BritonSection),
    "trt-llm-v1": ("trt_llm", TRTLLMConfigurationV1),
    "trt-llm-v2": ("trt_llm", TRTLLMConfigurationV2),
    "resources": ("resources", Resources),
}


def sections() -> dict[str, str]:
    """Each part of a config as tables, one for every model that is reached from it."""
    seen: set[str] = set()
    result = {"top-level": _table(TrussConfig.model_json_schema(), TrussConfig.model_json_schema()["$defs"])}
    for name, (path, model) in _SECTIONS.items():
        schema = model.model_json_schema()
        definitions: dict[str, Schema] = schema.get("$defs", {})
        result[name] = "\n".join(_tables(path, schema, definitions, seen))
    return result


def schema_text() -> str:
    """The JSON schema of a config.yaml, as it is committed."""
    schema = TrussConfig.model_json_schema()
    # In the models it is a default. Here it tells the two stacks apart: without it a section is of v1.
    schema["$defs"]["TRTLLMConfigurationV2"]["required"].append("inference_stack")
    for name in ("model_metadata", "resources", "briton"):  # may stand there with nothing below
        schema["properties"][name] = {"anyOf": [schema["properties"][name], {"type": "null"}]}
    resources: dict[str, Any] = schema["$defs"]["Resources"]["properties"]["accelerator"]
    resources["anyOf"].append({"type": "object"})  # `{accelerator: NAME, count: N}`, which the model reads too
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Briton's config.yaml"}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _tables(path: str, schema: Schema, definitions: dict[str, Schema], seen: set[str]) -> Iterator[str]:
    """Breadth first: a model that is reached in several places stands at the one nearest to the top."""
    waiting = deque([(path, schema)])
    while waiting:
        path, schema = waiting.popleft()
        yield f"### `{path}`\n\n{_first_paragraph(schema)}\n\n{_table(schema, definitions)}"
        for key, field in schema["properties"].items():
            for name in _models_in(field):
                if name not in seen and "properties" in definitions[name]:
                    seen.add(name)
                    waiting.append((f"{path}.{key}", definitions[name]))


def _models_in(field: Schema) -> Iterator[str]:
    for branch in branches(field):
        inner = branch.get("additionalProperties")
        name = reference(branch) or (reference(inner) if isinstance(inner, dict) else None)
        if name is not None:
            yield name


def _table(schema: Schema, definitions: dict[str, Schema]) -> str:
    required = schema.get("required", [])
    rows = [
        (
            f"`{key}`",
            type_of(field, definitions),
            "required" if key in required else default_of(field),
            limits_of(field),
            field.get("description") or _descriptions_in(field, definitions),
        )
        for key, field in schema["properties"].items()
    ]
    return table(("key", "type", "default", "limits", "what it is"), rows)


def _descriptions_in(field: Schema, definitions: dict[str, Schema]) -> str:
    return " ".join(_first_paragraph(definitions[name]) for name in _models_in(field))


def _first_paragraph(schema: Schema) -> str:
    return str(schema.get("description", "")).split("\n\n")[0].replace("\n", " ")
