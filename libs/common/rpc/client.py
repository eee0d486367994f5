"""Calls to other services: deadline, token, trace, retries within a budget, and errors as they were raised over there.

One small object stands between a generated stub and the gRPC channel. It does what interceptors of grpc.aio would do
without the task that each of those costs, and it can put a new channel under a stub when the certificate has been
rotated.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
from argosy.common.v1 import options_pb2
from argosy.identity.v1 import token_service_pb2, token_service_pb2_grpc
from google.protobuf import descriptor_pool
from google.protobuf.message import Message
from opentelemetry import trace

from libs.common.auth.policy import MethodPolicy, PolicyError, read_policy
from libs.common.clock import SYSTEM_CLOCK, Clock
from libs.common.config import CommonSettings
from libs.common.errors import ArgosyError, from_rpc_error
from libs.common.ids import uuid7
from libs.common.pki import Certificates, KeyPair, server_name
from libs.common.rpc.call import CURRENT
from libs.common.rpc.server import KEEPALIVE_MILLIS, MAX_MESSAGE_BYTES

Metadata = Sequence[tuple[str, str]]
Stub = TypeVar("Stub")
# Gives a token of this service inside an organization, and the UNIX time at which it expires.
TokenSource = Callable[[str, str, int, tuple[str, ...]], Awaitable[tuple[str, float]]]

DEFAULT_TIMEOUT = 10.0
# A peer that restarts is back within this time. Longer than that a caller is told instead of being kept: its deadline
# may be half a minute, and that of a stream an hour.
_READY_SECONDS = 10.0
# What the caller keeps of its own deadline to answer after a peer did not.
_MARGIN = 0.05
# gRFC A6: throttling by a bucket of 10 tokens that a failure empties by one and a success fills by a tenth.
_BUDGET = 10.0
_BUDGET_RATIO = 0.1
_ATTEMPTS = 4
_FIRST_BACKOFF = 0.05
_MAX_BACKOFF = 1.0
# How often the certificate's files are looked at, and how long before its end a token is asked for again.
_ROTATION_CHECK = 1.0
_TOKEN_MARGIN = 60.0

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MILLIS),
    ("grpc.keepalive_permit_without_calls", 1),
    # Retries are ours: they know which calls may be repeated.
    ("grpc.enable_retries", 0),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
)


class RetryBudget:
    """How many retries a target may still get: a target in trouble must not get more calls than one that is well."""

    def __init__(self) -> None:
        self._tokens = _BUDGET

    def succeeded(self) -> None:
        """A call was answered."""
        self._tokens = min(_BUDGET, self._tokens + _BUDGET_RATIO)

    def failed(self) -> bool:
        """A call failed in a way that a retry may cure. Tells whether the budget allows one."""
        self._tokens = max(0.0, self._tokens - 1)
        return self._tokens > _BUDGET / 2


@dataclass(slots=True)
class _Connection:
    """A channel under one certificate, with the calls that still use it."""

    channel: grpc.aio.Channel
    pair: KeyPair
    calls: int = 0
    retired: bool = False
    methods: dict[str, Any] = field(default_factory=dict)


class _Target:
    """One address of one service."""

    def __init__(self, service: str, address: str, certificates: Certificates) -> None:
        self.service = service
        self.budget = RetryBudget()
        self._address = address
        self._certificates = certificates
        self._next_check = 0.0
        self._current: _Connection | None = None

    def acquire(self) -> _Connection:
        """The connection of now, counted as used until `release`."""
        now = time.monotonic()
        if self._current is None or now >= self._next_check:
            self._next_check = now + _ROTATION_CHECK
            pair = self._certificates.current
            if self._current is None or self._current.pair != pair:
                if self._current is not None:
                    self._current.retired = True
                self._current = self._connect(pair)
        self._current.calls += 1
        return self._current

    async def release(self, connection: _Connection) -> None:
        """Ends one use; a connection with an old certificate is closed after its last one."""
        connection.calls -= 1
        if connection.retired and connection.calls == 0:
            await connection.channel.close()

    def _connect(self, pair: KeyPair) -> _Connection:
        credentials = grpc.ssl_channel_credentials(pair.authority, pair.key, pair.certificate)
        options = (*_OPTIONS, ("grpc.ssl_target_name_override", server_name(self.service)))
        return _Connection(grpc.aio.secure_channel(self._address, credentials, options), pair)

    async def close(self) -> None:
        if self._current is not None:
            await self._current.channel.close()
            self._current = None


def _policy(path: str) -> MethodPolicy | None:
    """The policy of a method of ours; None for protos of others, such as health."""
    service, _, method = path.lstrip("/").rpartition("/")
    try:
        found = descriptor_pool.Default().FindServiceByName(service).methods_by_name[method]
        return read_policy(found)
    except (KeyError, PolicyError):
        return None


class _Rpc:
    """One RPC of a stub."""

    def __init__(self, target: _Target, path: str, serialize: Any, parse: Any) -> None:
        self._target = target
        self._path = path
        self._serialize = serialize
        self._parse = parse
        self._policy = policy = _policy(path)
        self._repeatable = policy is not None and (policy.reads or policy.has_request_id)
        self._fills_request_id = policy is not None and policy.has_request_id and not policy.reads

    def _method(self, connection: _Connection, kind: str) -> Any:
        method = connection.methods.get(self._path)
        if method is None:
            make = getattr(connection.channel, kind)
            method = make(self._path, request_serializer=self._serialize, response_deserializer=self._parse)
            connection.methods[self._path] = method
        return method

    def _deadline(self, timeout: float) -> float:
        """Monotonic time at which the call ends: its own timeout, or a little before the call that it serves."""
        now = time.monotonic()
        parent = CURRENT.get()
        if parent is None or not parent.deadline:
            return now + timeout
        remaining = parent.remaining() - _MARGIN
        if remaining <= 0:
            raise ArgosyError("DEADLINE_EXCEEDED", "The deadline passed.")
        return now + min(timeout, remaining)

    def _with_request_id(self, request: Any) -> Any:
        if self._fills_request_id and not request.request_id:
            filled = type(request)()
            filled.CopyFrom(request)
            filled.request_id = uuid7()
            return filled
        return request


def _metadata(given: Metadata | None) -> list[tuple[str, str]]:
    """The caller's metadata with trace context and request id of the running call, where it has none of its own."""
    metadata = list(given or ())
    keys = {key for key, _ in metadata}
    if "traceparent" not in keys:
        identity = trace.get_current_span().get_span_context()
        if identity.is_valid:
            value = f"00-{identity.trace_id:032x}-{identity.span_id:016x}-{identity.trace_flags:02x}"
            metadata.append(("traceparent", value))
    parent = CURRENT.get()
    if parent is not None and parent.request_id and "x-request-id" not in keys:
        metadata.append(("x-request-id", parent.request_id))
    return metadata


