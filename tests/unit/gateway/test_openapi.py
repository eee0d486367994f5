"""The API description: whole, stable, and true to the protos."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from jsonschema import Draft202012Validator

from libs.common.media_types import SHOWN_TYPES
from services.gateway.http.openapi import describe, to_bytes
from services.gateway.http.routes import default_table

ROOT = Path(__file__).resolve().parents[3]
TABLE = default_table()
DOCUMENT = describe(TABLE)


def test_the_same_bytes_in_another_process():
    command = [sys.executable, "-m", "services.gateway.http.openapi"]
    environment = {"PYTHONHASHSEED": "5", "PATH": "/usr/bin:/bin"}
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, env=environment).stdout
    assert printed == to_bytes(default_table())


def test_every_route_is_described_once():
    operations = [operation["operationId"] for item in DOCUMENT["paths"].values() for operation in item.values()]
    assert len(operations) == len(set(operations))
    routes = {f"{route.method.containing_service.name}_{route.method.name}" for route in TABLE.routes}
    assert routes < set(operations)


def test_every_reference_has_a_target():
    def references(node):
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    known = {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}
    assert set(references(DOCUMENT)) <= known


def test_rules_of_the_protos_are_carried_over():
    create = DOCUMENT["paths"]["/v1/orgs/{org}/uploads"]["post"]
    schema = create["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert schema["fileName"]["minLength"] == 1
    assert schema["fileName"]["maxLength"] == 255
    assert schema["size"]["pattern"] == "^[0-9]{1,18}$"
    assert "parent" not in schema, "the path says it"
    dataset = DOCUMENT["paths"]["/v1/orgs/{org}/datasets"]["post"]["requestBody"]["content"]["application/json"]
    assert dataset["schema"]["required"] == ["dataset"]
    listed = {one["name"]: one for one in DOCUMENT["paths"]["/v1/orgs/{org}/datasets"]["get"]["parameters"]}
    assert listed["page_size"]["schema"]["minimum"] == 0
    assert listed["org"]["in"] == "path"
    sampling = DOCUMENT["components"]["schemas"]["deploy.v1.SamplingParameters"]["properties"]
    assert (sampling["temperature"]["minimum"], sampling["topP"]["exclusiveMinimum"]) == (0, 0)
    assert sampling["stop"]["maxItems"] == 4
    role = DOCUMENT["components"]["schemas"]["deploy.v1.ChatMessage"]["properties"]["role"]
    assert role["enum"] == ["system", "user", "assistant", "tool"]


def test_security():
    assert DOCUMENT["security"] == [{"bearer": []}]
    assert DOCUMENT["paths"]["/v1/token"]["post"]["security"] == []
    assert "security" not in DOCUMENT["paths"]["/v1/orgs"]["get"]
    assert DOCUMENT["paths"]["/v1/orgs/{org}/datasets"]["post"]["x-argosy-role"] == "editor"


def test_streams_and_files():
    watch = DOCUMENT["paths"]["/v1/orgs/{org}/{area}/tasks/{task}:watch"]["get"]["responses"]["200"]["content"]
    assert list(watch) == ["text/event-stream"]
    for path in (
        "/v1/orgs/{org}/modelProjects/{modelProject}/versions/{version}:download",
        "/v1/orgs/{org}/datasets/{dataset}/versions/{version}/exports/{export}:download",
    ):
        assert list(DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"]) == ["application/octet-stream"]
    media = DOCUMENT["paths"]["/v1/orgs/{org}/datasets/{dataset}/versions/{version}/rows/{row}:media"]["get"]
    assert set(media["responses"]["200"]["content"]) == {"application/octet-stream", *SHOWN_TYPES}
    assert next(one for one in media["parameters"] if one["name"] == "row")["schema"]["pattern"] == "^[0-9a-f]{64}$"


def test_every_schema_is_a_json_schema():
    schemas = DOCUMENT["components"]["schemas"]
    assert len(schemas) > 100
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator({**DOCUMENT, "$ref": "#/components/schemas/deploy.v1.SamplingParameters"})
    assert validator.is_valid({"temperature": 1, "maxTokens": 5})
    assert not validator.is_valid({"temperature": 3})
    assert not validator.is_valid({"surprise": 1})
