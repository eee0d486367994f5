"""The OpenAI routes against real replicas over mutual TLS."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import httpx
import pytest
from argosy.deploy.v1 import deploy_pb2, inference_service_pb2

HELLO = {"model": "llm", "messages": [{"role": "user", "content": "Hi"}]}


def events(text: str) -> list[Any]:
    """What a stream of events says, without comments."""
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_whole_answer(world):
    answer = await world.http.post("/v1/chat/completions", json={**HELLO, "max_completion_tokens": 9, "stop": "x"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"] == "Hello wide world"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    request = world.replicas[0].requests[0]
    assert request.sampling.max_tokens == 9
    assert list(request.sampling.stop) == ["x"]
    assert answer.headers["x-request-id"] == world.replicas[0].metadata[0]["x-request-id"]
    assert int(answer.headers["x-ratelimit-remaining-requests"]) < int(answer.headers["x-ratelimit-limit-requests"])


async def test_one_message_from_the_replica_where_it_holds_the_answer(world):
    replica = world.replicas[0]
    several = await world.http.post("/v1/chat/completions", json={**HELLO, "n": 2})
    assert [choice["message"]["content"] for choice in several.json()["choices"]] == ["Hello wide world"] * 2
    assert replica.completed == 1
    for more in ({"stream": True}, {"logprobs": True}):
        assert (await world.http.post("/v1/chat/completions", json={**HELLO, **more})).status_code == 200
    many = {"model": "llm", "prompt": ["a", "b"]}
    assert len((await world.http.post("/v1/completions", json=many)).json()["choices"]) == 2
    assert (replica.completed, len(replica.requests)) == (1, 4)


async def test_stream(world):
    body = {**HELLO, "stream": True, "stream_options": {"include_usage": True}}
    answer = await world.http.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"] == "text/event-stream"
    got = events(answer.text)
    assert got[-1] == "[DONE]"
    assert got[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in got[:-2]) == "Hello wide world"
    assert got[-3]["choices"][0]["finish_reason"] == "stop"
    assert got[-2]["choices"] == []
    assert got[-2]["usage"]["total_tokens"] == 10
    assert all(e["usage"] is None for e in got[:-2])


async def test_official_client(world, key):
    openai = pytest.importorskip("openai")
    async with openai.AsyncOpenAI(base_url=f"{world.base_url}/v1", api_key=key, max_retries=0) as client:
        whole = await client.chat.completions.create(**HELLO)
        assert whole.choices[0].message.content == "Hello wide world"
        stream = await client.chat.completions.create(**HELLO, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == "Hello wide world"
        models = [model.id async for model in client.models.list()]
        assert models == ["llm", "app:helper"]
        assert (await client.models.retrieve("llm")).owned_by == "acme"
        continued = await client.completions.create(model="llm", prompt=["a", "b"])
        assert [choice.text for choice in continued.choices] == ["Hello wide world"] * 2
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="nope", messages=HELLO["messages"])
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as wrong:
            await client.chat.completions.create(**HELLO, temperature=9)
        assert wrong.value.param == "temperature"


async def test_a_model_is_unknown_only_when_deploy_says_so(world):
    """The list of endpoints may be older than a deployment that is live already."""
    states = deploy_pb2.Deployment.State
    world.deploy.states = {
        "orgs/acme/deployments/young": states.STATE_LIVE,
        "orgs/acme/deployments/ended": states.STATE_STOPPED,
    }

    async def asked(model: str) -> tuple[int, str]:
        answer = await world.http.post("/v1/chat/completions", json={**HELLO, "model": model})
        return answer.status_code, answer.json()["error"]["code"]

    assert await asked("young") == (503, "replica_unavailable")
    assert await asked("ended") == (404, "model_not_found")
    assert await asked("nope") == (404, "model_not_found")
    world.deploy.away = True
    status, code = await asked("young")
    assert (status, code) == (503, "peer_unavailable")


async def test_choices_and_logprobs(world):
    async def script(request, context):
        for index in range(2):
            token = inference_service_pb2.TokenLogprob(token="a", logprob=-0.5, top={"a": -0.5, "b": -1.5})
            yield inference_service_pb2.GenerateResponse(
                index=index, text="a", finish_reason="length", logprobs=[token]
            )

    world.replicas[0].script = script
    body = {**HELLO, "n": 2, "logprobs": True, "top_logprobs": 2}
    choices = (await world.http.post("/v1/chat/completions", json=body)).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1]
    content = choices[1]["logprobs"]["content"][0]
    assert content["token"] == "a"
    assert [top["token"] for top in content["top_logprobs"]] == ["a", "b"]
    assert world.replicas[0].requests[0].sampling.logprobs == 2


async def test_tools_and_schema(world):
    async def script(request, context):
        for piece in ('{"name": "weather",', ' "arguments": {"city": "Kiel"}}'):
            yield inference_service_pb2.GenerateResponse(text=piece)
        yield inference_service_pb2.GenerateResponse(finish_reason="tool_calls")

    world.replicas[0].script = script
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    body = {**HELLO, "tools": [tool], "response_format": schema}
    choice = (await world.http.post("/v1/chat/completions", json=body)).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    call = choice["message"]["tool_calls"][0]["function"]
    assert call["name"] == "weather"
    assert json.loads(call["arguments"]) == {"city": "Kiel"}
    assert json.loads(world.replicas[0].requests[0].tools_json[0]) == tool
    assert world.replicas[0].requests[0].sampling.json_schema == '{"type":"object"}'
    streamed = events((await world.http.post("/v1/chat/completions", json={**body, "stream": True})).text)
    deltas = [event["choices"][0]["delta"] for event in streamed[:-1]]
    assert deltas[1]["tool_calls"][0]["function"]["name"] == "weather"


async def test_application(world):
    answer = await world.http.post("/v1/chat/completions", json={**HELLO, "model": "app:helper@2"})
    assert answer.json()["choices"][0]["message"]["content"] == "from the app"
    assert world.application.asked[0].name == "orgs/acme/applications/helper"
    assert world.application.asked[0].version == "2"
    refused = await world.http.post("/v1/chat/completions", json={**HELLO, "model": "app:draft"})
    assert refused.status_code == 400
    assert (await world.http.get("/v1/models/app:helper")).json()["id"] == "app:helper"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 99}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "god", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"surprise": 1}, "surprise"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"model": 5}, "model"),
        ({"seed": 1 << 63}, "seed"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
    ],
)
async def test_wrong_parameters_are_named(world, change, param):
    answer = await world.http.post("/v1/chat/completions", json={**HELLO, **change})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert not world.replicas[0].requests


async def test_disconnect_cancels_and_is_metered(world):
    async def endless(request, context):
        while True:
            yield inference_service_pb2.GenerateResponse(text="x")
            await asyncio.sleep(0.01)

    replica = world.replicas[0]
    replica.script = endless
    async with world.http.stream("POST", "/v1/chat/completions", json={**HELLO, "stream": True}) as answer:
        count = 0
        async for line in answer.aiter_lines():
            count += line.startswith("data: ")
            if count == 10:
                break
    async with asyncio.timeout(2):
        await replica.ended.wait()
    assert replica.produced < 40
    await world.app.ledger.flush()
    entry = next(iter(world.identity.usage.values()))
    assert entry.outcome == "cancelled"
    assert entry.completion_tokens >= 9


async def test_who_leaves_a_whole_answer_pays_for_his_prompt(world):
    async def endless(request, context):
        yield inference_service_pb2.GenerateResponse(text="x")
        await asyncio.Event().wait()

    replica = world.replicas[0]
    replica.script = endless
    long = {**HELLO, "messages": [{"role": "user", "content": "word " * 80}]}
    with pytest.raises(httpx.ReadTimeout):
        await world.http.post("/v1/chat/completions", json=long, timeout=0.5)
    async with asyncio.timeout(2):
        await replica.ended.wait()
    await world.app.ledger.flush()
    entry = next(iter(world.identity.usage.values()))
    assert (entry.outcome, entry.prompt_tokens, entry.completion_tokens) == ("cancelled", 100, 0)


async def test_a_whole_answer_goes_on_at_another_replica(world):
    """Nothing of it has been shown, so a replica that dies in the middle of it costs only time."""

    async def dies(request, context):
        yield inference_service_pb2.GenerateResponse(text="Hel")
        await context.abort(grpc.StatusCode.UNAVAILABLE, "killed")

    await world.add_replica(None)
    world.deploy.endpoints.endpoints[0].addresses.append(world.addresses[1])
    world.deploy.changed.set()
    await world.until_deployed(replicas=2)
    world.replicas[0].script = dies
    for _ in range(2):
        answer = await world.http.post("/v1/chat/completions", json=HELLO)
        assert answer.json()["choices"][0]["message"]["content"] == "Hello wide world"
    assert world.replicas[0].requests


async def test_another_replica_before_the_first_token(world):
    async def broken(request, context):
        await context.abort(inference_code("UNAVAILABLE"), "gone")
        yield

    def inference_code(name):
        import grpc

        return grpc.StatusCode[name]

    second = await world.add_replica(None)
    world.deploy.endpoints.endpoints[0].addresses.append(world.addresses[1])
    world.deploy.changed.set()
    await world.until_deployed(replicas=2)
    world.replicas[0].script = broken
    for _ in range(4):
        answer = await world.http.post("/v1/chat/completions", json=HELLO)
        assert answer.status_code == 200, answer.text
    assert len(second.requests) == 4
    second.script = broken
    answer = await world.http.post("/v1/chat/completions", json=HELLO)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"
    assert answer.json()["error"]["code"] == "replica_unavailable"


async def test_failure_after_the_first_token_is_told_in_the_stream(world):
    async def broken(request, context):
        yield inference_service_pb2.GenerateResponse(text="x")
        await context.abort(__import__("grpc").StatusCode.UNAVAILABLE, "gone")

    world.replicas[0].script = broken
    got = events((await world.http.post("/v1/chat/completions", json={**HELLO, "stream": True})).text)
    assert got[-1]["error"]["type"] == "server_error"
    assert "[DONE]" not in got


async def test_least_busy_replica_is_chosen(bare_world):
    world = bare_world
    await world.add_replica()
    await world.add_replica(None)
    world.deploy.endpoints.endpoints[0].addresses.append(world.addresses[1])
    await world.open_gateway()
    await world.until_deployed(replicas=2)
    gate = asyncio.Event()

    async def slow(request, context):
        await gate.wait()
        yield inference_service_pb2.GenerateResponse(text="x", finish_reason="stop")

    for replica in world.replicas:
        replica.script = slow
    asked = [asyncio.ensure_future(world.http.post("/v1/chat/completions", json=HELLO)) for _ in range(6)]
    async with asyncio.timeout(5):
        while sum(len(replica.requests) for replica in world.replicas) < 6:
            await asyncio.sleep(0.01)
    gate.set()
    await asyncio.gather(*asked)
    assert [len(replica.requests) for replica in world.replicas] == [3, 3]


async def test_last_list_outlives_deploy_and_the_gateway(bare_world):
    world = bare_world
    await world.add_replica()
    await world.open_gateway()
    await world.until_deployed()
    world.mesh.peers["deploy"] = "127.0.0.1:1"
    await world.open_gateway()
    assert (await world.http.post("/v1/chat/completions", json=HELLO)).status_code == 200


async def test_a_fine_tuned_model_is_asked_by_its_name_while_it_is_deployed(world):
    job = "ftjob-0123456789abcdef01234567"
    name, version = "ft:base:acme:mine:0123456789abcdef01234567", f"orgs/acme/modelProjects/{job}/versions/1"
    unknown = await world.http.post("/v1/chat/completions", json={**HELLO, "model": name})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert "does not exist" in unknown.json()["error"]["message"]
    world.training.versions[version] = {"openai-job": job, "openai-base": "base", "openai-suffix": "mine"}
    assert name not in [model["id"] for model in (await world.http.get("/v1/models")).json()["data"]]
    waiting = await world.http.post("/v1/chat/completions", json={**HELLO, "model": name})
    assert waiting.status_code == 404
    assert f"Deploy {version} to ask it" in waiting.json()["error"]["message"]
    world.deploy.place("tuned", world.addresses[0], model_version=version)
    await world.until_deployed("tuned")
    answer = await world.http.post("/v1/chat/completions", json={**HELLO, "model": name})
    assert (answer.status_code, answer.json()["model"]) == (200, name)
    assert name in [model["id"] for model in (await world.http.get("/v1/models")).json()["data"]]
    listed = (await world.http.get(f"/v1/models/{name}")).json()
    assert (listed["id"], listed["owned_by"]) == (name, "acme")
    other = await world.http.post("/v1/chat/completions", json={**HELLO, "model": name.replace("acme", "globex")})
    assert other.status_code == 404