class _Unary(_Rpc):
    # `timeout` is gRPC's own word; the stubs that callers know have it.
    async def __call__(
        self,
        request: Message,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        metadata: Metadata | None = None,
    ) -> Message:
        """Calls the peer. Raises the ArgosyError that the peer raised, or PEER_UNAVAILABLE, DEADLINE_EXCEEDED."""
        deadline = self._deadline(DEFAULT_TIMEOUT if timeout is None else timeout)
        request = self._with_request_id(request)
        sent = _metadata(metadata)
        backoff = _FIRST_BACKOFF
        for left in range(_ATTEMPTS - 1, -1, -1):
            try:
                answer = await self._once(request, deadline, sent)
            except ArgosyError as error:
                if not (left and self._repeatable and _passes(error) and self._target.budget.failed()):
                    raise
                # Full jitter, so that callers that failed together do not come back together.
                pause = random.uniform(0, backoff)  # noqa: S311
                if time.monotonic() + pause >= deadline:
                    raise
                await asyncio.sleep(pause)
                backoff = min(backoff * 2, _MAX_BACKOFF)
            else:
                self._target.budget.succeeded()
                return answer
        raise AssertionError("the last attempt returns or raises")

    async def _once(self, request: Message, deadline: float, metadata: Metadata) -> Message:
        target = self._target
        connection = target.acquire()
        try:
            await _reach(connection.channel, target.service, deadline)
            method = self._method(connection, "unary_unary")
            return await method(
                request, timeout=max(0.0, deadline - time.monotonic()), metadata=metadata, wait_for_ready=True
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error, target.service) from None
        finally:
            await target.release(connection)


class _NotReached(ArgosyError):
    """Nobody answers at the peer's address. The time for it to come back has passed already, so no attempt follows."""


async def _reach(channel: grpc.aio.Channel, service: str, deadline: float) -> None:
    """Waits until there is a connection, but not to the deadline. Raises PEER_UNAVAILABLE."""
    if channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
        return
    try:
        async with asyncio.timeout(min(_READY_SECONDS, deadline - time.monotonic())):
            await channel.channel_ready()
    except TimeoutError:
        message = f"{service} does not answer."
        raise _NotReached("PEER_UNAVAILABLE", message, metadata={"service": service}) from None


def _passes(error: ArgosyError) -> bool:
    """Whether the same call may be answered a moment later.

    A peer that could not reach its own peer has retried already.
    """
    if error.code is not grpc.StatusCode.UNAVAILABLE or isinstance(error, _NotReached):
        return False
    return not (error.request_id and error.is_reason("PEER_UNAVAILABLE", "REPLICA_UNAVAILABLE", "COMPUTE_UNAVAILABLE"))


