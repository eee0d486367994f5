"""Every HTTP route of the gateway by its own OpenAPI, with right and wrong data, before real services; and HTTP that no
client of good will sends. The answer is what the description promises, or a JSON error that is not the server's fault.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from argosy.common.v1 import options_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from services.gateway.http.openapi import describe
from services.gateway.http.routes import default_table
from tests.fuzz.fuzz_mesh import EXAMPLES, FuzzMesh

pytestmark = pytest.mark.timeout(600)

SCHEMA = schemathesis.openapi.from_dict(describe(default_table()))
# What makes resources first, what deletes them last.
VERBS_IN_ORDER = ("post", "put", "patch", "get", "delete")
OPERATIONS = sorted(
    (result.ok() for result in SCHEMA.get_all_operations() if isinstance(result, Ok)),
    key=lambda operation: (VERBS_IN_ORDER.index(operation.method.lower()), operation.path),
)
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]
_SECONDS = 30.0
# Streams that end only with their client.
_STREAM_SECONDS = 0.3
# Schemathesis makes a case in milliseconds: half of what an RPC gets is enough, because the RPCs are fuzzed themselves.
_EXAMPLES = max(2, EXAMPLES // 2)


@pytest.fixture(scope="module")
async def http(fuzz_mesh: FuzzMesh) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the token of an administrator of `acme`."""
    gateway: Any = fuzz_mesh.services["gateway"].app
    token = fuzz_mesh.mesh.token(role=options_pb2.ROLE_ADMIN, ttl=3600)
    client = httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{gateway.http.port}",
        headers={"authorization": f"Bearer {token}"},
        timeout=_SECONDS,
        trust_env=False,
    )
    async with client:
        yield client


def cases(operation: Any) -> st.SearchStrategy[Case]:
    """Cases that obey the description, and ones that break it where something in it can be broken."""
    right = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if not (operation.body or operation.query or operation.path_parameters):
        return right
    return st.one_of(right, operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))


def enter(case: Case, mesh: FuzzMesh, number: int) -> None:
    """Puts a resource that exists into the path, three times of four."""
    labels = re.findall(r"\{(\w+)\}", case.operation.path)
    if "org" not in labels or number % 4 == 3:
        return
    path = re.sub(r":\w+$", "", case.operation.path).removeprefix("/v1/")
    template = path[: path.rindex("}") + 1]
    name = mesh.names.pick(re.sub(r"\{\w+\}", "*", template), number)
    found = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", template), name)
    if found is not None:
        case.path_parameters = {**case.path_parameters, **found.groupdict()}


def names_in(value: Any) -> list[str]:
    """Resource names anywhere in an answer."""
    if isinstance(value, str):
        return [value] if value.startswith("orgs/") else []
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return list(itertools.chain.from_iterable(names_in(item) for item in inner))


async def send(http: httpx.AsyncClient, case: Case) -> httpx.Response:
    """Sends exactly the bytes of a case; of a stream, what came in a moment."""
    arguments = case.as_transport_kwargs(base_url=str(http.base_url).rstrip("/"))
    prepared = requests.Request(**arguments).prepare()
    own = ("content-length", "authorization")
    headers = {name: _text(value) for name, value in prepared.headers.items() if name.lower() not in own}
    body: Any = prepared.body.encode() if isinstance(prepared.body, str) else prepared.body
    request = http.build_request(str(prepared.method), str(prepared.url), headers=headers, content=body or b"")
    answer = await http.send(request, stream=True)
    if answer.headers.get("content-type", "").startswith("text/event-stream"):
        content = await _a_moment(answer)
        whole = httpx.Response(answer.status_code, headers=answer.headers, content=content, request=request)
        whole.elapsed = timedelta(0)
        return whole
    await answer.aread()
    await answer.aclose()
    return answer


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


async def _a_moment(answer: httpx.Response) -> bytes:
    content = b""
    try:
        async with asyncio.timeout(_STREAM_SECONDS):
            async for piece in answer.aiter_raw():
                content += piece
    except TimeoutError:
        pass
    finally:
        await answer.aclose()
    return content


def judge(answer: httpx.Response) -> None:
    """An error is JSON with a reason, and not the server's fault."""
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/json"
        body = answer.json()
        error = body.get("error", {})
        # Ours, OpenAI's, MLflow's.
        assert error.get("reason") or error.get("type") or body.get("error_code"), body
        assert "Traceback" not in answer.text


def label(operation: Any) -> str:
    return operation.label


