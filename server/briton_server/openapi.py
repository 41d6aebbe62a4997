"""The OpenAPI document. `python -m briton_server.openapi` prints the one that is committed as server/openapi.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from briton_server.protocol.chat import ChatCompletionRequest
from briton_server.protocol.completions import CompletionRequest
from briton_server.protocol.errors import ErrorBody

_BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
}
_REF = "#/components/schemas/{model}"


def document(app: FastAPI) -> dict[str, Any]:
    """The application's document, with the request bodies that its routes read by themselves, and the error body."""
    result = get_openapi(title=app.title, version=app.version, routes=app.routes)
    models: tuple[type[BaseModel], ...] = (*_BODIES.values(), ErrorBody)
    _, extra = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    schemas = result.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(extra["$defs"])
    for path, operations in result["paths"].items():
        for operation in operations.values():
            if path in _BODIES:
                operation["requestBody"] = {"required": True, "content": _json(_BODIES[path].__name__)}
                operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
            operation["responses"].pop("422", None)  # FastAPI's own error shape, which nothing here sends
            if path.startswith("/v1/"):
                operation["responses"]["default"] = {"description": "Error", "content": _json(ErrorBody.__name__)}
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    result["components"]["schemas"] = dict(sorted(schemas.items()))
    return result


def _json(model: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=model)}}}


def main() -> None:
    """Print the document."""
    from briton_server.app import create_app
    from briton_server.settings import Settings

    app = create_app(Settings(model_name="", tokenizer_dir=Path(), engine_address=""))
    print(json.dumps(app.openapi(), indent=2))


if __name__ == "__main__":
    main()
