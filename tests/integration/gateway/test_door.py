"""Routes of services through the door: JSON both ways, streams, uploads, downloads, keys, limits, and what is
refused.
"""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from argosy.identity.v1 import token_service_pb2

HELLO = {"model": "llm", "messages": [{"role": "user", "content": "Hi"}]}


async def test_unary_call_carries_request_id_and_trace(world):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = await world.http.get("/v1/orgs/acme", headers={"x-request-id": "mine-1", "traceparent": trace})
    body = answer.json()
    assert body["name"] == "orgs/acme"
    assert body["labels"]["request-id"] == "mine-1" == answer.headers["x-request-id"]
    assert body["labels"]["traceparent"].startswith("00-0af7651916cd43dd8448eb211c80319c-")
    assert body["labels"]["traceparent"] != trace
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers


async def test_body_and_path_make_the_request(world):
    body = {"datasetId": "d1", "dataset": {"displayName": "D", "labels": {"a": "b"}}, "requestId": "r1"}
    answer = await world.http.post("/v1/orgs/acme/datasets", json=body)
    assert answer.json() == {"name": "orgs/acme/datasets/d1", "etag": "1"}
    request = world.dataset.created[0]
    assert (request.parent, request.dataset_id, request.request_id) == ("orgs/acme", "d1", "r1")
    assert request.dataset.labels["a"] == "b"


async def test_errors_of_services_are_json(world):
    answer = await world.http.get("/v1/orgs")
    assert answer.status_code == 403
    error = answer.json()["error"]
    assert error["reason"] == "ROLE_MISSING"
    assert error["status"] == "PERMISSION_DENIED"
    assert error["request_id"] == answer.headers["x-request-id"]
    assert error["details"][0]["metadata"] == {"required_role": "ROLE_SYSTEM"}