@pytest.mark.parametrize("operation", OPERATIONS, ids=label)
@settings(settings.get_profile("argosy-fuzz"), max_examples=_EXAMPLES)
@given(data=st.data())
async def test_route(operation: Any, data: st.DataObject, fuzz_mesh: FuzzMesh, http: httpx.AsyncClient) -> None:
    case = data.draw(cases(operation))
    enter(case, fuzz_mesh, data.draw(st.integers(0, 63)))
    answer = await send(http, case)
    judge(answer)
    # An event stream is described as text; schemathesis would take each event for the value.
    streams = answer.headers.get("content-type", "").startswith("text/event-stream")
    checks = CHECKS[:-1] if streams else CHECKS
    case.validate_response(Response.from_httpx(answer, verify=False), checks=checks)
    if answer.status_code == 200 and answer.headers["content-type"] == "application/json":
        for name in names_in(answer.json()):
            fuzz_mesh.names.add(name)


PATHS = ("/v1/orgs/acme/datasets", "/v1/chat/completions", "/v1/orgs/acme/applications", "/v1/token")
BODIES = {
    "nothing": b"",
    "half": b'{"a": ',
    "list": b"[]",
    "number": b"1e999",
    "deep": b"[" * 200_000,
    "deep object": b'{"dataset":' * 5000 + b"1" + b"}" * 5000,
    "bad UTF-8": b'{"dataset_id": "\xff\xfe\xc3("}',
    "surrogate": b'{"datasetId": "\\ud800"}',
    "NUL": b'{"datasetId": "a\\u0000b", "model": "\\u0000", "messages": [{"role": "user", "content": "\\u0000"}]}',
    "twice": b'{"datasetId": "a", "datasetId": 5}',
    "huge number": b'{"dataset": {"secrecy": ' + b"9" * 5000 + b"}}",
    "not a number": b'{"dataset": {"secrecy": NaN}, "temperature": Infinity}',
    "huge": b'{"datasetId": "' + b"a" * (14 << 20) + b'"}',
    "many": b'{"dataset": {"labels": {' + b",".join(b'"k%d":"v"' % n for n in range(50_000)) + b"}}}",
    "byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"datasetId": "a"}'.encode("utf-16"),
    "gzip": b"\x1f\x8b\x08\x00",
}
HEADERS: tuple[dict[str, str], ...] = (
    {"content-type": "text/xml"},
    {"content-type": "application/json; charset=utf-7"},
    {"content-type": "multipart/form-data; boundary=x"},
    {"content-type": ";;;"},
    {"content-encoding": "gzip"},
    {"content-range": "bytes 9-1/x"},
    {"expect": "100-continue"},
    {"accept": "application/x-nothing"},
    {"traceparent": "00-zz-zz-99"},
    {"x-request-id": "a" * 5000},
    {"last-event-id": "-1"},
    {"authorization": "Bearer"},
    {"authorization": "Basic YTpi"},
    {"authorization": "Bearer " + "ak_" * 3000},
    {"authorization": "Bearer a.b.c"},
    {"cookie": "a=" + "b" * 6000},
    {f"x-{number}": "y" for number in range(90)},
)
ROUTES = (
    "/",
    "/v1",
    "/v2/orgs/acme",
    "/v1/orgs/acme/datasets/%2e%2e/x",
    "/v1/orgs/%ff",
    "/v1/orgs/acme/datasets:x",
    "/v1//",
)
VERBS = ("GET", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "PROPFIND")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
async def test_hostile_body(http: httpx.AsyncClient, path: str, body: bytes) -> None:
    answer = await http.post(path, content=body, headers={"content-type": "application/json"})
    judge(answer)
    assert answer.status_code >= 400 or body == BODIES["byte order mark"], answer.text


@pytest.mark.parametrize("headers", HEADERS, ids=lambda headers: next(iter(headers.items()))[0])
async def test_hostile_headers(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    for verb, path in itertools.product(("GET", "POST"), PATHS):
        judge(await http.request(verb, path, headers=headers, content=b"{}" if verb == "POST" else None))


@pytest.mark.parametrize("verb", VERBS)
async def test_unknown_routes_and_methods(http: httpx.AsyncClient, verb: str) -> None:
    for path in (*ROUTES, "/v1/orgs/acme/datasets/one/rows", "/v1/orgs/acme/datasets"):
        answer = await http.request(verb, path)
        assert answer.status_code < 500, (path, answer.text)
        if answer.status_code >= 400 and verb != "HEAD":
            judge(answer)


async def test_a_service_that_is_away_is_said(
    fuzz_mesh: FuzzMesh, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 with the time to wait, and nothing else changes. Comes last: eval does not come back."""
    monkeypatch.setattr("libs.common.rpc.client._READY_SECONDS", 1.0)
    before = await http.get("/v1/orgs/acme/evaluations")
    assert before.status_code == 200, before.text
    server: Any = fuzz_mesh.services["eval"].server
    await server.drain(0.1)
    answer = await http.get("/v1/orgs/acme/evaluations")
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) >= 1
    assert json.loads(answer.content)["error"]["reason"] == "PEER_UNAVAILABLE"
    assert (await http.get("/v1/orgs/acme/datasets")).status_code == 200
    assert (await http.get("/healthz")).status_code == 200
