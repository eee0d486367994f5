"""Prompts, applications, and their answers from a replica on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from argosy.app.v1 import app_pb2, app_service_pb2_grpc, chat_service_pb2, chat_service_pb2_grpc
from argosy.app.v1 import app_service_pb2 as pb
from argosy.deploy.v1 import (
    deploy_pb2,
    deploy_service_pb2,
    deploy_service_pb2_grpc,
    inference_service_pb2,
    inference_service_pb2_grpc,
)
from argosy.identity.v1 import token_service_pb2_grpc
from google.protobuf.field_mask_pb2 import FieldMask

from deploy.local import nats
from libs.common.config import CommonSettings
from libs.common.errors import ArgosyError
from libs.common.rpc.client import Channels
from libs.common.testing.mesh import Mesh
from libs.common.testing.service import running_service
from services.app.app import DEFINITION
from tests.integration.app.stubs import Add, Identity, served

DEPLOYMENT = "orgs/acme/deployments/llm"
PROMPT = "orgs/acme/prompts/sort"
HELPER = "orgs/acme/applications/helper"
ChatMessage = inference_service_pb2.ChatMessage


class Replica(inference_service_pb2_grpc.InferenceServiceServicer):
    """Says two words."""

    def __init__(self) -> None:
        self.requests: list[inference_service_pb2.GenerateRequest] = []
        self.ended = asyncio.Event()
        self.hold = False

    async def Generate(self, request: Any, context: Any) -> AsyncGenerator[inference_service_pb2.GenerateResponse]:
        self.requests.append(request)
        try:
            yield inference_service_pb2.GenerateResponse(text="one")
            if self.hold:
                await asyncio.sleep(60)
            usage = inference_service_pb2.Usage(prompt_tokens=3, completion_tokens=2)
            yield inference_service_pb2.GenerateResponse(text=" two", finish_reason="stop", usage=usage)
        finally:
            self.ended.set()


class Deploy(deploy_service_pb2_grpc.DeployServiceServicer):
    """Knows one deployment."""

    def __init__(self) -> None:
        self.address = ""

    async def WatchEndpoints(self, request: Any, context: Any) -> AsyncGenerator[deploy_service_pb2.EndpointSet]:
        endpoint = deploy_pb2.Endpoint(
            deployment=DEPLOYMENT, audience=DEPLOYMENT, addresses=[self.address], model_version="orgs/acme/m/versions/1"
        )
        yield deploy_service_pb2.EndpointSet(endpoints=[endpoint])
        await asyncio.Event().wait()


class Rig:
    """A running application layer and calls of it as an editor of acme."""

    def __init__(self, mesh: Mesh, channels: Channels, identity: Identity, replica: Replica) -> None:
        self.mesh, self.identity, self.replica = mesh, identity, replica
        self.app = channels.stub(app_service_pb2_grpc.AppServiceStub, "app")
        self.chat = channels.stub(chat_service_pb2_grpc.ChatServiceStub, "app")
        self.metadata: Any = mesh.metadata()

    async def version(self, **fields: Any) -> app_pb2.PromptVersion:
        """A new version of the prompt, which is made where it is missing."""
        try:
            await self.app.GetPrompt(pb.GetPromptRequest(name=PROMPT), metadata=self.metadata)
        except ArgosyError:
            request = pb.CreatePromptRequest(parent="orgs/acme", prompt_id="sort", prompt=app_pb2.Prompt())
            await self.app.CreatePrompt(request, metadata=self.metadata)
        wanted = app_pb2.PromptVersion(**fields)
        return await self.app.CreatePromptVersion(
            pb.CreatePromptVersionRequest(parent=PROMPT, prompt_version=wanted), metadata=self.metadata
        )

    async def application(self, prompt_version: str) -> app_pb2.Application:
        wanted = app_pb2.Application(prompt_version=prompt_version, deployment=DEPLOYMENT)
        request = pb.CreateApplicationRequest(parent="orgs/acme", application_id="helper", application=wanted)
        return await self.app.CreateApplication(request, metadata=self.metadata)

    async def publish(self) -> app_pb2.ApplicationVersion:
        return await self.app.PublishApplication(pb.PublishApplicationRequest(name=HELPER), metadata=self.metadata)

    async def ask(self, text: str = "Hi", **fields: Any) -> list[chat_service_pb2.ChatResponse]:
        request = chat_service_pb2.ChatRequest(name=HELPER, messages=[ChatMessage(role="user", content=text)], **fields)
        return [part async for part in self.chat.Chat(request, metadata=self.metadata, timeout=20)]


@pytest.fixture
async def rig(tmp_path: Path, database_url: str, nats_server: nats.Server) -> AsyncIterator[Rig]:
    mesh = Mesh(tmp_path)
    identity, replica, deploy = Identity(mesh), Replica(), Deploy()
    servers: dict[str, Add] = {
        "identity": lambda s: token_service_pb2_grpc.add_TokenServiceServicer_to_server(identity, s),
        "replica": lambda s: inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(replica, s),
        "deploy": lambda s: deploy_service_pb2_grpc.add_DeployServiceServicer_to_server(deploy, s),
    }
    async with served(mesh, servers) as addresses:
        deploy.address = addresses["replica"]
        async with running_service(DEFINITION, mesh, database_url=database_url, nats_url=nats_server.url()) as service:
            channels = Channels(CommonSettings(peers=mesh.peers, pki_dir=mesh.pki), "gateway")
            assert service.app is not None
            async with asyncio.timeout(10):
                while service.app.replicas.find(DEPLOYMENT) is None:
                    await asyncio.sleep(0.02)
            yield Rig(mesh, channels, identity, replica)
            await channels.close()


async def refusal(call: Any) -> str:
    with pytest.raises(ArgosyError) as raised:
        await call
    return raised.value.reason


async def test_versions_are_numbered_and_stay(rig: Rig) -> None:
    first = await rig.version(template="A {input}")
    second = await rig.version(template="B {input}")
    assert [first.name, second.name] == [f"{PROMPT}/versions/1", f"{PROMPT}/versions/2"]
    prompt = await rig.app.GetPrompt(pb.GetPromptRequest(name=PROMPT), metadata=rig.metadata)
    assert prompt.latest_version == second.name
    again = await rig.app.GetPromptVersion(pb.GetPromptVersionRequest(name=first.name), metadata=rig.metadata)
    assert again.template == "A {input}"
    assert [parent.name for parent in again.lineage.parents] == [PROMPT]


async def test_a_template_that_cannot_be_rendered_is_refused(rig: Rig) -> None:
    assert await refusal(rig.version(template="no place for the question")) == "INVALID_FIELD"
    assert await refusal(rig.version(template="{input} in {language}")) == "INVALID_FIELD"


async def test_values_are_put_in_as_they_are(rig: Rig) -> None:
    """Braces in a value are text: whoever asks cannot reach another variable, or one that is not there."""
    version = await rig.version(template="{style}: {input} {}", variables={"style": "short"})

    async def render(text: str, **variables: str) -> str:
        request = pb.RenderPromptRequest(name=version.name, input=text, variables=variables)
        return (await rig.app.RenderPrompt(request, metadata=rig.metadata)).text

    assert (
        await render("{style} {input} {{0.__class__}} {nothing}")
        == "short: {style} {input} {{0.__class__}} {nothing} {}"
    )
    assert await render("x", style="{input}") == "{input}: x {}"
    assert await refusal(render("x", tone="rude")) == "INVALID_FIELD"


async def test_callers_see_what_was_published(rig: Rig) -> None:
    first, second = await rig.version(template="A {input}", system="Sort."), await rig.version(template="B {input}")
    application = await rig.application(first.name)
    assert await refusal(rig.ask()) == "STATE_CONFLICT"
    assert (await rig.publish()).name == f"{HELPER}/versions/1"
    application.prompt_version = second.name
    application.etag = ""
    edited = pb.UpdateApplicationRequest(application=application, update_mask=FieldMask(paths=["prompt_version"]))
    await rig.app.UpdateApplication(edited, metadata=rig.metadata)
    await rig.ask()
    assert [m.content for m in rig.replica.requests[-1].messages] == ["Sort.", "A Hi"]
    await rig.publish()
    await rig.ask()
    assert [m.content for m in rig.replica.requests[-1].messages] == ["B Hi"]
    await rig.ask(version="1")
    assert rig.replica.requests[-1].messages[-1].content == "A Hi"
    assert await refusal(rig.ask(version="9")) == "NOT_FOUND"


async def test_an_answer_says_what_gave_it(rig: Rig) -> None:
    version = await rig.version(template="{input}", temperature=0.5, max_tokens=9)
    await rig.application(version.name)
    await rig.publish()
    parts = await rig.ask()
    assert "".join(part.response.text for part in parts) == "one two"
    first = parts[0]
    assert (first.application_version, first.prompt_version) == (f"{HELPER}/versions/1", version.name)
    assert (first.deployment, first.model_version) == (DEPLOYMENT, "orgs/acme/m/versions/1")
    assert parts[-1].response.usage.completion_tokens == 2
    sent = rig.replica.requests[-1].sampling
    assert (sent.temperature, sent.max_tokens) == (0.5, 9)
    # The replica is asked in the caller's name, with a token that is good for this deployment alone.
    assert (rig.identity.issued[-1].subject, list(rig.identity.issued[-1].audience)) == ("users/alice", [DEPLOYMENT])


async def test_a_caller_who_goes_ends_the_work(rig: Rig) -> None:
    version = await rig.version(template="{input}")
    await rig.application(version.name)
    await rig.publish()
    rig.replica.hold = True
    request = chat_service_pb2.ChatRequest(name=HELPER, messages=[ChatMessage(role="user", content="Hi")])
    stream = rig.chat.Chat(request, metadata=rig.metadata, timeout=20)
    assert (await anext(stream)).response.text == "one"
    await stream.aclose()
    async with asyncio.timeout(5):
        await rig.replica.ended.wait()


async def test_parts_of_others_cannot_be_used(rig: Rig) -> None:
    await rig.version(template="{input}")
    theirs = rig.mesh.metadata("rival")
    wanted = app_pb2.Application(prompt_version=f"{PROMPT}/versions/1")
    request = pb.CreateApplicationRequest(parent="orgs/rival", application=wanted)
    assert await refusal(rig.app.CreateApplication(request, metadata=theirs)) == "INVALID_FIELD"
    wanted = app_pb2.Application(deployment=DEPLOYMENT)
    request = pb.CreateApplicationRequest(parent="orgs/rival", application=wanted)
    assert await refusal(rig.app.CreateApplication(request, metadata=theirs)) == "INVALID_FIELD"


async def test_a_conversation_without_a_question_is_refused(rig: Rig) -> None:
    await rig.application((await rig.version(template="{input}")).name)
    await rig.publish()
    request = chat_service_pb2.ChatRequest(name=HELPER, messages=[ChatMessage(role="system", content="Be nice")])
    stream = rig.chat.Chat(request, metadata=rig.metadata, timeout=20)
    assert await refusal(anext(stream)) == "INVALID_FIELD"
