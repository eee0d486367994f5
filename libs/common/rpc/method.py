"""One RPC as the server knows it, and what its stages share."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from libs.common import pki
from libs.common.auth.policy import MethodPolicy, read_policy
from libs.common.auth.tokens import TokenVerifier
from libs.common.clock import Clock
from libs.common.rpc.call import Call

if TYPE_CHECKING:
    from libs.common.db.uow import Database

# Reads the names of resources that a request speaks about, in the order: its own fields, then those of the resource
# inside it.
NameReader = Callable[[Message], list[tuple[str, str]]]

_NAME_FIELDS = ("name", "parent", "org")


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC.

    Attributes:
        policy: what its options say.
        service: full name of the proto service.
        rpc: name of the RPC, `GetDataset`.
        request: message class.
        names: the (field, resource name) pairs of a request, those that are set.
    """

    policy: MethodPolicy
    service: str
    rpc: str
    request: type[Message]
    names: NameReader

    @classmethod
    def of(cls, descriptor: MethodDescriptor) -> Method:
        """Reads the descriptor. Raises PolicyError when the method declares no usable policy."""
        return cls(
            policy=read_policy(descriptor),
            service=descriptor.containing_service.full_name,
            rpc=descriptor.name,
            request=GetMessageClass(descriptor.input_type),
            names=_name_reader(descriptor),
        )

    @property
    def handler_name(self) -> str:
        """`GetDataset` is served by `get_dataset`."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", self.rpc).lower()


def _name_reader(descriptor: MethodDescriptor) -> NameReader:
    """Compiles which fields hold names. In a Create the name inside the resource is output only, so it is not read."""
    fields = [f.name for f in descriptor.input_type.fields if f.name in _NAME_FIELDS and _is_text(f)]
    inner = [
        f.name
        for f in descriptor.input_type.fields
        if f.message_type is not None
        and not f.is_repeated
        and descriptor.name.startswith("Update")
        and "name" in f.message_type.fields_by_name
    ]

    def read(request: Message) -> list[tuple[str, str]]:
        found = [(name, value) for name in fields if (value := getattr(request, name))]
        found += [(f"{name}.name", value) for name in inner if (value := getattr(request, name).name)]
        return found

    return read


def _is_text(f: FieldDescriptor) -> bool:
    return f.type == FieldDescriptor.TYPE_STRING and not f.is_repeated


@dataclass(slots=True)
class Load:
    """How much a server carries at the moment, and how much it takes.

    Attributes:
        max_calls: short calls at a time.
        max_long: streams and other long calls (`MethodPolicy.long`) at a time.
        calls: short calls in flight.
        long: the tasks of long calls in flight, so that a drain can end them.
        draining: set by SIGTERM.
    """

    max_calls: int
    max_long: int
    calls: int = 0
    long: set[asyncio.Task[Any]] = field(default_factory=set)
    draining: bool = False


@dataclass(slots=True)
class Host:
    """What the stages of all methods of one server share."""

    service: str
    deps: Any
    clock: Clock
    verifier: TokenVerifier | None
    database: Database | None
    load: Load


class Exchange:
    """One call on its way through the chain."""

    __slots__ = ("_peer", "body", "call", "context", "metadata", "request")

    def __init__(self, body: bytes, context: grpc.aio.ServicerContext[bytes, bytes], call: Call[Any]) -> None:
        self.body = body
        self.context = context
        self.call = call
        self.metadata: dict[str, str | bytes] = dict(context.invocation_metadata() or ())
        self._peer: str | None = None
        self.request: Message | None = None

    @property
    def peer(self) -> str:
        """The calling service by its certificate, or `operator`; empty without a certificate of the mesh."""
        if self._peer is None:
            self._peer = pki.peer_name(self.context.auth_context())
        return self._peer

    def text(self, key: str) -> str:
        """A metadata value as text; empty when there is none or it is binary."""
        value = self.metadata.get(key, "")
        return value if isinstance(value, str) else ""


# A unary step returns the serialised answer; a streaming one writes its answers itself and returns None.
Step = Callable[[Exchange], Awaitable[bytes | None]]
# A stage of the chain: wraps the steps after it for one method.
Wrap = Callable[[Method, Host, Step], Step]
