"""A server with two real proto services and handlers that do what a test tells them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from argosy.common.v1 import task_pb2, task_service_pb2
from argosy.identity.v1 import token_service_pb2

from libs.common.auth.tokens import JwksCache, TokenVerifier
from libs.common.rpc import bind
from libs.common.rpc.call import Call
from libs.common.rpc.interceptors import CHAIN, compile_chain
from libs.common.rpc.method import Host, Load, Wrap
from libs.common.rpc.server import Server
from libs.common.testing.mesh import Mesh

TASK = "orgs/acme/dataset/tasks/t1"
TASKS = task_service_pb2.DESCRIPTOR.services_by_name["TaskService"]
TOKENS = token_service_pb2.DESCRIPTOR.services_by_name["TokenService"]


class Handlers:
    """TaskService. `GetTask` raises `failure`, waits for `gate`, or answers with what it saw of the call."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self.gate: asyncio.Event | None = None
        self.entered = asyncio.Event()
        self.calls: list[Call[Any]] = []
        self.cancelled = 0

    async def get_task(self, request: task_service_pb2.GetTaskRequest, call: Call[Any]) -> task_pb2.Task:
        self.calls.append(call)
        self.entered.set()
        if self.failure is not None:
            raise self.failure
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return task_pb2.Task(name=request.name, creator=call.principal.name)

    async def list_tasks(self, request: Any, call: Call[Any]) -> task_service_pb2.ListTasksResponse:
        return task_service_pb2.ListTasksResponse()

    async def watch_task(
        self, request: task_service_pb2.WatchTaskRequest, call: Call[Any]
    ) -> AsyncIterator[task_pb2.TaskEvent]:
        self.calls.append(call)
        for sequence in range(1, 4):
            yield task_pb2.TaskEvent(sequence=sequence)
        self.entered.set()
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise

    async def list_task_logs(self, request: Any, call: Call[Any]) -> task_service_pb2.ListTaskLogsResponse:
        return task_service_pb2.ListTaskLogsResponse()

    async def list_task_metrics(self, request: Any, call: Call[Any]) -> task_service_pb2.ListTaskMetricsResponse:
        return task_service_pb2.ListTaskMetricsResponse()

    async def cancel_task(self, request: task_service_pb2.CancelTaskRequest, call: Call[Any]) -> task_pb2.Task:
        self.calls.append(call)
        if self.failure is not None:
            raise self.failure
        return task_pb2.Task(name=request.name, message=request.request_id)

    async def retry_task(self, request: task_service_pb2.RetryTaskRequest, call: Call[Any]) -> task_pb2.Task:
        return task_pb2.Task(name=request.name)


class TokenHandlers:
    """TokenService, as far as access is concerned."""

    async def bootstrap(self, request: Any, call: Call[Any]) -> token_service_pb2.BootstrapResponse:
        return token_service_pb2.BootstrapResponse()

    async def exchange_key(self, request: Any, call: Call[Any]) -> token_service_pb2.Token:
        return token_service_pb2.Token()

    async def issue_token(
        self, request: token_service_pb2.IssueTokenRequest, call: Call[Any]
    ) -> token_service_pb2.Token:
        return token_service_pb2.Token(org=call.org, subject=call.principal.subject)

    async def get_jwks(self, request: Any, call: Call[Any]) -> token_service_pb2.GetJwksResponse:
        return token_service_pb2.GetJwksResponse()

    async def watch_revocations(self, request: Any, call: Call[Any]) -> AsyncIterator[token_service_pb2.Revocation]:
        yield token_service_pb2.Revocation()


class Rig:
    """What a test holds in its hands."""

    def __init__(self, mesh: Mesh, handlers: Handlers, host: Host, server: Server) -> None:
        self.mesh = mesh
        self.handlers = handlers
        self.host = host
        self.server = server

    async def call(
        self,
        path: str,
        body: bytes,
        *,
        identity: str | None = "gateway",
        metadata: Sequence[tuple[str, str]] | None = None,
        timeout: float | None = 5,
    ) -> bytes:
        """One unary call of bytes. Without `metadata`, with a good token."""
        async with self.mesh.channel("dataset", identity) as channel:
            sent = self.mesh.metadata() if metadata is None else metadata
            return await channel.unary_unary(path)(body, timeout=timeout, metadata=tuple(sent))


@asynccontextmanager
async def rig(
    *, chain: Sequence[tuple[str, Wrap]] = CHAIN, max_calls: int = 16, max_long: int = 16
) -> AsyncGenerator[Rig]:
    """A listening server called `dataset`, with any part of the chain."""
    with tempfile.TemporaryDirectory() as folder:
        mesh = Mesh(Path(folder))
        verifier = TokenVerifier(JwksCache(None, mesh.jwks), "dataset", now=lambda: mesh.clock.now().timestamp())
        host = Host("dataset", None, mesh.clock, verifier, None, Load(max_calls, max_long))
        server = Server(host, mesh.certificates("dataset"), "127.0.0.1:0")
        handlers = Handlers()

        original = bind.compile_chain
        bind.compile_chain = partial(compile_chain, chain=chain)
        try:
            server.mount([TASKS], [handlers])
            server.mount([TOKENS], [TokenHandlers()])
        finally:
            bind.compile_chain = original
        await server.start()
        await server.set_ready(True)
        mesh.peers["dataset"] = f"127.0.0.1:{server.port}"
        try:
            yield Rig(mesh, handlers, host, server)
        finally:
            await server.raw.stop(0)


def status_of(error: grpc.aio.AioRpcError) -> Any:
    """The ArgosyError behind a failed call."""
    from libs.common.errors import from_rpc_error

    return from_rpc_error(error)
