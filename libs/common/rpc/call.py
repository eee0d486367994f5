"""What a handler knows about the call that it serves."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Generic, TypeVar

from libs.common.auth.principal import Principal

if TYPE_CHECKING:
    from libs.common.clock import Clock
    from libs.common.db.uow import UnitOfWork

Deps = TypeVar("Deps")

ANY_ORG = "*"
_NOBODY = Principal()


class Call(Generic[Deps]):
    """One call in flight.

    Attributes:
        method: full path, `/argosy.dataset.v1.DatasetService/GetDataset`.
        principal: who calls. Its `org` is the organization of the call.
        org: organization whose rows the call works on: that of the principal, or, for system administrators and
            services
            without a token, the one that the request names; `*` when it names none.
        request_id: finds the call in logs and traces.
        deadline: in seconds of time.monotonic().
        traceparent: W3C trace context, for rows and events.
        deps: the service's composition root.
        clock: the injected clock.
    """

    __slots__ = (
        "_open_uow",
        "_uow",
        "clock",
        "deadline",
        "deps",
        "method",
        "org",
        "principal",
        "request_id",
        "traceparent",
    )

    def __init__(self, method: str, deps: Deps, clock: Clock) -> None:
        self.method = method
        self.deps = deps
        self.clock = clock
        self.principal = _NOBODY
        self.org = ANY_ORG
        self.request_id = ""
        self.deadline = 0.0
        self.traceparent = ""
        self._uow: UnitOfWork | None = None
        self._open_uow: Callable[[Call[Deps]], UnitOfWork] | None = None

    def remaining(self) -> float:
        """Seconds until the deadline, never negative."""
        return max(0.0, self.deadline - time.monotonic())

    @property
    def uow(self) -> UnitOfWork:
        """The unit of work of this call.

        It takes a connection at its first use and is committed by the binder, never by a handler.
        """
        if self._uow is None:
            if self._open_uow is None:
                raise RuntimeError("this service has no database")
            self._uow = self._open_uow(self)
        return self._uow

    @property
    def opened_uow(self) -> UnitOfWork | None:
        """The unit of work if the handler asked for one."""
        return self._uow

    def use_uow(self, open_uow: Callable[[Call[Deps]], UnitOfWork] | None) -> None:
        """Gives the call a fresh unit of work, made when it is first asked for. For the binder, at each attempt."""
        self._open_uow = open_uow
        self._uow = None

    def forward(self) -> tuple[tuple[str, str], ...]:
        """Metadata for a peer to act for the same principal: `stub.GetDataset(request, metadata=call.forward())`."""
        return (("authorization", f"Bearer {self.principal.token}"),) if self.principal.token else ()


# The call that the running task serves; clients take their deadline and request id from it.
CURRENT: ContextVar[Call[object] | None] = ContextVar("argosy_call", default=None)
