"""The API's document: what FastAPI finds, and the bodies that routes read themselves.

docs/openapi.json is this, written by tools/openapi.py.
"""

import json
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.routing import BaseRoute

from beholder.routes import clients, health, images, scoring, trainers
from beholder.routes.reading import FORM, IMAGES_FIELD, REQUEST_FIELD
from beholder.schemas import MAX_IMAGES

TITLE: Final[dict[str, Any]] = {"title": "Beholder", "summary": "Multimodal rewards", "version": "1"}
_REF: Final = "#/components/schemas/{model}"
_BODIES: Final[dict[str, TypeAdapter[Any]]] = {
    "/score": scoring.SCORE,
    "/rank": scoring.RANK,
    "/classify": clients.CLASSIFY,
    "/v1/rerank": clients.RERANK,
    "/v2/rerank": clients.RERANK,
    "/trainers/openrlhf": trainers.OPENRLHF,
    "/trainers/llama-factory": trainers.LLAMA_FACTORY,
    "/trainers/slime": trainers.SLIME,
}
_SECURITY: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, where the service asks for one."},
    "basic": {"type": "http", "scheme": "basic", "description": "The key as the password: http://x:KEY@host."},
}


def add_routes(app: FastAPI) -> None:
    """All routes, and their document as /openapi.json."""
    for module in (health, scoring, images, clients, trainers):
        app.include_router(module.router)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def scoring_routes(app: FastAPI) -> dict[str, BaseRoute]:
    """The routes whose body has samples, by their path."""
    return {route.path: route for route in app.routes if isinstance(route, APIRoute) and route.path in _BODIES}


def render() -> str:
    """The document as it is committed."""
    app = FastAPI(**TITLE)
    add_routes(app)
    return json.dumps(app.openapi(), indent=2) + "\n"


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    components = document["components"]
    for path, adapter in _BODIES.items():
        schema = adapter.json_schema(ref_template=_REF)
        components["schemas"].update(schema.pop("$defs", {}))
        content: dict[str, Any] = {"application/json": {"schema": schema}}
        if path == "/rank":
            content[FORM] = {"schema": _form(schema)}
        document["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
    components["securitySchemes"] = _SECURITY
    for path, operations in document["paths"].items():
        if path not in ("/livez", "/readyz"):
            for operation in operations.values():
                operation["security"] = [{}, *({name: []} for name in _SECURITY)]
    return document


def _form(schema: dict[str, Any]) -> dict[str, Any]:
    """A body's JSON and its images as files."""
    request = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"title": schema["title"]}}
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "maxItems": MAX_IMAGES}
    return {
        "type": "object",
        "required": [REQUEST_FIELD],
        "properties": {REQUEST_FIELD: request, IMAGES_FIELD: files},
        "additionalProperties": False,
    }
