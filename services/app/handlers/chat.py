"""Answers of applications: the prompt around the conversation, a replica's answer streamed through."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from argosy.app.v1 import chat_service_pb2 as pb
from argosy.deploy.v1 import inference_service_pb2

from libs.common.domain import DomainError
from libs.common.errors import ArgosyError
from libs.common.obs import inject
from libs.common.rpc.call import Call
from services.app.domain.applications import ApplicationVersion
from services.app.domain.prompts import PromptVersion
from services.app.store.repositories import Applications, ApplicationVersions, PromptVersions

if TYPE_CHECKING:
    from services.app.app import App

ChatMessage = inference_service_pb2.ChatMessage
_log = logging.getLogger(__name__)


async def chat(request: pb.ChatRequest, call: Call[App]) -> AsyncIterator[pb.ChatResponse]:
    version, prompt = await _parts(request, call)
    deployment = call.deps.replicas.find(version.deployment)
    if deployment is None:
        message = f"{version.deployment} has no replica: deploy it, or wait until it is up."
        raise ArgosyError("REPLICA_UNAVAILABLE", message, metadata={"deployment": version.deployment})
    caller = call.deps.callers.of(call.principal)
    body = _generate_request(request, prompt).SerializeToString()
    metadata = (*inject().items(), ("x-request-id", call.request_id))
    answer = await call.deps.replicas.generate(deployment, body, caller, metadata)
    org = {"argosy.org": call.org}
    _log.info("%s asks %s with %s", version.name, answer.model_version, prompt.name, extra=org)
    try:
        first = pb.ChatResponse(
            application_version=version.name,
            prompt_version=prompt.name,
            model_version=answer.model_version,
            deployment=version.deployment,
        )
        part = await answer.read()
        while part is not None:
            first.response.CopyFrom(part)
            yield first
            first = pb.ChatResponse()
            part = await answer.read()
    finally:
        await answer.close()


async def _parts(request: pb.ChatRequest, call: Call[App]) -> tuple[ApplicationVersion, PromptVersion]:
    """The version that was asked for, and its prompt. The connection goes back before the answer begins."""
    application = await Applications(call.uow).get(request.name)
    version = await ApplicationVersions(call.uow).get(application.require_version(request.version))
    prompt = await PromptVersions(call.uow).get(version.prompt_version)
    await call.uow.rollback()
    return version, prompt


def _generate_request(request: pb.ChatRequest, prompt: PromptVersion) -> inference_service_pb2.GenerateRequest:
    sampling = inference_service_pb2.SamplingParameters()
    sampling.CopyFrom(request.sampling)
    if not sampling.HasField("temperature"):
        sampling.temperature = prompt.temperature
    if not sampling.max_tokens:
        sampling.max_tokens = prompt.max_tokens
    messages = _render(list(request.messages), prompt, dict(request.variables))
    if prompt.raw:
        text = "\n".join([m.content for m in messages])
        return inference_service_pb2.GenerateRequest(prompt=text, sampling=sampling)
    return inference_service_pb2.GenerateRequest(messages=messages, sampling=sampling, tools_json=request.tools_json)


def _render(messages: Sequence[ChatMessage], prompt: PromptVersion, variables: dict[str, str]) -> list[ChatMessage]:
    """The conversation with the template around its last user message and the system prompt before it.

    Raises INVALID_FIELD when nobody asks anything.
    """
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
    if last < 0:
        raise DomainError("INVALID_FIELD", "messages: no message has the role `user`", field="messages")
    rendered = [ChatMessage(role="system", content=prompt.system)] if prompt.system else []
    # A raw prompt is one question to a model that knows no conversation.
    kept = [messages[last]] if prompt.raw else list(messages)
    for message in kept:
        copy = ChatMessage()
        copy.CopyFrom(message)
        if message is messages[last]:
            copy.content = prompt.render(message.content, variables)
        rendered.append(copy)
    return rendered
