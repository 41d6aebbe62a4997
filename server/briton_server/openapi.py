"""What FastAPI cannot find out about the routes by itself, said in its own words."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from briton_server.protocol.errors import ErrorBody

_REF = "#/components/schemas/{model}"

ERRORS: dict[int | str, dict[str, Any]] = {"default": {"model": ErrorBody, "description": "Error"}}
"""`responses` of a route of the API. It keeps FastAPI from announcing errors in a shape of its own."""

STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
"""`responses` of a route that may stream."""


def reads(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads this body by itself. `ApiWithBodies` adds the model's schema."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def operation_id(route: APIRoute) -> str:
    """The name of the route's function: `create_chat_completion`."""
    return route.name


class ApiWithBodies(FastAPI):
    """FastAPI whose document has the schemas of bodies that routes read by themselves."""

    bodies: tuple[type[BaseModel], ...] = ()

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            _, extra = models_json_schema([(model, "validation") for model in self.bodies], ref_template=_REF)
            schemas = super().openapi()["components"]["schemas"]
            schemas.update(extra.get("$defs", {}))
        document: dict[str, Any] = super().openapi()
        return document