async def test_every_fault_of_a_body_is_named(world):
    body = {"datasetId": 5, "dataset": {"displayNam": "x", "secrecy": "NO"}, "parent": "orgs/other"}
    answer = await world.http.post("/v1/orgs/acme/datasets", json=body)
    assert answer.status_code == 400
    violations = answer.json()["error"]["details"][1]["fieldViolations"]
    assert {violation["field"] for violation in violations} == {
        "dataset_id",
        "dataset.displayNam",
        "dataset.secrecy",
        "parent",
    }


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status", "reason"),
    [
        ("GET", "/nope", b"", {}, 404, "ROUTE_UNKNOWN"),
        ("GET", "/v1/orgs/acme/nope/tasks", b"", {}, 404, "ROUTE_UNKNOWN"),
        ("PUT", "/v1/orgs/acme", b"", {}, 405, "ROUTE_UNKNOWN"),
        ("OPTIONS", "/v1/chat/completions", b"", {}, 405, "ROUTE_UNKNOWN"),
        ("POST", "/v1/orgs/acme/datasets", b"a: 1", {"content-type": "text/yaml"}, 415, "BODY_INVALID"),
        ("POST", "/v1/orgs/acme/datasets", b'{"a":', {"content-type": "application/json"}, 400, "BODY_INVALID"),
        ("POST", "/v1/orgs/acme/datasets", b"[" * 100_000, {}, 400, "BODY_INVALID"),
        ("POST", "/v1/orgs/acme/datasets", b'{"datasetId":"\xff\xfe"}', {}, 400, "BODY_INVALID"),
        ("POST", "/v1/orgs/acme/datasets", b'{"datasetId":"a\\u0000b"}', {}, 400, "INVALID_FIELD"),
        ("POST", "/v1/orgs/acme/datasets", b'"text"', {}, 400, "INVALID_FIELD"),
        ("POST", "/v1/orgs/acme/datasets", b"null", {}, 400, "INVALID_FIELD"),
        ("GET", "/v1/orgs/acme/datasets?page_size=x", b"", {}, 400, "INVALID_FIELD"),
        ("GET", "/v1/orgs/acme/datasets?page_token=%ff", b"", {}, 400, "INVALID_FIELD"),
        ("GET", "/v1/orgs/acme/datasets?" + "&".join(f"a{i}=1" for i in range(300)), b"", {}, 400, "INVALID_FIELD"),
        ("GET", "/v1/orgs/a%00b", b"", {}, 400, "INVALID_FIELD"),
        ("GET", "/v1/orgs/a%2Fb", b"", {}, 400, "INVALID_FIELD"),
        ("GET", "/v1/orgs/%C3%28", b"", {}, 400, "INVALID_FIELD"),
        ("GET", "/v1/orgs/acme", b"{}", {}, 400, "BODY_INVALID"),
        ("PUT", "/v1/orgs/acme/uploads/u", b"abc", {"content-range": "bytes 5-1/*"}, 400, "BODY_INVALID"),
        ("PUT", "/v1/orgs/acme/uploads/u", b"abc", {"content-range": "lines 1-2"}, 400, "BODY_INVALID"),
        ("PUT", "/v1/orgs/acme/uploads/u", b"abc", {"content-range": "bytes 9-11/*"}, 416, "OFFSET_MISMATCH"),
        ("POST", "/v1/orgs/acme/datasets", b" " * (13 << 20), {}, 413, "TOO_LARGE"),
        ("POST", "/v1/orgs/acme/datasets", b'{"datasetId":"\\ud800"}', {}, 400, "BODY_INVALID"),
    ],
)
async def test_bad_input_is_refused_by_name(world, method, path, content, headers, status, reason):
    answer = await world.http.request(method, path, content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["reason"] == reason
    assert (await world.http.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"\xff",
        b"[" * 100_000,
        b'{"model":"llm","messages":' + b"[" * 2000,
        b'{"messages":null}',
    ],
)
async def test_bad_bodies_of_openai_routes(world, content):
    answer = await world.http.post("/v1/chat/completions", content=content)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def raw(world, data: bytes) -> bytes:
    """What the door answers to bytes that need not be HTTP."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.app.http.port)
    writer.write(data)
    try:
        async with asyncio.timeout(15):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n", b"400"),
        (b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"b" * 100_000, b"431"),
        (b"POST /v1/token HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", b"400"),
        (b"POST /v1/token HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", b"400"),
        (b"POST /v1/token HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: x\r\n", b"408"),
    ],
)
async def test_what_is_not_http_gets_json_too(world, data, status, monkeypatch):
    monkeypatch.setattr("services.gateway.http.protocol.HEAD_SECONDS", 0.5)
    answer = await raw(world, data)
    assert answer.split(b" ")[1] == status, answer[:200]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["reason"]


@pytest.mark.parametrize("extra", [b"", b"connection: close\r\n"])
async def test_answers_in_one_write_and_in_two_are_the_same(world, extra):
    lines = b"host: x\r\nauthorization: Bearer ak_test_secret\r\nx-request-id: same\r\n"
    request = b"GET /v1/orgs/acme HTTP/1.1\r\n" + lines
    reader, writer = await asyncio.open_connection("127.0.0.1", world.app.http.port)
    writer.write(request + extra + b"\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    names = sorted(line.split(b": ")[0] for line in head.strip().split(b"\r\n")[1:])
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    wanted = b"cache-control content-length content-security-policy content-type cross-origin-resource-policy date"
    wanted += b" referrer-policy traceparent x-content-type-options x-frame-options x-request-id"
    assert set(wanted.split()) <= set(names)
    assert len(names) == len(set(names))
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    assert json.loads(await reader.readexactly(length))["name"] == "orgs/acme"
    if not extra:
        # The connection goes on, also for requests that were sent ahead.
        writer.write((request + b"\r\n") * 3)
        for _ in range(3):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
            await reader.readexactly(length)
    writer.close()


async def test_slow_body_is_given_up(world, monkeypatch):
    monkeypatch.setattr("services.gateway.http.exchange.BODY_SECONDS", 0.3)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ak_test_secret\r\n"
    answer = await raw(world, head + b"content-length: 50\r\n\r\n{")
    assert answer.split(b" ")[1] == b"408"


async def test_header_injection_stays_outside(world):
    answer = await world.http.get("/v1/orgs/acme", headers={"x-request-id": "a b\tc" * 30})
    assert " " not in answer.headers["x-request-id"]
    assert answer.status_code == 200


async def test_events_with_resume(world):
    answer = await world.http.get("/v1/orgs/acme/dataset/tasks/t:watch", headers={"last-event-id": "1"})
    assert answer.headers["content-type"] == "text/event-stream"
    assert world.dataset.watched_from == 1
    blocks = answer.text.strip().split("\n\n")
    assert [block.split("\n")[0] for block in blocks] == ["id: 2", "id: 3", "event: end"]
    assert json.loads(blocks[0].split("data: ")[1])["log"]["body"] == "line 2"


async def test_events_that_fail(world):
    missing = await world.http.get("/v1/orgs/acme/dataset/tasks/missing:watch")
    assert missing.status_code == 404
    broken = await world.http.get("/v1/orgs/acme/dataset/tasks/broken:watch")
    assert broken.status_code == 200
    last = broken.text.strip().split("\n\n")[-1]
    assert last.startswith("event: error")
    assert json.loads(last.split("data: ")[1])["error"]["reason"] == "STORAGE_UNAVAILABLE"


async def test_heartbeat_and_disconnect(world, monkeypatch):
    monkeypatch.setattr("services.gateway.http.sse.HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr("services.gateway.http.sse.FIRST_SECONDS", 0.1)
    async with world.http.stream("GET", "/v1/orgs/acme/dataset/tasks/endless:watch") as answer:
        async for line in answer.aiter_lines():
            if line.startswith(": "):
                break
    async with asyncio.timeout(2):
        await world.dataset.cancelled.wait()


async def test_downloads_are_bytes(world):
    answer = await world.http.get("/v1/orgs/acme/modelProjects/m/versions/1:download", params={"path": "a"})
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.content == b"abcdefg"
    assert answer.headers["content-disposition"] == "attachment"
    events = await world.http.get("/v1/orgs/acme/datasets/d/versions/1:read", headers={"accept": "text/event-stream"})
    assert events.headers["content-type"] == "text/event-stream"


@pytest.mark.parametrize(
    ("stated", "content_type", "disposition"),
    [
        ("image/png", "image/png", "inline"),
        ("video/webm", "video/webm", "inline"),
        ("", "application/octet-stream", "attachment"),
        ("text/html", "application/octet-stream", "attachment"),
        ("image/svg+xml", "application/octet-stream", "attachment"),
        ("image/png\r\nset-cookie: a=b", "application/octet-stream", "attachment"),
    ],
)
async def test_a_file_has_a_type_of_its_own_only_if_no_browser_runs_it(world, stated, content_type, disposition):
    world.dataset.stated = stated
    answer = await world.http.get(f"/v1/orgs/acme/datasets/d/versions/v1/rows/{'0' * 64}:media")
    assert (answer.status_code, answer.content) == (200, b"abcdefg")
    assert (answer.headers["content-type"], answer.headers["content-disposition"]) == (content_type, disposition)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in answer.headers


async def test_upload_in_parts(world):
    part = 8 << 20
    content = bytes(range(256)) * (2 * part // 256) + b"rest"
    first = await world.http.put("/v1/orgs/acme/uploads/u", content=content)
    assert first.json() == {"name": "orgs/acme/uploads/u", "offset": str(len(content))}
    assert world.dataset.parts == [part, part, 4]
    assert world.dataset.content == content
    asked = await world.http.put("/v1/orgs/acme/uploads/u", headers={"content-range": "bytes */*"})
    assert asked.json()["offset"] == str(len(content))
    more = {"content-range": f"bytes {len(content)}-{len(content) + 2}/*"}
    assert (await world.http.put("/v1/orgs/acme/uploads/u", content=b"abc", headers=more)).status_code == 200


async def test_upload_without_a_stated_length(world):
    async def pieces():
        for _ in range(3):
            yield b"x" * 100_000

    answer = await world.http.put("/v1/orgs/acme/uploads/u", content=pieces())
    assert answer.json()["offset"] == "300000"


async def test_keys(world):
    for _ in range(3):
        assert (await world.http.get("/v1/orgs/acme")).status_code == 200
    assert world.identity.exchanges == 1
    async with httpx.AsyncClient(base_url=world.base_url, trust_env=False) as client:
        missing = await client.get("/v1/orgs/acme")
        assert (missing.status_code, missing.json()["error"]["reason"]) == (401, "TOKEN_MISSING")
        assert missing.headers["www-authenticate"] == "Bearer"
        for _ in range(5):
            wrong = await client.get("/v1/orgs/acme", headers={"authorization": "Bearer ak_wrong_x"})
            assert (wrong.status_code, wrong.json()["error"]["reason"]) == (401, "TOKEN_INVALID")
        assert world.identity.exchanges == 2
        chat = await client.post("/v1/chat/completions", json=HELLO)
        assert chat.json()["error"]["code"] == "invalid_api_key"
        token = {"authorization": f"Bearer {world.mesh.token()}"}
        assert (await client.get("/v1/orgs/acme", headers=token)).status_code == 200
        forged = {"authorization": f"Bearer {world.mesh.token()[:-4]}AAAA"}
        assert (await client.get("/v1/orgs/acme", headers=forged)).status_code == 401
        other = {"authorization": f"Bearer {world.mesh.token(audience=['dataset'])}"}
        assert (await client.get("/v1/orgs/acme", headers=other)).status_code == 401


async def test_revoked_key_is_refused_within_a_second(world):
    assert (await world.http.get("/v1/orgs/acme")).status_code == 200
    world.identity.keys.clear()
    assert (await world.http.get("/v1/orgs/acme")).status_code == 200, "the key is cached"
    revocation = token_service_pb2.Revocation(name="orgs/acme/apiKeys/test")
    revocation.time.FromDatetime(world.mesh.clock.now())
    await world.identity.revocations.put(revocation)
    async with asyncio.timeout(1):
        while (await world.http.get("/v1/orgs/acme")).status_code == 200:
            await asyncio.sleep(0.02)
    assert (await world.http.get("/v1/orgs/acme")).status_code == 401


async def test_request_limit(world):
    world.identity.keys["ak_slow_x"] = {"requests": 2}
    headers = {"authorization": "Bearer ak_slow_x"}
    answers = [await world.http.get("/v1/orgs/acme", headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "2"
    assert answers[0].headers["x-ratelimit-remaining-requests"] == "1"
    assert 1 <= int(answers[2].headers["retry-after"]) <= 30
    chat = await world.http.post("/v1/chat/completions", json=HELLO, headers=headers)
    assert chat.json()["error"]["code"] == "rate_limit_exceeded"


async def test_token_limit_reserves_and_settles(world):
    world.identity.keys["ak_small_x"] = {"tokens": 100}
    headers = {"authorization": "Bearer ak_small_x"}
    body = {**HELLO, "max_tokens": 90}
    first = await world.http.post("/v1/chat/completions", json=body, headers=headers)
    assert first.status_code == 200
    assert int(first.headers["x-ratelimit-remaining-tokens"]) <= 10
    # Ten were used, not ninety, so the same fits once more; but not what is larger than what is left.
    assert (await world.http.post("/v1/chat/completions", json=body, headers=headers)).status_code == 200
    refused = await world.http.post("/v1/chat/completions", json={**HELLO, "max_tokens": 99}, headers=headers)
    assert refused.status_code == 429
    assert refused.headers["x-ratelimit-limit-tokens"] == "100"


async def test_pages(world):
    assert (await world.http.get("/readyz")).json() == {"status": "ready"}
    description = (await world.http.get("/openapi.json")).json()
    assert description["openapi"] == "3.1.0"
    docs = await world.http.get("/docs")
    assert "script-src 'self'" in docs.headers["content-security-policy"]
    assert "http://" not in docs.text
    assert "https://" not in docs.text
    for asset in ("/docs/app.js", "/docs/style.css"):
        assert (await world.http.get(asset)).status_code == 200
    async with asyncio.timeout(5):
        while b"GET /v1/{name=orgs/*}" not in (await world.http.get("/metrics")).content:
            await world.http.get("/v1/orgs/acme")
            await asyncio.sleep(0.2)
    head = await world.http.head("/healthz")
    assert (head.status_code, head.content) == (200, b"")


async def test_away_services(bare_world):
    world = bare_world
    world.mesh.peers["dataset"] = "127.0.0.1:1"
    await world.open_gateway()
    unknown = await world.http.get("/v1/orgs/acme/evaluations/e")
    assert unknown.status_code == 503
    assert unknown.headers["retry-after"] == "1"
    world.identity.away = True
    away = await world.http.get("/v1/orgs/acme", headers={"authorization": "Bearer ak_other_x"})
    assert away.status_code == 503
    assert (await world.http.get("/v1/orgs/acme")).status_code == 200, "a key that is cached goes on"
