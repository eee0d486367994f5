"""Replicas of deployments: where they are, and the direct way to them.

deploy streams the endpoints; the last list is kept, also on disk, so that answers go on while deploy is away. A call
goes to the replica with the fewest calls in flight from here. Until its first token has come, it may go to another one.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc
from argosy.deploy.v1 import deploy_pb2, deploy_service_pb2, deploy_service_pb2_grpc, inference_service_pb2
from google.protobuf.message import DecodeError

from libs.common.clock import Clock
from libs.common.errors import ArgosyError, from_rpc_error
from libs.common.pki import Certificates, KeyPair, server_name
from libs.common.rpc.client import Channels

_log = logging.getLogger(__name__)

_WATCH_PAUSE = 0.5
# A replica that failed is left alone for so long, unless there is no other.
_COOL_SECONDS = 2.0
_ATTEMPTS = 3
# Channels keeps tokens; it is asked again after this, so that a new one is taken well before the old one ends.
_TOKEN_SECONDS = 30.0
# How often the certificate's files are looked at.
_ROTATION_SECONDS = 1.0
# The longest that `max_deadline_ms` of Generate allows.
GENERATE_SECONDS = 600.0
_GENERATE = "/argosy.deploy.v1.InferenceService/Generate"
_COMPLETE = "/argosy.deploy.v1.InferenceService/Complete"
_OPTIONS = (
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)

Response = inference_service_pb2.GenerateResponse
Metadata = tuple[tuple[str, str], ...]
Answer = TypeVar("Answer")


class Caller(Protocol):
    """In whose name a replica is asked. `audience_tokens` is where tokens for replicas are remembered."""

    @property
    def org(self) -> str: ...

    @property
    def subject(self) -> str: ...

    @property
    def role(self) -> int: ...

    @property
    def audience_tokens(self) -> dict[str, tuple[tuple[str, str], float]]: ...


@dataclass(slots=True)
class Replica:
    """One address.

    Attributes:
        address: `host:port`.
        outstanding: calls in flight from here.
        cool_until: monotonic time up to which it is avoided.
        turn: when it was last chosen; breaks ties.
    """

    address: str
    outstanding: int = 0
    cool_until: float = 0.0
    turn: int = 0
    pair: KeyPair | None = None
    channel: grpc.aio.Channel | None = None
    generate: Any = None
    complete: Any = None


@dataclass(slots=True)
class Deployment:
    """What deploy says about a deployment, with its replicas."""

    endpoint: deploy_pb2.Endpoint
    replicas: list[Replica] = field(default_factory=list)


class Generation:
    """One running answer of a replica. `read` gives messages until None; `close` must be called."""

    __slots__ = ("_call", "_channel", "_first", "_replica", "model_version")

    def __init__(self, call: Any, first: Response | None, replica: Replica, model_version: str) -> None:
        self._call = call
        # A channel that nobody refers to closes itself and its calls; this one may just have been replaced.
        self._channel = replica.channel
        self._first = first
        self._replica = replica
        self.model_version = model_version

    async def read(self) -> Response | None:
        """The next message; None at the end. Raises the ArgosyError that the replica raised."""
        first = self._first
        if first is not None:
            self._first = None
            return first
        try:
            message = await self._call.read()
            if message is not grpc.aio.EOF:
                return message
            if await self._call.code() is grpc.StatusCode.OK:
                return None
            raise await _error(self._call)
        except grpc.RpcError as error:
            raise from_rpc_error(error, "replica") from None

    async def close(self) -> None:
        """Ends the answer; one that is not complete is cancelled."""
        self._call.cancel()
        self._replica.outstanding -= 1


class Completion:
    """A whole answer of a replica, read like one that is still running."""

    __slots__ = ("_answers", "model_version")

    def __init__(self, answers: Iterable[Response], model_version: str) -> None:
        self._answers = iter(answers)
        self.model_version = model_version

    async def read(self) -> Response | None:
        """The next answer, whole; None after the last."""
        return next(self._answers, None)

    async def close(self) -> None:
        """Nothing is left to end."""


class Replicas:
    """The way to all replicas.

    Args:
        channels: to deploy, and for tokens.
        certificates: of the gateway.
        clock: for pauses.
        identity: name in the certificates of replicas.
        memory: file that keeps the last list of endpoints.
    """

    def __init__(
        self, channels: Channels, certificates: Certificates, clock: Clock, *, identity: str, memory: Path
    ) -> None:
        self._deploy: deploy_service_pb2_grpc.DeployServiceStub = channels.stub(
            deploy_service_pb2_grpc.DeployServiceStub, "deploy"
        )
        self._channels = channels
        self._certificates = certificates
        self._clock = clock
        self._identity = identity
        self._memory = memory
        self._deployments: dict[str, Deployment] = {}
        self._replicas: dict[str, Replica] = {}
        self._turns = itertools.count(1)
        self._pair = certificates.current
        self._next_check = 0.0

    def restore(self) -> None:
        """Takes the list that an earlier process kept, until deploy says more."""
        try:
            self.update(deploy_service_pb2.EndpointSet.FromString(self._memory.read_bytes()))
        except (OSError, DecodeError):
            return

    def deployments(self, org: str) -> Iterable[deploy_pb2.Endpoint]:
        """The endpoints of an organization."""
        prefix = f"orgs/{org}/"
        return [found.endpoint for name, found in self._deployments.items() if name.startswith(prefix)]

    def find(self, name: str) -> Deployment | None:
        """A deployment by its resource name."""
        return self._deployments.get(name)

    async def watch(self) -> None:
        """Follows deploy, for ever."""
        while True:
            try:
                async for endpoints in self._deploy.WatchEndpoints(deploy_service_pb2.WatchEndpointsRequest()):
                    self.update(endpoints)
                    self._keep(endpoints)
            except ArgosyError as error:
                _log.info("endpoints cannot be watched now: %s", error.reason)
            await self._clock.sleep(_WATCH_PAUSE)

    async def refresh(self) -> None:
        """Asks deploy once, for those who ask replicas now and then. Raises the ArgosyError of the call."""
        async with aclosing(self._deploy.WatchEndpoints(deploy_service_pb2.WatchEndpointsRequest())) as sets:
            self.update(await anext(sets))

    def update(self, endpoints: deploy_service_pb2.EndpointSet) -> None:
        """Takes a new list. Replicas that stay keep their channel and their count."""
        replicas: dict[str, Replica] = {}
        deployments: dict[str, Deployment] = {}
        for endpoint in endpoints.endpoints:
            deployment = deployments[endpoint.deployment] = Deployment(endpoint)
            for address in endpoint.addresses:
                replica = replicas.get(address) or self._replicas.get(address) or Replica(address)
                replicas[address] = replica
                deployment.replicas.append(replica)
        self._deployments, self._replicas = deployments, replicas

    def _keep(self, endpoints: deploy_service_pb2.EndpointSet) -> None:
        draft = self._memory.with_suffix(".new")
        try:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(endpoints.SerializeToString())
            draft.replace(self._memory)
        except OSError as error:
            _log.warning("the list of endpoints cannot be kept: %s", os.strerror(error.errno or 0))

    async def generate(self, deployment: Deployment, request: bytes, caller: Caller, metadata: Metadata) -> Generation:
        """Starts an answer and waits for its first message.

        Args:
            deployment: who answers.
            request: a serialised GenerateRequest.
            caller: in whose name.
            metadata: request id and trace context.

        Raises:
            ArgosyError: REPLICA_UNAVAILABLE if no replica takes it, else what the replica said.
        """

        async def start(replica: Replica, sent: Metadata) -> Generation:
            return await self._start(replica, request, sent, deployment.endpoint.model_version)

        return await self._ask(deployment, caller, metadata, start)

    async def complete(self, deployment: Deployment, request: bytes, caller: Caller, metadata: Metadata) -> Completion:
        """A whole answer. A replica that goes away while it answers is replaced by another one.

        Args:
            deployment: who answers.
            request: a serialised CompleteRequest.
            caller: in whose name.
            metadata: request id and trace context.

        Raises:
            ArgosyError: REPLICA_UNAVAILABLE if no replica takes it, else what the replica said.
        """

        async def whole(replica: Replica, sent: Metadata) -> Completion:
            return await self._whole(replica, request, sent, deployment.endpoint.model_version)

        return await self._ask(deployment, caller, metadata, whole)

    async def _ask(
        self,
        deployment: Deployment,
        caller: Caller,
        metadata: Metadata,
        ask: Callable[[Replica, Metadata], Awaitable[Answer]],
    ) -> Answer:
        """Asks one replica after the other until one takes it."""
        name = deployment.endpoint.deployment
        sent = (await self._authorization(deployment.endpoint, caller), *metadata)
        tried: set[str] = set()
        failure: ArgosyError | None = None
        for _ in range(_ATTEMPTS):
            replica = self._choose(deployment.replicas, tried)
            if replica is None:
                break
            tried.add(replica.address)
            try:
                return await ask(replica, sent)
            except ArgosyError as error:
                if not error.is_reason("PEER_UNAVAILABLE", "OVERLOADED", "DRAINING", "REPLICA_UNAVAILABLE"):
                    raise
                replica.cool_until = self._clock.monotonic() + _COOL_SECONDS
                failure = error
        if failure is not None and failure.is_reason("OVERLOADED"):
            raise failure
        raise ArgosyError("REPLICA_UNAVAILABLE", "No replica of the deployment answers.", metadata={"deployment": name})

    def _choose(self, replicas: list[Replica], tried: set[str]) -> Replica | None:
        """The least busy replica that was not tried; one that failed lately only when there is no other."""
        now = self._clock.monotonic()
        left = [replica for replica in replicas if replica.address not in tried] if tried else replicas
        if not left:
            return None
        chosen = (
            left[0]
            if len(left) == 1
            else min(left, key=lambda replica: (replica.cool_until > now, replica.outstanding, replica.turn))
        )
        chosen.turn = next(self._turns)
        return chosen

    async def _whole(self, replica: Replica, request: bytes, metadata: Metadata, model_version: str) -> Completion:
        channel = self._connect(replica)
        replica.outstanding += 1
        try:
            answer = await replica.complete(request, timeout=GENERATE_SECONDS, metadata=metadata)
            return Completion(answer.answers, model_version)
        except grpc.RpcError as error:
            raise from_rpc_error(error, "replica") from None
        finally:
            # Referred to until here: a channel that nobody refers to closes itself and its calls.
            del channel
            replica.outstanding -= 1

    async def _start(self, replica: Replica, request: bytes, metadata: Metadata, model_version: str) -> Generation:
        self._connect(replica)
        call = replica.generate(request, timeout=GENERATE_SECONDS, metadata=metadata)
        replica.outstanding += 1
        started = False
        try:
            first = await call.read()
            if first is grpc.aio.EOF:
                if await call.code() is not grpc.StatusCode.OK:
                    raise await _error(call)
                first = None
            started = True
            return Generation(call, first, replica, model_version)
        except grpc.RpcError as error:
            raise from_rpc_error(error, "replica") from None
        finally:
            if not started:
                call.cancel()
                replica.outstanding -= 1

    def _connect(self, replica: Replica) -> grpc.aio.Channel:
        now = self._clock.monotonic()
        if now >= self._next_check:
            self._next_check = now + _ROTATION_SECONDS
            self._pair = self._certificates.current
        if replica.channel is None or replica.pair is not self._pair:
            # The old channel closes itself when its last call has gone.
            replica.pair = self._pair
            credentials = grpc.ssl_channel_credentials(self._pair.authority, self._pair.key, self._pair.certificate)
            options = (*_OPTIONS, ("grpc.ssl_target_name_override", server_name(self._identity)))
            replica.channel = grpc.aio.secure_channel(replica.address, credentials, options)
            replica.generate = replica.channel.unary_stream(_GENERATE, response_deserializer=Response.FromString)
            replica.complete = replica.channel.unary_unary(
                _COMPLETE, response_deserializer=inference_service_pb2.CompleteResponse.FromString
            )
        return replica.channel

    async def _authorization(self, endpoint: deploy_pb2.Endpoint, caller: Caller) -> tuple[str, str]:
        audience = endpoint.audience or endpoint.deployment
        known = caller.audience_tokens.get(audience)
        now = self._clock.monotonic()
        if known is not None and now < known[1]:
            return known[0]
        token = await self._channels.service_token(
            caller.org, subject=caller.subject, role=caller.role, audience=(audience,)
        )
        entry = ("authorization", f"Bearer {token}")
        caller.audience_tokens[audience] = (entry, now + _TOKEN_SECONDS)
        return entry

    async def close(self) -> None:
        """Closes every channel."""
        for replica in self._replicas.values():
            if replica.channel is not None:
                await replica.channel.close()


async def _error(call: Any) -> ArgosyError:
    """The error of a call that ended without a message."""
    error = grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )
    return from_rpc_error(error, "replica")
