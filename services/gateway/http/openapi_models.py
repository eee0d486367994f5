"""The OpenAI routes for the OpenAPI document. They follow https://platform.openai.com/docs/api-reference, not a
proto.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_SAMPLING: dict[str, Schema] = {
    "model": {
        "type": "string",
        "minLength": 1,
        "maxLength": 512,
        "description": "A deployment of the organization, or `app:<application>[@version]`.",
    },
    "stream": {"type": "boolean"},
    "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
    "max_tokens": {"type": "integer", "minimum": 1, "maximum": 1_048_576},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "n": {"type": "integer", "minimum": 1, "maximum": 16},
    "seed": {"type": "integer"},
    "stop": {"anyOf": [_TEXT, {"type": "array", "maxItems": 4, "items": _TEXT}]},
    "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "user": _TEXT,
}
_MESSAGE: Schema = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [_TEXT, {"type": "array", "items": {"type": "object"}}, {"type": "null"}]},
        "name": _TEXT,
        "tool_call_id": _TEXT,
        "tool_calls": {"type": "array", "items": {"type": "object"}},
    },
}
_USAGE: Schema = {
    "type": "object",
    "properties": {
        "prompt_tokens": {"type": "integer"},
        "completion_tokens": {"type": "integer"},
        "total_tokens": {"type": "integer"},
    },
}


def _answer(kind: str) -> Schema:
    properties: dict[str, Schema] = {
        "id": _TEXT,
        "object": {"type": "string", "const": kind},
        "created": {"type": "integer"},
        "model": _TEXT,
        "choices": {"type": "array", "items": {"type": "object"}},
        "usage": _USAGE,
    }
    return {"type": "object", "required": list(properties), "properties": properties}


MODEL_SCHEMAS: dict[str, Schema] = {
    "openai.ChatCompletionRequest": {
        "type": "object",
        "required": ["model", "messages"],
        "properties": {
            "messages": {"type": "array", "minItems": 1, "maxItems": 4096, "items": _MESSAGE},
            **_SAMPLING,
            "max_completion_tokens": _SAMPLING["max_tokens"],
            "logprobs": {"type": "boolean"},
            "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
            "response_format": {"type": "object"},
            "tools": {"type": "array", "maxItems": 128, "items": {"type": "object"}},
            "tool_choice": {"type": "string", "enum": ["auto", "none"]},
        },
    },
    "openai.CompletionRequest": {
        "type": "object",
        "required": ["model", "prompt"],
        "properties": {
            "prompt": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]},
            **_SAMPLING,
            "logprobs": {"type": "integer", "minimum": 0, "maximum": 5},
        },
    },
    "openai.ChatCompletion": _answer("chat.completion"),
    "openai.Completion": _answer("text_completion"),
    "openai.Model": {
        "type": "object",
        "required": ["id", "object", "created", "owned_by"],
        "properties": {
            "id": _TEXT,
            "object": {"const": "model"},
            "created": {"type": "integer"},
            "owned_by": _TEXT,
        },
    },
    "openai.ModelList": {
        "type": "object",
        "required": ["object", "data"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/openai.Model"}},
        },
    },
    "openai.Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": _TEXT,
                    "type": _TEXT,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    },
}


def reference(name: str) -> Schema:
    """To a schema of these routes."""
    return {"$ref": f"#/components/schemas/openai.{name}"}


def operation(name: str, summary: str, answer: str, request: str = "") -> Schema:
    """One operation; one with a `request` can answer in events too."""
    content: Schema = {"application/json": {"schema": reference(answer)}}
    operation: Schema = {
        "operationId": f"OpenAI_{name}",
        "tags": ["OpenAI"],
        "summary": summary,
        "responses": {
            "200": {"description": "OK", "content": content},
            "default": {
                "description": "An error.",
                "content": {"application/json": {"schema": reference("Error")}},
            },
        },
    }
    if request:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference(request)}}}
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return operation


MODEL_PATHS: dict[str, Schema] = {
    "/v1/chat/completions": {
        "post": operation("ChatCompletions", "Answer a conversation", "ChatCompletion", "ChatCompletionRequest")
    },
    "/v1/completions": {"post": operation("Completions", "Continue a text", "Completion", "CompletionRequest")},
    "/v1/models": {"get": operation("ListModels", "What can be asked", "ModelList")},
    "/v1/models/{model}": {
        "get": {
            **operation("GetModel", "One model", "Model"),
            "parameters": [
                {
                    "name": "model",
                    "in": "path",
                    "required": True,
                    "schema": {"type": "string", "minLength": 1, "maxLength": 512},
                }
            ],
        }
    },
}
