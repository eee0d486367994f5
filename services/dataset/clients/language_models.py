"""Language models that read requests: replicas of Argosy, and others with the interface of OpenAI."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from argosy.dataset.v1 import annotation_pb2
from argosy.deploy.v1 import inference_service_pb2

from libs.common.auth.principal import Principal
from libs.common.domain import DomainError, invalid
from libs.common.errors import ArgosyError
from libs.common.http.external import Answer, ExternalClient, Limits
from libs.common.http.links import Link, Networks, parse_link
from libs.common.obs import inject
from libs.common.rpc.client import Channels
from libs.inference.callers import Callers
from libs.inference.replicas import Replicas
from services.dataset.clients.secrets import secret_payload
from services.dataset.domain.target_lists import INSTRUCTIONS, MOST_TOKENS, SCHEMA, TargetList, parse_answer

# A slow model on a busy machine; a target list has a few hundred tokens.
_LIMITS = Limits(bytes=1 << 20, seconds=240.0, answer_seconds=240.0, idle_seconds=240.0)
_FIELD = "language_model"
# The key, or the model, is not known there (RFC 9110, 15.5).
_REFUSED = {401: f"{_FIELD}.secret", 403: f"{_FIELD}.secret", 404: f"{_FIELD}.model"}
_SHOWN = 300


class LanguageModels:
    """Asks language models for target lists.

    Args:
        replicas: Of Argosy's own deployments; None where there are none.
        networks: Where other models may be.
        channels: Lead to the service that has the secrets.
    """

    def __init__(self, replicas: Replicas | None, networks: Networks, channels: Channels) -> None:
        self._replicas = replicas
        self._networks = networks
        self._channels = channels
        self._callers = Callers()

    async def ask_replica(self, deployment: str, request: str, principal: Principal, request_id: str) -> TargetList:
        """A target list from a model that Argosy serves, with JSON that is constrained while it is generated.

        Raises:
            DomainError: PREFLIGHT_FAILED, the answer is no target list.
            ArgosyError: REPLICA_UNAVAILABLE.
        """
        replicas = self._replicas
        if replicas is not None:
            await replicas.refresh()
        found = replicas.find(deployment) if replicas is not None else None
        if replicas is None or found is None:
            message = f"{deployment} has no replica: deploy it, or wait until it is up."
            raise ArgosyError("REPLICA_UNAVAILABLE", message, metadata={"deployment": deployment})
        asked = inference_service_pb2.GenerateRequest(
            messages=[inference_service_pb2.ChatMessage(**one) for one in _messages(request)],
            sampling=inference_service_pb2.SamplingParameters(
                temperature=0.0, max_tokens=MOST_TOKENS, json_schema=orjson.dumps(SCHEMA).decode()
            ),
        )
        body = inference_service_pb2.CompleteRequest(request=asked).SerializeToString()
        metadata = (*inject().items(), ("x-request-id", request_id))
        answer = await replicas.complete(found, body, self._callers.of(principal), metadata)
        part = await answer.read()
        return parse_answer(part.text if part is not None else "", deployment)

    async def ask_elsewhere(self, model: annotation_pb2.LanguageModel, request: str) -> TargetList:
        """A target list from a model behind an address (`POST {uri}/chat/completions` of OpenAI's interface).

        Raises:
            DomainError: INVALID_FIELD, the address is forbidden, or does not know the key or the model;
                PREFLIGHT_FAILED, the answer is no target list; PEER_UNAVAILABLE, NOT_FOUND (the secret), TOO_LARGE.
        """
        if "?" in model.uri or "#" in model.uri:
            raise invalid(f"{_FIELD}.uri", "is where the interface begins, such as https://llm.example.com/v1")
        link = parse_link(f"{model.uri.rstrip('/')}/chat/completions", f"{_FIELD}.uri")
        self._networks.require_literal(link, f"{_FIELD}.uri")
        headers: dict[str, str] = {}
        if model.secret:
            headers["Authorization"] = f"Bearer {_key(await secret_payload(model.secret, self._channels))}"
        text = await asyncio.to_thread(self._post, link, headers, _body(model.model, request))
        return parse_answer(text, model.model)

    def _post(self, link: Link, headers: dict[str, str], body: bytes) -> str:
        client = ExternalClient(self._networks, _LIMITS)
        with client.post(link, body, headers, f"{_FIELD}.uri") as answer:
            content = b"".join(answer.chunks())
            return _text(answer, content)


def _key(secret: str) -> str:
    """What may stand in a header (RFC 6750, 2.1)."""
    if not secret or not all("!" <= character <= "~" for character in secret):
        raise invalid(f"{_FIELD}.secret", "does not hold a key: one line without spaces")
    return secret


def _messages(request: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": request}]


def _body(model: str, request: str) -> bytes:
    constrained = {"type": "json_schema", "json_schema": {"name": "targets", "schema": SCHEMA}}
    body: dict[str, Any] = {"model": model, "messages": _messages(request), "response_format": constrained}
    return orjson.dumps({**body, "temperature": 0, "max_tokens": MOST_TOKENS})


def _text(answer: Answer, content: bytes) -> str:
    """What the model said."""
    address = answer.link.address
    if answer.status != 200:
        said = " ".join(content[:_SHOWN].decode(errors="replace").split())
        message = f"{address} answers {answer.status}: {said}"
        if answer.status in _REFUSED:
            raise invalid(_REFUSED[answer.status], message)
        if answer.status in (408, 425, 429) or answer.status >= 500:
            raise DomainError("PEER_UNAVAILABLE", message, service=answer.link.host)
        raise DomainError("PREFLIGHT_FAILED", message, check=_FIELD, detail=str(answer.status))
    try:
        return str(orjson.loads(content)["choices"][0]["message"]["content"])
    except (orjson.JSONDecodeError, LookupError, TypeError):
        message = f"{address} does not speak the interface of OpenAI"
        raise DomainError("PREFLIGHT_FAILED", message, check=_FIELD, detail="answer") from None