class _Stream(_Rpc):
    # `timeout` is gRPC's own word; the stubs that callers know have it.
    async def __call__(
        self,
        request: Message,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        metadata: Metadata | None = None,
    ) -> AsyncIterator[Message]:
        """Calls the peer and gives its answers. Never repeated here: callers resume where they stopped."""
        longest = self._policy.max_deadline if self._policy is not None else DEFAULT_TIMEOUT
        deadline = self._deadline(longest if timeout is None else timeout)
        target = self._target
        connection = target.acquire()
        call: Any = None
        try:
            await _reach(connection.channel, target.service, deadline)
            call = self._method(connection, "unary_stream")(
                request, timeout=deadline - time.monotonic(), metadata=_metadata(metadata), wait_for_ready=True
            )
            async for answer in call:
                yield answer
        except grpc.RpcError as error:
            raise from_rpc_error(error, target.service) from None
        finally:
            if call is not None:
                call.cancel()
            await target.release(connection)


class _StubChannel:
    """What a generated stub takes for a channel."""

    def __init__(self, target: _Target) -> None:
        self._target = target

    def unary_unary(self, path: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> _Unary:
        return _Unary(self._target, path, request_serializer, response_deserializer)

    def unary_stream(self, path: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> _Stream:
        return _Stream(self._target, path, request_serializer, response_deserializer)


class Channels:
    """The ways from this service to the others.

    Args:
        settings: where the others are, and where the certificates lie.
        service: this service.
        token_source: issues tokens for background work; None asks identity.
        certificates: this service's; None reads them from the settings' folder.
        clock: tells when a token expires.
    """

    def __init__(
        self,
        settings: CommonSettings,
        service: str,
        token_source: TokenSource | None = None,
        *,
        certificates: Certificates | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._clock = clock
        self._peers = dict(settings.peers)
        self._certificates = certificates or Certificates(settings.pki_dir, service)
        self._token_source = token_source or self._issue
        self._targets: dict[tuple[str, str], _Target] = {}
        self._tokens: dict[tuple[str, str, int, tuple[str, ...]], tuple[str, float]] = {}

    def stub(self, stub_class: type[Stub], service: str, *, address: str = "") -> Stub:
        """A stub of a peer.

        Args:
            stub_class: generated, such as `DatasetServiceStub`.
            service: whose certificate the peer must show.
            address: `host:port` of a peer that the settings do not know, such as a replica.

        Its unary methods are coroutines, its streaming ones async iterators; both take `timeout` (seconds) and
        `metadata`.
        """
        where = address or self._peers.get(service, "")
        if not where:
            raise ArgosyError("PEER_UNAVAILABLE", f"{service} has no address.", metadata={"service": service})
        key = (service, where)
        if key not in self._targets:
            self._targets[key] = _Target(service, where, self._certificates)
        return stub_class(_StubChannel(self._targets[key]))  # type: ignore[call-arg]

    async def service_token(
        self, org: str, *, subject: str = "", role: int = options_pb2.ROLE_EDITOR, audience: Sequence[str] = ()
    ) -> str:
        """A token for background work inside an organization, kept until shortly before it expires.

        Args:
            org: organization id.
            subject: `users/...` or `serviceAccounts/...` to act for; empty: this service itself.
            role: value of argosy.common.v1.Role.
            audience: services, or one deployment; empty: every service.
        """
        key = (org, subject, role, tuple(audience))
        token, expires = self._tokens.get(key, ("", 0.0))
        if self._clock.now().timestamp() >= expires - _TOKEN_MARGIN:
            token, expires = await self._token_source(*key)
            self._tokens[key] = (token, expires)
        return token

    async def as_service(
        self, org: str, *, subject: str = "", role: int = options_pb2.ROLE_EDITOR, audience: Sequence[str] = ()
    ) -> tuple[tuple[str, str], ...]:
        """Metadata with a `service_token`, for calls of background work."""
        token = await self.service_token(org, subject=subject, role=role, audience=audience)
        return (("authorization", f"Bearer {token}"),)

    async def _issue(self, org: str, subject: str, role: int, audience: tuple[str, ...]) -> tuple[str, float]:
        stub = self.stub(token_service_pb2_grpc.TokenServiceStub, "identity")
        request = token_service_pb2.IssueTokenRequest(
            org=f"orgs/{org}",
            subject=subject,
            role=role,  # type: ignore[arg-type]
            audience=audience,
        )
        issued = await stub.IssueToken(request)
        return issued.token, issued.expire_time.ToNanoseconds() / 1e9

    async def drop(self, service: str, address: str) -> None:
        """Closes the way to an address that is gone for good, such as a stopped replica."""
        target = self._targets.pop((service, address), None)
        if target is not None:
            await target.close()

    async def close(self) -> None:
        """Closes every connection; calls in flight end."""
        while self._targets:
            await self._targets.popitem()[1].close()
