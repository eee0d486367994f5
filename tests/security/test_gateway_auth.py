"""Who gets through the HTTP door, with the real identity behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from argosy.common.v1 import options_pb2

from tests.security.world import World

# A read, a list, a change, a stream, OpenAI routes, MLflow routes.
ROUTES = (
    ("GET", "/v1/orgs/acme/datasets/thing"),
    ("GET", "/v1/orgs/acme/datasets"),
    ("POST", "/v1/orgs/acme/datasets"),
    ("GET", "/v1/orgs/acme/dataset/tasks/thing:watch"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/models"),
    ("POST", "/v1/files"),
    ("GET", "/v1/files/file-0123456789abcdef/content"),
    ("POST", "/v1/fine_tuning/jobs"),
    ("GET", "/v1/fine_tuning/jobs/ftjob-0123456789abcdef/events"),
    ("POST", "/api/2.0/mlflow/runs/log-batch"),
    ("GET", "/api/2.0/mlflow-artifacts/artifacts/e/e_r/artifacts/a"),
    ("POST", "/api/2.0/mlflow/logged-models"),
)
CHAT = {"model": "llm", "messages": [{"role": "user", "content": "Hi"}]}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def door(world: World) -> AsyncIterator[httpx.AsyncClient]:
    base_url = await world.start_gateway()
    async with httpx.AsyncClient(base_url=base_url, timeout=20, trust_env=False) as client:
        yield client


async def ask(door: httpx.AsyncClient, method: str, path: str, authorization: str | None) -> httpx.Response:
    headers = {"authorization": authorization} if authorization is not None else {}
    body = CHAT if "chat" in path else {"dataset": {"type": 2}} if method == "POST" else None
    return await door.request(method, path, headers=headers, json=body)


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_strangers_stay_outside(world: World, door: httpx.AsyncClient, method: str, path: str) -> None:
    now = world.mesh.clock.now().timestamp()
    strangers = {
        "nobody": None,
        "no scheme": world.mesh.token(),
        "basic": "Basic YWxpY2U6c2VjcmV0",
        "unknown key": f"Bearer ak_{'a' * 16}_{'b' * 43}",
        "not a key": "Bearer ak_x",
        "not a token": "Bearer a.b.c",
        "expired": f"Bearer {world.mesh.token(now=now - 320)}",
        "other audience": f"Bearer {world.mesh.token(audience=['dataset'])}",
    }
    for who, authorization in strangers.items():
        answer = await ask(door, method, path, authorization)
        assert answer.status_code == 401, (who, answer.text)
        assert answer.json().keys() & {"error", "error_code"}, who


async def test_the_right_caller_comes_in(world: World, door: httpx.AsyncClient) -> None:
    for authorization in (f"Bearer {world.system_key}", f"Bearer {world.mesh.token()}"):
        answer = await ask(door, "GET", "/v1/orgs/acme/datasets", authorization)
        assert answer.status_code == 200, answer.text


async def test_role_and_tenant_hold_behind_the_door(world: World, door: httpx.AsyncClient) -> None:
    viewer = f"Bearer {world.mesh.token(role=options_pb2.ROLE_VIEWER)}"
    refused = await ask(door, "POST", "/v1/orgs/acme/datasets", viewer)
    assert (refused.status_code, refused.json()["error"]["reason"]) == (403, "ROLE_MISSING")
    hidden = await ask(door, "GET", "/v1/orgs/rival/datasets", f"Bearer {world.mesh.token()}")
    assert (hidden.status_code, hidden.json()["error"]["reason"]) == (404, "NOT_FOUND")


async def test_methods_of_services_have_no_route(world: World, door: httpx.AsyncClient) -> None:
    """What is for peers alone cannot be reached from outside, whoever asks."""
    for rpc in world.rpcs:
        if rpc.policy.access == options_pb2.ACCESS_PEER:
            answer = await ask(door, "POST", rpc.policy.path, f"Bearer {world.system_key}")
            assert answer.status_code == 404, rpc
