"""The OpenAPI description of every route, made from the descriptors: `python -m services.gateway.http.openapi` prints
it.

Names, types and validation rules are those of the protos; comments of the protos become descriptions where the image
that `protos/generate.py` writes is at hand.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import orjson
from argosy.buf.validate import validate_pb2
from argosy.common.v1 import options_pb2
from argosy.dataset.v1 import dataset_pb2
from google.protobuf.descriptor import FieldDescriptor

from libs.common.media_types import SHOWN_TYPES
from services.gateway.http.comments import Comments
from services.gateway.http.json_message import is_map, is_well_known
from services.gateway.http.methods import STATED_TYPE, content_field
from services.gateway.http.openapi_fine_tuning import FINE_TUNING_PATHS, FINE_TUNING_SCHEMAS
from services.gateway.http.openapi_mlflow import MLFLOW_PATHS, MLFLOW_SCHEMAS
from services.gateway.http.openapi_models import MODEL_PATHS, MODEL_SCHEMAS
from services.gateway.http.routes import TASK_AREAS, Route, RouteTable, default_table

Schema = dict[str, Any]

VERSION = "3.1.0"
# Deeper query parameters than this no request of ours has.
_QUERY_DEPTH = 3
_SEGMENT = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_WELL_KNOWN: dict[str, Schema] = {
    "Timestamp": {"type": "string", "format": "date-time"},
    "Duration": {"type": "string", "pattern": "^-?[0-9]+(\\.[0-9]{1,9})?s$"},
    "FieldMask": {"type": "string", "description": "Names of fields, separated by commas."},
    "Struct": {"type": "object"},
    "Value": {},
    "ListValue": {"type": "array"},
    "Any": {"type": "object", "required": ["@type"], "properties": {"@type": {"type": "string"}}},
    "Empty": {"type": "object"},
}
_SMALL_INTEGERS = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32)
_LARGE_INTEGERS = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
_FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)


def describe(table: RouteTable) -> Schema:
    """The OpenAPI document of a route table. The same table gives the same bytes."""
    return _Document(table).build()


class _Document:
    def __init__(self, table: RouteTable) -> None:
        self._table = table
        self._comments = Comments.load()
        self._schemas: dict[str, Schema] = {
            "Error": _error_schema(),
            **MODEL_SCHEMAS,
            **FINE_TUNING_SCHEMAS,
            **MLFLOW_SCHEMAS,
        }

    def build(self) -> Schema:
        paths: dict[str, Schema] = {}
        for route in sorted(self._table.routes, key=lambda route: (route.template, route.http_method)):
            path, parameters = self._path(route)
            paths.setdefault(path, {})[route.http_method.lower()] = self._operation(route, parameters)
        paths["/v1/orgs/{org}/uploads/{upload}"]["put"] = self._upload()
        paths.update(MODEL_PATHS | FINE_TUNING_PATHS | MLFLOW_PATHS)
        tags = sorted({operation["tags"][0] for item in paths.values() for operation in item.values()})
        return {
            "openapi": VERSION,
            "info": {
                "title": "Argosy",
                "version": "v1",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
                "description": "Datasets, trainings, models, deployments, evaluations and applications over HTTP.",
            },
            "servers": [{"url": "/"}],
            "security": [{"bearer": []}],
            "tags": [{"name": tag} for tag in tags],
            "paths": dict(sorted(paths.items())),
            "components": {
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key (`ak_...`) or a token."}
                },
                "schemas": dict(sorted(self._schemas.items())),
            },
        }

    def _path(self, route: Route) -> tuple[str, list[Schema]]:
        segments = list(route.segments)
        parameters: list[Schema] = []
        for name, start, end in route.variables:
            rules = _segment_patterns(route, name, end - start)
            for index in range(start, end):
                if segments[index] != "*":
                    continue
                label = _label(route, index, segments)
                segments[index] = f"{{{label}}}"
                schema: Schema = {"type": "string", "pattern": f"^{rules[index - start]}$"}
                if index == route.area_segment:
                    schema = {"type": "string", "enum": sorted(TASK_AREAS)}
                parameters.append({"name": label, "in": "path", "required": True, "schema": schema})
        verb = f":{route.verb}" if route.verb else ""
        return "/" + "/".join(segments) + verb, parameters

    def _operation(self, route: Route, parameters: list[Schema]) -> Schema:
        method: Any = route.method
        service = method.containing_service.name
        operation: Schema = {
            "operationId": f"{service}_{method.name}",
            "tags": [service],
            "summary": method.name,
            "parameters": parameters,
            "responses": self._responses(route),
        }
        comment = self._comments.of(method.full_name)
        if comment:
            operation["description"] = comment
        if route.policy.access == options_pb2.ACCESS_PUBLIC:
            operation["security"] = []
        else:
            role = options_pb2.Role.Name(route.policy.role).removeprefix("ROLE_").lower()
            operation["x-argosy-role"] = role
        in_path = {name for name, _, _ in route.variables}
        if route.body:
            operation["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": self._body(route, in_path)}},
            }
        if route.body != "*":
            skip = in_path | ({route.body} if route.body else set())
            operation["parameters"] = parameters + list(self._query(method.input_type, "", skip, _QUERY_DEPTH))
        if not operation["parameters"]:
            del operation["parameters"]
        return operation

    def _upload(self) -> Schema:
        upload = self._reference(dataset_pb2.Upload.DESCRIPTOR)
        body = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
        return {
            "operationId": "Uploads_Put",
            "tags": ["DatasetService"],
            "summary": "PutUpload",
            "description": "Appends a body of any length; `Content-Range: bytes */*` asks where the upload stands.",
            "parameters": _upload_parameters(),
            "requestBody": {"content": {"application/octet-stream": body}},
            "responses": {
                "200": {"description": "OK", "content": {"application/json": {"schema": upload}}},
                "default": _error_response(),
            },
            "x-argosy-role": "editor",
        }

    def _responses(self, route: Route) -> Schema:
        method: Any = route.method
        schema = self._reference(method.output_type)
        if not route.policy.streams:
            content: Schema = {"application/json": {"schema": schema}}
        elif content_field(method.output_type) is not None:
            shown = sorted(SHOWN_TYPES) if STATED_TYPE in method.output_type.fields_by_name else []
            content = {
                name: {"schema": {"type": "string", "contentMediaType": name}}
                for name in ("application/octet-stream", *shown)
            }
        else:
            content = {"text/event-stream": {"schema": {"type": "string", "x-argosy-event": schema}}}
        return {"200": {"description": "OK", "content": content}, "default": _error_response()}

    def _body(self, route: Route, in_path: set[str]) -> Schema:
        message: Any = route.method.input_type
        if route.body != "*":
            return self._reference(message.fields_by_name[route.body].message_type)
        return self._object(message, in_path)

    def _query(self, message: Any, prefix: str, skip: set[str], depth: int) -> Iterable[Schema]:
        for field in message.fields:
            name = f"{prefix}{field.name}"
            if name in skip or is_map(field):
                continue
            if field.message_type is not None and not is_well_known(field.message_type):
                if not field.is_repeated and depth > 1:
                    yield from self._query(field.message_type, f"{name}.", skip, depth - 1)
                continue
            parameter: Schema = {"name": name, "in": "query", "schema": self._field(field)}
            if _rules(field).required:
                parameter["required"] = True
            comment = self._comments.of(field.full_name)
            if comment:
                parameter["description"] = comment
            yield parameter

    def _reference(self, message: Any) -> Schema:
        if is_well_known(message):
            return dict(_WELL_KNOWN.get(message.name, {}))
        name = message.full_name.removeprefix("argosy.")
        if name not in self._schemas:
            self._schemas[name] = {}
            self._schemas[name] = self._object(message, set())
        return {"$ref": f"#/components/schemas/{name}"}

    def _object(self, message: Any, skip: set[str]) -> Schema:
        fields = [field for field in message.fields if field.name not in skip]
        schema: Schema = {
            "type": "object",
            "additionalProperties": False,
            "properties": {field.camelcase_name: self._described(field) for field in fields},
        }
        required = [field.camelcase_name for field in fields if _rules(field).required]
        if required:
            schema["required"] = required
        comment = self._comments.of(message.full_name)
        if comment:
            schema["description"] = comment
        return schema

    def _described(self, field: FieldDescriptor) -> Schema:
        schema = self._field(field)
        comment = self._comments.of(field.full_name)
        return {**schema, "description": comment} if comment else schema

    def _field(self, field: FieldDescriptor) -> Schema:
        rules = _rules(field)
        if is_map(field):
            entry: Any = field.message_type
            schema: Schema = {
                "type": "object",
                "additionalProperties": self._single(entry.fields_by_name["value"], None),
            }
            _bound(schema, rules.map, (("min_pairs", "minProperties"), ("max_pairs", "maxProperties")))
            return schema
        if field.is_repeated:
            schema = {"type": "array", "items": self._single(field, rules.repeated.items)}
            _bound(schema, rules.repeated, (("min_items", "minItems"), ("max_items", "maxItems")))
            if rules.repeated.unique:
                schema["uniqueItems"] = True
            return schema
        return self._single(field, rules)

    def _single(self, field: FieldDescriptor, rules: Any) -> Schema:
        if field.message_type is not None:
            return self._reference(field.message_type)
        if field.enum_type is not None:
            return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
        return _scalar(field, rules)


def _scalar(field: FieldDescriptor, rules: Any) -> Schema:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return {"type": "boolean"}
    if kind in _LARGE_INTEGERS:
        least = rules is not None and _least(rules.int64)
        return {"type": "string", "format": "int64", "pattern": "^[0-9]{1,18}$" if least else "^-?[0-9]{1,18}$"}
    if kind in _SMALL_INTEGERS:
        schema: Schema = {"type": "integer", "format": "int32", "minimum": -(1 << 31), "maximum": (1 << 31) - 1}
        _bound(schema, rules and rules.int32, _RANGE)
        return schema
    if kind in _FLOATS:
        schema = {"type": "number", "format": "double"}
        _bound(schema, rules and rules.double, _RANGE)
        return schema
    if field.type == FieldDescriptor.TYPE_BYTES:
        schema = {"type": "string", "contentEncoding": "base64"}
        if rules is not None and rules.bytes.HasField("max_len"):
            schema["maxLength"] = (rules.bytes.max_len + 2) // 3 * 4
        return schema
    return _string(rules)


_RANGE = (("gte", "minimum"), ("gt", "exclusiveMinimum"), ("lte", "maximum"), ("lt", "exclusiveMaximum"))


def _least(rules: Any) -> bool:
    return rules.HasField("gte") and rules.gte >= 0


def _string(rules: Any) -> Schema:
    schema: Schema = {"type": "string"}
    if rules is None:
        return schema
    _bound(schema, rules.string, (("min_len", "minLength"), ("max_len", "maxLength"), ("pattern", "pattern")))
    # `in` is a word of Python.
    allowed = list(getattr(rules.string, "in"))
    if allowed:
        schema["enum"] = allowed
    return schema


def _bound(schema: Schema, rules: Any, names: Iterable[tuple[str, str]]) -> None:
    for rule, keyword in names:
        if rules is not None and rules.HasField(rule):
            schema[keyword] = getattr(rules, rule)


def _rules(field: FieldDescriptor) -> Any:
    return field.GetOptions().Extensions[validate_pb2.field]  # type: ignore[index]


def _segment_patterns(route: Route, path: str, count: int) -> list[str]:
    """The rule of each segment of a variable, taken from the pattern of its field."""
    message: Any = route.method.input_type
    *parents, last = path.split(".")
    for parent in parents:
        message = message.fields_by_name[parent].message_type
    pattern = _rules(message.fields_by_name[last]).string.pattern
    parts = pattern.removeprefix("^").removesuffix("$").split("/")
    return parts if len(parts) == count else [_SEGMENT] * count


def _label(route: Route, index: int, segments: list[str]) -> str:
    """What a wildcard is called: the singular of the collection before it."""
    if index == route.area_segment:
        return "area"
    collection = segments[index - 1]
    return collection.removesuffix("s") if collection.endswith("s") else f"{collection}Id"


def _error_response() -> Schema:
    return {
        "description": "An error.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }


def _error_schema() -> Schema:
    text = {"type": "string"}
    inner = {
        "type": "object",
        "required": ["code", "status", "message", "reason", "details", "request_id"],
        "properties": {
            "code": {"type": "integer", "description": "The HTTP status."},
            "status": {**text, "description": "Name of the gRPC code."},
            "message": text,
            "reason": {**text, "description": "Name of an ErrorReason."},
            "details": {"type": "array", "items": {"type": "object"}},
            "request_id": text,
        },
    }
    return {"type": "object", "required": ["error"], "properties": {"error": inner}}


def _upload_parameters() -> list[Schema]:
    segment = {"type": "string", "pattern": f"^{_SEGMENT}$"}
    content_range = {"type": "string", "pattern": "^bytes (([0-9]{1,15}-[0-9]{1,15})|\\*)/([0-9]{1,15}|\\*)$"}
    return [
        {"name": "org", "in": "path", "required": True, "schema": segment},
        {"name": "upload", "in": "path", "required": True, "schema": segment},
        {"name": "Content-Range", "in": "header", "schema": content_range},
    ]


def to_bytes(table: RouteTable) -> bytes:
    """The document as JSON, indented, with a line break at its end."""
    return orjson.dumps(describe(table), option=orjson.OPT_INDENT_2) + b"\n"


if __name__ == "__main__":
    sys.stdout.buffer.write(to_bytes(default_table()))
