"""POST /v1/chat/completions, POST /v1/completions, GET /v1/models: from the key to the metered answer."""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import orjson
from argosy.app.v1 import chat_service_pb2
from argosy.deploy.v1 import deploy_pb2, inference_service_pb2
from argosy.identity.v1 import usage_service_pb2

from libs.common.errors import ArgosyError
from libs.inference.replicas import Deployment, Replicas
from services.gateway.clients.applications import Applications, Metadata
from services.gateway.clients.deployments import Deployments
from services.gateway.clients.trainings import Trainings
from services.gateway.domain import openai_names as names
from services.gateway.http.caller import Authenticator, Caller
from services.gateway.http.exchange import JSON, Exchange
from services.gateway.http.limits import charge_tokens, settle_tokens
from services.gateway.http.openai import answers, parameters
from services.gateway.http.openai.errors import ParameterError, error_body, status_of
from services.gateway.http.openai.guard import admit, guarded
from services.gateway.http.sse import EventWriter
from services.gateway.http.transcode import parse_json

# The longest prompt that a replica takes is 2 MiB; JSON may need a few bytes a character.
BODY_BYTES = 8 * 1024 * 1024
_APPLICATION = re.compile(r"app:([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)(?:@([0-9]{1,20}))?\Z")
_DEPLOYMENT = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")

Response = inference_service_pb2.GenerateResponse
Parser = Callable[[Any], parameters.Request]


class Answer(Protocol):
    """A running answer of whoever was asked."""

    model_version: str

    async def read(self) -> Response | None: ...

    async def close(self) -> None: ...


class Metered:
    """What one request used so far.

    Attributes:
        prompt_tokens: of the prompt; guessed from its length until the answer says it.
        completion_tokens: of the answer; counted by messages until the answer says it.
        outcome: `ok`, `cancelled` or the name of an ErrorReason.
    """

    __slots__ = ("completion_tokens", "first", "model_version", "outcome", "prompt_tokens", "reserved", "told")

    def __init__(self, request: parameters.Request) -> None:
        self.reserved = request.estimate()
        self.prompt_tokens = request.characters // 4
        self.completion_tokens = 0
        self.told = False
        self.first = 0.0
        self.outcome = "cancelled"
        self.model_version = ""

    def see(self, response: Response, now: float) -> None:
        """Takes the figures of one message."""
        if not self.first:
            self.first = now
        if response.HasField("usage"):
            self.prompt_tokens = response.usage.prompt_tokens
            self.completion_tokens = response.usage.completion_tokens
            self.told = True
        elif not self.told and response.text:
            # A replica sends a message a token, so this is close when an answer is cut off.
            self.completion_tokens += len(response.logprobs) or 1


