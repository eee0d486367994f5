"""A replica with real vLLM in a process of its own: answers, refusals, and that nothing is left of it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from argosy.common.v1 import options_pb2
from argosy.deploy.v1 import inference_service_pb2 as pb
from argosy.deploy.v1 import inference_service_pb2_grpc

from libs.common.blobs import BlobStore
from libs.common.errors import ArgosyError, from_rpc_error
from libs.common.testing.mesh import Mesh
from tests.integration.deploy.peers import put_model
from tests.unit.deploy.tiny_llama import CONTEXT_LENGTH

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[3]
AUDIENCE = "orgs/acme/deployments/docs"
CONCURRENCY = 16


class Replica:
    """A running replica and its mesh.

    Args:
        mesh: gives tokens and certificates.
        process: holds it.
        status: its last word about itself.
    """

    def __init__(self, mesh: Mesh, process: subprocess.Popen[str], status: dict[str, Any]) -> None:
        self.mesh, self.process, self.status = mesh, process, status
        self.channel = mesh.channel("replica", "gateway", address=status["address"])
        self.stub = inference_service_pb2_grpc.InferenceServiceStub(self.channel)

    def call(self, request: pb.GenerateRequest, audience: str = AUDIENCE, org: str = "acme") -> Any:
        metadata = self.mesh.metadata(org, "users/alice", options_pb2.ROLE_VIEWER, [audience])
        return self.stub.Generate(request, timeout=120, metadata=metadata)

    def complete(self, request: pb.GenerateRequest) -> Any:
        metadata = self.mesh.metadata("acme", "users/alice", options_pb2.ROLE_VIEWER, [AUDIENCE])
        return self.stub.Complete(pb.CompleteRequest(request=request), timeout=120, metadata=metadata)

    async def generate(self, **fields: Any) -> list[pb.GenerateResponse]:
        """Every message of an answer; `sampling` is given by keyword arguments that start with `s_`."""
        sampling = {name[2:]: fields.pop(name) for name in list(fields) if name.startswith("s_")}
        sampling.setdefault("temperature", 0)
        return [
            message
            async for message in self.call(pb.GenerateRequest(sampling=pb.SamplingParameters(**sampling), **fields))
        ]

    async def refusal(self, audience: str = AUDIENCE, org: str = "acme", **fields: Any) -> ArgosyError:
        with pytest.raises(grpc.RpcError) as caught:
            await self.call(pb.GenerateRequest(**fields), audience, org).read()
        return from_rpc_error(caught.value, "replica")

    async def load(self) -> pb.ReplicaStatus:
        async with self.mesh.channel("replica", "deploy", address=self.status["address"]) as channel:
            stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
            return await stub.GetReplicaStatus(pb.GetReplicaStatusRequest(), timeout=10)


def read_status(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The next status line; log lines are passed over."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith('{"replica"'):
            return json.loads(line)["replica"]
    raise RuntimeError("the replica's process ended")


@pytest.fixture(scope="module")
async def replica(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Replica]:
    folder = tmp_path_factory.mktemp("replica")
    mesh = Mesh(folder)
    blobs = BlobStore(f"file://{folder}/blobs")
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    digest = await put_model(blobs, folder / "model", chat_template=template)
    (folder / "run").mkdir()
    keys = {"keys": [dict(key) for key in await mesh.jwks()]}
    (folder / "run" / "jwks-replica.json").write_text(json.dumps(keys))
    spec = {
        "replica": "orgs/acme/replicas/r1",
        "audience": AUDIENCE,
        "model_version": "orgs/acme/modelProjects/m/versions/v1",
        "manifest_digest": digest,
        "grant": await blobs.grant(digest, "r1", 600),
        "scratch": str(folder / "run" / "r1"),
        "pki_dir": str(mesh.pki),
        "max_concurrency": CONCURRENCY,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "services.deploy.engines.replica_process"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(spec) + "\n")
        process.stdin.flush()
        status: dict[str, Any] = {"state": "STARTING"}
        while status["state"] == "STARTING":
            status = await asyncio.to_thread(read_status, process)
        assert status["state"] == "READY", status
        running = Replica(mesh, process, status)
        yield running
        await running.channel.close()
        engines = children(process.pid)
        assert engines
        process.stdin.close()
        assert await asyncio.to_thread(process.wait, 60) == 0
        # The engine's own process goes with it; Python's resource tracker a moment later.
        for _ in range(50):
            if not (left := [pid for pid in engines if (Path("/proc") / str(pid)).exists()]):
                break
            await asyncio.sleep(0.1)
        assert not left
        assert not (folder / "run" / "r1").exists()
    finally:
        process.kill()


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def text(messages: list[pb.GenerateResponse], index: int = 0) -> str:
    return "".join(message.text for message in messages if message.index == index)


async def test_an_answer_is_streamed_and_counted(replica: Replica) -> None:
    messages = await replica.generate(prompt="the quick", s_max_tokens=100)
    # What comes while nobody reads is one message, so that on a busy machine there are few.
    assert len(messages) > 1
    assert messages[0].time_to_first_token_seconds > 0
    assert not any(message.time_to_first_token_seconds for message in messages[1:])
    assert [message.finish_reason for message in messages if message.finish_reason] == ["length"]
    assert [message.HasField("usage") for message in messages].count(True) == 1
    assert messages[-1].usage.completion_tokens == 100
    assert replica.status["context_length"] == CONTEXT_LENGTH


async def test_prompts_messages_and_prompt_agree(replica: Replica) -> None:
    streamed = text(await replica.generate(prompt="the quick", s_max_tokens=12))
    chat = [pb.ChatMessage(role="user", content="the quick")]
    assert text(await replica.generate(messages=chat, s_max_tokens=12)) == streamed
    batch = await replica.generate(prompts=["the lazy dog", "the quick"], s_max_tokens=12)
    assert [message.index for message in batch] == [0, 1]
    assert batch[1].text == streamed
    assert batch[0].text != streamed


async def test_a_whole_answer_is_that_of_the_stream(replica: Replica) -> None:
    request = pb.GenerateRequest(prompt="the quick", sampling=pb.SamplingParameters(seed=3, max_tokens=12, n=2))
    streamed = [message async for message in replica.call(request)]
    whole = await replica.complete(request)
    assert [answer.index for answer in whole.answers] == [0, 1]
    assert [answer.text for answer in whole.answers] == [text(streamed, 0), text(streamed, 1)]
    assert [answer.finish_reason for answer in whole.answers] == ["length", "length"]
    used = [answer.usage for answer in whole.answers if answer.HasField("usage")]
    assert used == [streamed[-1].usage]
    assert whole.answers[0].time_to_first_token_seconds > 0


async def test_two_thousand_prompts_take_seconds(replica: Replica) -> None:
    prompts = [f"the quick brown fox {i} returns" for i in range(2000)]
    begin = time.monotonic()
    messages = await replica.generate(prompts=prompts, s_max_tokens=8)
    seconds = time.monotonic() - begin
    assert [message.index for message in messages] == list(range(2000))
    assert messages[-1].usage.completion_tokens == sum(1 for _ in prompts) * 8
    # One to two seconds on an idle machine of two cores; the bound only notices a fault.
    assert seconds < 60


async def test_sampling_parameters_do_what_they_say(replica: Replica) -> None:
    free = text(await replica.generate(prompt="a", s_max_tokens=40))
    stop = next(character for character in free if character.strip())
    stopped = await replica.generate(prompt="a", s_max_tokens=40, s_stop=[stop])
    assert text(stopped) == free.split(stop)[0]
    assert stopped[-1].finish_reason == "stop"

    seeded = {"prompt": "a", "s_max_tokens": 16, "s_temperature": 1.0}
    assert text(await replica.generate(**seeded, s_seed=3)) == text(await replica.generate(**seeded, s_seed=3))
    assert text(await replica.generate(**seeded, s_seed=3)) != text(await replica.generate(**seeded, s_seed=4))

    several = await replica.generate(prompt="a", s_n=3, s_max_tokens=5, s_temperature=1.0)
    assert {message.index for message in several} == {0, 1, 2}
    assert several[-1].usage.completion_tokens == 15

    logged = await replica.generate(prompt="a", s_logprobs=2, s_max_tokens=4)
    tokens = [token for message in logged for token in message.logprobs]
    assert len(tokens) == 4
    assert all(token.logprob <= 0 and len(token.top) >= 2 for token in tokens)


async def test_an_answer_follows_its_schema(replica: Replica) -> None:
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": ["yes", "no"]}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    answer = text(await replica.generate(prompt="a", s_json_schema=json.dumps(schema), s_max_tokens=100))
    assert json.loads(answer)["answer"] in ("yes", "no")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "prompts": ["b"]}, "prompt"),
        ({"prompt": "a " * 400}, "prompt"),
        ({"prompts": ["a", "a " * 400]}, "prompts[1]"),
        ({"prompts": ["a", ""]}, "prompts[1]"),
        ({"messages": [pb.ChatMessage(role="user", content="a " * 400)]}, "messages"),
        ({"prompt": "a", "sampling": pb.SamplingParameters(json_schema="{")}, "sampling.json_schema"),
        ({"prompt": "a", "sampling": pb.SamplingParameters(json_schema="[" * 30000)}, "sampling.json_schema"),
        ({"prompt": "a", "sampling": pb.SamplingParameters(json_schema='{"type": "odd"}')}, "sampling.json_schema"),
        ({"prompt": "a", "sampling": pb.SamplingParameters(temperature=9)}, "sampling.temperature"),
        ({"messages": [pb.ChatMessage(role="user", content="a")], "tools_json": ["["]}, "tools_json[0]"),
    ],
)
async def test_bad_requests_name_their_field(replica: Replica, fields: dict[str, Any], field: str) -> None:
    error = await replica.refusal(**fields)
    assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", field)


async def test_a_token_for_something_else_is_refused(replica: Replica) -> None:
    error = await replica.refusal("orgs/acme/deployments/other", prompt="a")
    assert error.reason == "TOKEN_AUDIENCE"
    stranger = await replica.refusal(org="evil", prompt="a")
    assert stranger.reason == "NOT_FOUND"


@pytest.mark.parametrize("whole", [False, True])
async def test_who_goes_away_is_not_computed_for(replica: Replica, whole: bool) -> None:
    request = pb.GenerateRequest(prompts=["a"] * 200, sampling=pb.SamplingParameters(max_tokens=120, n=16))
    call = replica.complete(request) if whole else replica.call(request)
    async with asyncio.timeout(30):
        while not (await replica.load()).running:
            await asyncio.sleep(0.02)
    call.cancel()
    for _ in range(100):
        load = await replica.load()
        if not load.running and not load.waiting:
            break
        await asyncio.sleep(0.1)
    # 200 x 16 answers of 120 tokens take many times longer than that.
    assert (load.running, load.waiting) == (0, 0)
    before = load.generated_tokens
    await asyncio.sleep(0.3)
    assert (await replica.load()).generated_tokens == before


async def test_one_call_too_many_is_refused_at_once(replica: Replica) -> None:
    sampling = pb.SamplingParameters(max_tokens=100, n=4)
    calls = [replica.call(pb.GenerateRequest(prompts=["a"] * 100, sampling=sampling)) for _ in range(CONCURRENCY)]
    try:
        for _ in range(100):
            if (await replica.load()).waiting >= CONCURRENCY:
                break
            await asyncio.sleep(0.05)
        error = await replica.refusal(prompt="a")
        assert error.reason == "OVERLOADED"
        assert error.retry_after
        with pytest.raises(grpc.RpcError) as caught:
            await replica.complete(pb.GenerateRequest(prompt="a"))
        assert from_rpc_error(caught.value, "replica").reason == "OVERLOADED"
    finally:
        for call in calls:
            call.cancel()
    for _ in range(100):
        try:
            assert await replica.generate(prompt="a", s_max_tokens=2)
            return
        except grpc.RpcError:
            await asyncio.sleep(0.1)
    raise AssertionError("the replica takes no calls any more")
