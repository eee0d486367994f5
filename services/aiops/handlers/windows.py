"""What all questions have in common: whose telemetry, from when to when, which page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from argosy.common.v1.options_pb2 import ROLE_SYSTEM
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from libs.common.domain import DomainError
from libs.common.ids import org_of
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import PageToken
from services.aiops.domain.telemetry import Window

if TYPE_CHECKING:
    from services.aiops.app import App


SYSTEM_ORG = "system"
_HOUR = 3600 * 10**9


class Windowed(Protocol):
    """A request with a window."""

    @property
    def start_time(self) -> Timestamp: ...

    @property
    def end_time(self) -> Timestamp: ...

    def HasField(self, field_name: str) -> bool: ...  # noqa: N802 (protobuf's name)


def scope(name: str, call: Call[App]) -> str | None:
    """The organization whose telemetry may be seen; None: every one, for system administrators who ask in `system`."""
    org = org_of(name)
    return None if org == SYSTEM_ORG and call.principal.role == ROLE_SYSTEM else org


def window(request: Windowed, call: Call[App]) -> Window:
    """From start to end; unset: the last hour. Raises INVALID_FIELD when it runs backwards."""
    end = request.end_time.ToNanoseconds() if request.HasField("end_time") else int(call.clock.now().timestamp() * 1e9)
    start = request.start_time.ToNanoseconds() if request.HasField("start_time") else end - _HOUR
    if start > end:
        raise DomainError("INVALID_FIELD", "start_time: lies after end_time", field="start_time")
    return Window(start, end)


def position(request: Message) -> int:
    """How many items the pages before this one had."""
    return int(PageToken.decode(request) or 0)


def next_token(request: Message, start: int, size: int, found: int) -> str:
    """The token of the next page; empty unless one more than `size` was found."""
    return PageToken.encode(request, str(start + size) if found > size else "")


def timestamp(nanoseconds: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(nanoseconds)
    return stamp
