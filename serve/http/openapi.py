"""The OpenAPI description of the HTTP API. The schemas of requests to models are vLLM's own, read from the replicas."""

from collections.abc import Iterable, Mapping
from typing import Any

from cluster import __version__
from serve.transport.messages import Endpoint

PATHS: Mapping[Endpoint, str] = {
    "chat/completions": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "messages/count_tokens": "/v1/messages/count_tokens",
    "score": "/v1/score",
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
    "tokenizer_info": "/tokenizer_info",
}
# Endpoints without a body, whose model is in the query.
GET_ENDPOINTS: frozenset[Endpoint] = frozenset({"tokenizer_info"})
READ = ("/health", "/ready", "/metrics", "/v1/models")
REFERENCE = "#/components/schemas/{model}"
REFUSALS = {
    "400": "the request is not valid",
    "401": "a key is needed",
    "403": "the key lacks the scope",
    "404": "the model is not served",
    "413": "the request is too large",
    "415": "the request is not JSON",
    "429": "the key has used up its requests or tokens of this minute",
    "503": "the model is busy, or cannot be reached",
}


def openapi(schemas: Mapping[Endpoint, dict[str, Any]]) -> dict[str, Any]:
    """Returns the OpenAPI document.

    Args:
        schemas: the JSON schema of the requests to each endpoint that a model supports, with references of the form
            `REFERENCE`.
    """
    definitions: dict[str, Any] = {"Error": _ERROR}
    paths: dict[str, Any] = {path: {"get": {"responses": _responses(["401", "403"])}} for path in READ}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    paths["/v1/models/{name}"] = {"get": {"parameters": [name], "responses": _responses(["401", "403", "404"])}}
    model = {"name": "model", "in": "query", "schema": {"type": "string"}}
    for endpoint in GET_ENDPOINTS & schemas.keys():
        paths[PATHS[endpoint]] = {"get": {"parameters": [model], "responses": _responses(["401", "403", "404"])}}
    for endpoint, schema in schemas.items():
        if endpoint in GET_ENDPOINTS:
            continue
        definitions |= schema.get("$defs", {})
        body = {key: value for key, value in schema.items() if key != "$defs"}
        request_body = {"required": True, "content": {"application/json": {"schema": body}}}
        paths[PATHS[endpoint]] = {"post": {"requestBody": request_body, "responses": _responses(REFUSALS)}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Triptych", "version": __version__},
        "paths": paths,
        "components": {"schemas": definitions, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }


_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["integer", "string", "null"]},
            },
            "required": ["message", "type"],
        }
    },
    "required": ["error"],
}


def _responses(refusals: Iterable[str]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": REFERENCE.format(model="Error")}}}
    refused = {status: {"description": REFUSALS[status], "content": error} for status in refusals}
    return {"200": {"description": "the answer"}} | refused