class OpenAi:
    """Handlers of the OpenAI routes.

    Args:
        authenticator: knows keys and tokens.
        replicas: answer for deployments.
        applications: answer for applications.
        deployments: know deployments that the list of endpoints does not have yet.
        trainings: know fine-tuned models that are not deployed.
        record: takes the entries of the usage ledger.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        replicas: Replicas,
        applications: Applications,
        deployments: Deployments,
        trainings: Trainings,
        record: Callable[[usage_service_pb2.UsageEntry], None],
    ) -> None:
        self._authenticator = authenticator
        self._replicas = replicas
        self._applications = applications
        self._deployments = deployments
        self._trainings = trainings
        self._record = record

    def handlers(self) -> dict[str, dict[str, Callable[[Exchange], Awaitable[None]]]]:
        """Path -> HTTP method -> handler."""
        return {
            "/v1/chat/completions": {"POST": self.chat},
            "/v1/completions": {"POST": self.completion},
            "/v1/models": {"GET": self.models},
        }

    def prefixed(self) -> dict[str, dict[str, Callable[[Exchange], Awaitable[None]]]]:
        """Path prefix -> HTTP method -> handler."""
        return {"/v1/models/": {"GET": self.model}}

    async def chat(self, exchange: Exchange) -> None:
        """POST /v1/chat/completions."""
        await guarded(exchange, self._complete(exchange, parameters.parse_chat))

    async def completion(self, exchange: Exchange) -> None:
        """POST /v1/completions."""
        await guarded(exchange, self._complete(exchange, parameters.parse_completion))

    async def models(self, exchange: Exchange) -> None:
        """GET /v1/models."""
        await guarded(exchange, self._list_models(exchange))

    async def model(self, exchange: Exchange) -> None:
        """GET /v1/models/{model}."""
        exchange.route = "GET /v1/models/{model}"
        await guarded(exchange, self._one_model(exchange))

    async def _complete(self, exchange: Exchange, parse: Parser) -> None:
        caller = await admit(exchange, self._authenticator)
        body = await exchange.body(BODY_BYTES)
        exchange.require_content_type(JSON)
        request = parse(parse_json(body))
        exchange.attributes["gen_ai.request.model"] = request.model
        metered = Metered(request)
        charge_tokens(exchange, caller.budget, metered.reserved)
        answer: Answer | None = None
        try:
            answer = await self._ask(exchange, caller, request)
            if request.stream:
                await self._stream(exchange, request, answer, metered)
            else:
                await self._whole(exchange, request, answer, metered)
            metered.outcome = "ok"
        except ArgosyError as error:
            metered.outcome = error.reason
            raise
        finally:
            # Before the first wait: a client that has gone has cancelled this task, and the entry must be written all
            # the same.
            self._settle(exchange, caller, request, answer, metered)
            if answer is not None:
                await answer.close()

    async def _ask(self, exchange: Exchange, caller: Caller, request: parameters.Request) -> Answer:
        """Finds who answers by the name of the model, and starts it."""
        metadata = exchange.call_metadata()
        if request.model.startswith("app:"):
            return self._applications.chat(_to_application(request, caller), caller, metadata)
        deployment = await self._find(request.model, caller, metadata)
        asked = request.to_generate()
        if request.whole:
            body = inference_service_pb2.CompleteRequest(request=asked).SerializeToString()
            return await self._replicas.complete(deployment, body, caller, metadata)
        return await self._replicas.generate(deployment, asked.SerializeToString(), caller, metadata)

    async def _find(self, model: str, caller: Caller, metadata: Metadata) -> Deployment:
        """The deployment of that name. The list of endpoints may be older than the deployment, so deploy itself is
        asked before a model is said not to exist.
        """
        tuned = names.parse_model(model)
        if tuned is not None:
            return await self._find_tuned(tuned, caller, metadata)
        if _DEPLOYMENT.match(model):
            name = f"orgs/{caller.org}/deployments/{model}"
            deployment = self._replicas.find(name)
            if deployment is not None:
                return deployment
            if await self._deployments.serves(name, caller, metadata):
                raise ArgosyError(
                    "REPLICA_UNAVAILABLE", "No replica of the deployment answers yet.", metadata={"deployment": name}
                )
        raise _no_model(model)

    async def _find_tuned(self, model: names.FineTuned, caller: Caller, metadata: Metadata) -> Deployment:
        """The newest live deployment of a fine-tuned model."""
        version = model.model_version
        if model.org == caller.org:
            live = [
                endpoint for endpoint in self._replicas.deployments(caller.org) if endpoint.model_version == version
            ]
            for endpoint in sorted(live, key=lambda endpoint: -endpoint.live_time.seconds):
                deployment = self._replicas.find(endpoint.deployment)
                if deployment is not None:
                    return deployment
            if await self._trainings.version(version, caller, metadata) is not None:
                message = f"The model {str(model)!r} is not deployed. Deploy {version} to ask it."
                metadata_of = {"name": version, "field": "model"}
                raise ArgosyError("NOT_FOUND", message, metadata=metadata_of)
        raise _no_model(str(model))

    async def _whole(self, exchange: Exchange, request: parameters.Request, answer: Answer, metered: Metered) -> None:
        choices = [answers.Choice(index) for index in range(request.choices)]
        clock = exchange.clock
        while (response := await answer.read()) is not None:
            metered.see(response, clock.monotonic())
            if response.index < len(choices):
                choices[response.index].add(response)
        used = answers.usage(metered.prompt_tokens, metered.completion_tokens)
        created = int(exchange.started.timestamp())
        if request.chat:
            tools = bool(request.tools)
            body = answers.chat_completion(
                f"chatcmpl-{exchange.trace_id}", created, request.model, choices, used, tools
            )
        else:
            body = answers.completion(f"cmpl-{exchange.trace_id}", created, request.model, choices, used)
        await exchange.succeed(body)

    async def _stream(self, exchange: Exchange, request: parameters.Request, answer: Answer, metered: Metered) -> None:
        events = answers.Events(
            chat=request.chat,
            answer_id=("chatcmpl-" if request.chat else "cmpl-") + exchange.trace_id,
            created=int(exchange.started.timestamp()),
            model=request.model,
            tools=bool(request.tools),
            include_usage=request.include_usage,
        )
        clock = exchange.clock
        async with EventWriter(exchange).open() as writer:
            try:
                while (response := await answer.read()) is not None:
                    metered.see(response, clock.monotonic())
                    data = events.of(response)
                    if data:
                        await writer.write(data)
            except ArgosyError as error:
                if not writer.started:
                    raise
                _, status = status_of(error)
                await writer.send(error_body(error, status))
                await writer.close()
                raise
            if request.include_usage:
                await writer.write(events.usage(answers.usage(metered.prompt_tokens, metered.completion_tokens)))
            # Clients hang up at DONE: it must be the end.
            await writer.close(answers.DONE)

    def _settle(
        self, exchange: Exchange, caller: Caller, request: parameters.Request, answer: Answer | None, metered: Metered
    ) -> None:
        """Writes the entry of the ledger, and replaces the reserved tokens by those that were used."""
        now = exchange.clock.monotonic()
        prompt, completion = (metered.prompt_tokens, metered.completion_tokens) if metered.first else (0, 0)
        if metered.outcome == "cancelled" and not metered.first:
            # How far the replica had come with what nobody waits for any more is not known: the prompt counts, and what
            # was reserved stays spent.
            prompt = metered.prompt_tokens
        else:
            settle_tokens(caller.budget, metered.reserved, prompt + completion, now)
        entry = usage_service_pb2.UsageEntry(
            id=f"{random.getrandbits(128):032x}",
            org=f"orgs/{caller.org}",
            subject=caller.subject,
            api_key=caller.api_key,
            model=request.model,
            model_version=answer.model_version if answer is not None else "",
            prompt_tokens=prompt,
            completion_tokens=completion,
            request_id=exchange.request_id,
            outcome=metered.outcome,
            duration_seconds=now - exchange.began,
            time_to_first_token_seconds=metered.first - exchange.began if metered.first else 0.0,
        )
        entry.time.FromMilliseconds(int(exchange.started.timestamp() * 1000))
        self._record(entry)
        exchange.attributes["gen_ai.usage.input_tokens"] = str(prompt)
        exchange.attributes["gen_ai.usage.output_tokens"] = str(completion)

    async def _list_models(self, exchange: Exchange) -> None:
        caller = await admit(exchange, self._authenticator)
        deployments = [_deployment_model(endpoint) for endpoint in self._replicas.deployments(caller.org)]
        published = await self._applications.published(caller, exchange.call_metadata())
        listed = deployments + await self._tuned_models(caller, exchange.call_metadata())
        listed += [_application_model(name, created, caller.org) for name, created in published]
        await exchange.respond(200, orjson.dumps({"object": "list", "data": listed}))

    async def _tuned_models(self, caller: Caller, metadata: Metadata) -> list[dict[str, Any]]:
        """Fine-tuned models under their own names, while a deployment serves them; none while training is away."""
        live = {
            endpoint.model_version: endpoint
            for endpoint in self._replicas.deployments(caller.org)
            if names.is_tuned(endpoint.model_version)
        }
        try:
            tuned = [await self._trainings.tuned(version, caller, metadata) for version in live]
        except ArgosyError as error:
            if error.is_reason("PEER_UNAVAILABLE", "DEADLINE_EXCEEDED"):
                return []
            raise
        return [
            {**_deployment_model(live[model.model_version]), "id": str(model)} for model in tuned if model is not None
        ]

    async def _one_model(self, exchange: Exchange) -> None:
        caller = await admit(exchange, self._authenticator)
        model = exchange.path.removeprefix("/v1/models/").replace("%3A", ":").replace("%3a", ":").replace("%40", "@")
        application = _APPLICATION.match(model)
        if application is not None:
            published = dict(await self._applications.published(caller, exchange.call_metadata()))
            if application[1] not in published:
                raise _no_model(model)
            found = _application_model(application[1], published[application[1]], caller.org)
            await exchange.respond(200, orjson.dumps({**found, "id": model}))
            return
        deployment = await self._find(model, caller, exchange.call_metadata())
        await exchange.respond(200, orjson.dumps({**_deployment_model(deployment.endpoint), "id": model}))


def _to_application(request: parameters.Request, caller: Caller) -> chat_service_pb2.ChatRequest:
    matched = _APPLICATION.match(request.model)
    if matched is None:
        raise _no_model(request.model)
    if not request.chat:
        raise ParameterError("model", "model: applications answer conversations only.", "unsupported_value")
    return chat_service_pb2.ChatRequest(
        name=f"orgs/{caller.org}/applications/{matched[1]}",
        version=matched[2] or "",
        messages=request.messages,
        sampling=request.sampling,
        tools_json=request.tools,
    )


def _no_model(name: str) -> ArgosyError:
    shown = name[:128]
    return ArgosyError("NOT_FOUND", f"The model {shown!r} does not exist.", metadata={"name": shown, "field": "model"})


def _deployment_model(endpoint: deploy_pb2.Endpoint) -> dict[str, Any]:
    return {
        "id": endpoint.deployment.rpartition("/")[2],
        "object": "model",
        "created": endpoint.live_time.seconds,
        "owned_by": endpoint.deployment.split("/")[1],
    }


def _application_model(name: str, created: int, org: str) -> dict[str, Any]:
    return {"id": f"app:{name}", "object": "model", "created": created, "owned_by": org}
