"""Binds every RPC of a proto service to the function that serves it.

`rpc CreateDataset` is served by `async def create_dataset(request, call)` in one of the handler modules: a unary one
returns the answer, a streaming one is an async generator. A missing policy, a missing handler or a handler that no RPC
uses stops the start.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from libs.common.auth.policy import PolicyError
from libs.common.rpc.call import CURRENT, Call
from libs.common.rpc.interceptors import compile_chain
from libs.common.rpc.method import Exchange, Host, Method, Step
from libs.common.rpc.mutation import serve_once

Handler = Callable[[Any, Any], Any]


class BindingError(Exception):
    """The handlers do not fit the proto. Names every RPC and function at fault; the service must not start."""


def handlers_of(source: object) -> dict[str, Handler]:
    """The public handler functions of a module, or the public handler methods of an object."""
    found: dict[str, Handler] = {}
    for name, member in inspect.getmembers(source):
        if name.startswith("_") or not _is_handler(member):
            continue
        if inspect.ismodule(source) and member.__module__ != source.__name__:
            continue
        found[name] = member
    return found


def _is_handler(member: object) -> bool:
    """A coroutine function or async generator function of (request, call); others in the module are its own affair."""
    if not (inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member)):
        return False
    return list(inspect.signature(member).parameters) == ["request", "call"]


def match(services: Iterable[ServiceDescriptor], sources: Iterable[object]) -> list[tuple[Method, Handler]]:
    """Pairs RPCs with handlers. Raises BindingError naming every fault at once."""
    faults: list[str] = []
    handlers: dict[str, Handler] = {}
    for source in sources:
        for name, handler in handlers_of(source).items():
            if name in handlers:
                faults.append(f"two handlers are called {name}")
            handlers[name] = handler
    pairs: list[tuple[Method, Handler]] = []
    used: set[str] = set()
    for service in services:
        for descriptor in service.methods:
            try:
                method = Method.of(descriptor)
            except PolicyError as fault:
                faults.append(str(fault))
                continue
            handler = handlers.get(method.handler_name)
            if handler is None:
                faults.append(f"{method.policy.path} has no handler {method.handler_name}")
                continue
            if inspect.isasyncgenfunction(handler) != method.policy.streams:
                wanted = "an async generator" if method.policy.streams else "a coroutine"
                faults.append(f"{method.handler_name} must be {wanted}")
            used.add(method.handler_name)
            pairs.append((method, handler))
    faults += [f"handler {name} serves no RPC" for name in sorted(handlers.keys() - used)]
    if faults:
        raise BindingError("; ".join(faults))
    return pairs


def bind(
    services: Sequence[ServiceDescriptor], sources: Sequence[object], host: Host
) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """The gRPC handlers of all RPCs by path, each with the whole chain around it. Raises BindingError."""
    return {method.policy.path: bind_method(method, handler, host) for method, handler in match(services, sources)}


def bind_method(method: Method, handler: Handler, host: Host) -> grpc.RpcMethodHandler[Any, Any]:
    """One RPC with the chain around its handler. Bytes go in and come out: parsing is a stage of the chain."""
    step = compile_chain(method, host, _innermost(method, handler, host))
    path, deps, clock = method.policy.path, host.deps, host.clock

    async def serve(body: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes | None:
        call: Call[Any] = Call(path, deps, clock)
        CURRENT.set(call)
        return await step(Exchange(body, context, call))

    if method.policy.streams:
        return grpc.unary_stream_rpc_method_handler(serve)  # type: ignore[arg-type]
    return grpc.unary_unary_rpc_method_handler(serve)  # type: ignore[arg-type]


def _innermost(method: Method, handler: Handler, host: Host) -> Step:
    if method.policy.streams:
        return _stream(handler, host)
    if not method.policy.reads and host.database is not None:
        return serve_once(method, handler, host.database)
    return _read(handler, host)


def _read(handler: Callable[[Message, Call[Any]], Awaitable[Message]], host: Host) -> Step:
    open_uow = _reader(host)

    async def read(exchange: Exchange) -> bytes:
        call = exchange.call
        assert exchange.request is not None
        call.use_uow(open_uow)
        try:
            return (await handler(exchange.request, call)).SerializeToString()
        finally:
            if call.opened_uow is not None:
                await call.opened_uow.rollback()

    return read


def _stream(handler: Callable[[Message, Call[Any]], AsyncIterator[Message]], host: Host) -> Step:
    open_uow = _reader(host)

    async def stream(exchange: Exchange) -> None:
        call = exchange.call
        assert exchange.request is not None
        call.use_uow(open_uow)
        try:
            # Closing the generator here runs its cleanup at once, not whenever it is collected.
            async with aclosing(handler(exchange.request, call)) as answers:  # type: ignore[type-var]
                async for answer in answers:
                    await exchange.context.write(answer.SerializeToString())
        finally:
            if call.opened_uow is not None:
                await call.opened_uow.rollback()

    return stream


def _reader(host: Host) -> Callable[[Call[Any]], Any] | None:
    database = host.database
    if database is None:
        return None

    def open_uow(call: Call[Any]) -> Any:
        return database.unit_of_work(call.org, call.principal.subject, call.traceparent, call.deadline, read_only=True)

    return open_uow
