"""The routes as an OpenAPI document: for clients, and for tests that send whatever it allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .bodies import FORMATS, MOST_SEEDS, MOST_SIDE
from .limits import Limits

Schema = dict[str, Any]
BINARY: Schema = {"type": "string", "format": "binary"}
ERRORS = {
    "400": "The body is cut off, or no form.",
    "401": "The token is missing or wrong.",
    "404": "There is no such engine.",
    "408": "The body came too slowly.",
    "413": "The body, the picture or the number of results is too large.",
    "422": "A value is not what it should be, or the picture shows no face.",
    "429": "Too many requests from this address.",
    "503": "Too many requests are waiting; try again after Retry-After seconds.",
    "504": "The work took too long.",
}


def document(engines: Sequence[str], limits: Limits) -> Schema:
    """Return the OpenAPI 3.1 document of a server with these engines."""
    options = _options(engines)
    picture = {"type": "string", "description": "A picture file in base64.", "contentEncoding": "base64"}
    run_json = _object(
        {
            **options,
            "image": picture,
            "style_from": {**picture, "description": "A picture whose style is mixed in."},
        },
        required=["image"],
    )
    form = _object({**options, "image": BINARY, "style_from": BINARY}, required=["image"])
    codes: Schema = {
        "type": "array",
        "description": "[L, D] or [N, L, D]",
        "items": {"type": "array", "items": {}},
    }
    query = [{"name": name, "in": "query", "schema": _as_query(schema)} for name, schema in options.items()]
    pictures = {
        **{kind: {"schema": BINARY} for kind in FORMATS.values()},
        "application/json": {"schema": {"$ref": "#/components/schemas/Results"}},
    }
    sent = {
        "application/json": {"schema": run_json},
        "multipart/form-data": {"schema": form},
        "application/octet-stream": {"schema": BINARY},
    }
    paths = {
        "/v1/run": _post("Translate a picture.", query, sent, pictures),
        "/v1/encode": _post(
            "Return the codes of a picture.",
            query,
            sent,
            {
                "application/json": {"schema": {"$ref": "#/components/schemas/Codes"}},
                "application/safetensors": {"schema": BINARY},
            },
        ),
        "/v1/generate": _post(
            "Make pictures of codes, or of seeds.",
            query,
            {
                "application/json": {"schema": _object({**options, "codes": codes})},
                "application/safetensors": {"schema": BINARY},
            },
            pictures,
        ),
        "/v1/engines": _get("The engines of this server.", "application/json"),
        "/livez": _get("The process answers.", "application/json"),
        "/readyz": _get("Every engine has run once.", "application/json", also="503"),
        "/metrics": _get("Figures for Prometheus.", "text/plain"),
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "psp_rt",
            "version": "1",
            "description": f"pSp models. A body has at most {limits.body_bytes} bytes, a picture "
            f"{limits.pixels} pixels, and a request gets at most {limits.results} results.",
        },
        "paths": paths,
        "components": {"schemas": {"Results": _results(), "Codes": _codes(), "Error": _error()}},
    }


def _options(engines: Sequence[str]) -> dict[str, Schema]:
    return {
        "engine": {"type": "string", "enum": list(engines), "description": "Default: the first one."},
        "seeds": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 2**53},
            "maxItems": MOST_SEEDS,
            "description": "Random styles; each gives a result. In a query or form: 1,2,3.",
        },
        "layers": {"type": "string", "description": 'Layers that styles replace, from 1: "8-", "4-7,9".'},
        "alpha": {"type": "number", "minimum": 0, "maximum": 1, "description": "How far they replace them."},
        "truncation": {"type": "number", "minimum": 0, "maximum": 1, "description": "Towards the average."},
        "truncation_layers": {"type": "string", "description": "Layers that truncation moves."},
        "faces": {"type": "string", "enum": ["largest", "all", "off"]},
        "paste": {"type": "boolean", "description": "Put results back into the photo."},
        "clean": {"type": "boolean", "description": "Engines for sketches: lay the drawing on white paper."},
        "from_photo": {"type": "boolean", "description": "Engines for sketches: draw the photo first."},
        "format": {"type": "string", "enum": list(FORMATS)},
        "size": {"type": "integer", "minimum": 1, "maximum": MOST_SIDE, "description": "Longer side."},
    }


def _as_query(schema: Schema) -> Schema:
    if schema["type"] == "array":
        return {"type": "string", "description": schema["description"]}
    return schema


def _object(properties: dict[str, Schema], *, required: Sequence[str] = ()) -> Schema:
    found: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**found, "required": list(required)} if required else found


def _post(summary: str, query: list[Schema], sent: Schema, returned: Schema) -> Schema:
    failed = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    errors = {status: {"description": what, "content": failed} for status, what in ERRORS.items()}
    return {
        "post": {
            "summary": summary,
            "parameters": query,
            "requestBody": {"required": True, "content": sent},
            "responses": {"200": {"description": "Done.", "content": returned}, **errors},
        }
    }


def _get(summary: str, kind: str, *, also: str | None = None) -> Schema:
    answer = {"description": summary, "content": {kind: {"schema": {}}}}
    return {"get": {"summary": summary, "responses": {"200": answer, **({also: answer} if also else {})}}}


def _said() -> dict[str, Schema]:
    warning = _object(
        {
            "kind": {"type": "string"},
            "message": {"type": "string"},
            "value": {"type": "number"},
            "limit": {"type": "number"},
        }
    )
    return {
        "report": {"type": "string", "description": "What was done to the picture."},
        "warnings": {"type": "array", "items": warning},
        "seconds": {"type": "object", "additionalProperties": {"type": "number"}},
    }


def _results() -> Schema:
    result = _object(
        {
            "image": {"type": "string", "contentEncoding": "base64"},
            "width": {"type": "integer"},
            "height": {"type": "integer"},
            "face": {"type": ["integer", "null"]},
            "seed": {"type": ["integer", "null"]},
        }
    )
    return _object({"engine": {"type": "string"}, "results": {"type": "array", "items": result}, **_said()})


def _codes() -> Schema:
    return _object(
        {
            "codes": {"type": "array", "items": {}},
            "shape": {"type": "array", "items": {"type": "integer"}},
            **_said(),
        }
    )


def _error() -> Schema:
    return _object({"error": {"type": "string"}}, required=["error"])
