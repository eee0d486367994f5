"""The span of a served call, without what the SDK's own costs.

The SDK's span copies and checks every attribute under a lock, asks a sampler, and builds a copy of itself at its end.
Here the caller has sampled already, the attributes are ours, and one task writes them, so none of that is needed. For
everybody else it is an ordinary span: handlers add attributes, children hang below it, the span processors get it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry import trace as api
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode
from opentelemetry.util import types

_SCOPE = InstrumentationScope("argosy")
_UNSET = Status(StatusCode.UNSET)
_SAMPLED = api.TraceFlags(api.TraceFlags.SAMPLED)
# What a handler may add to one span, as in the SDK's own limits.
_MAX_ATTRIBUTES = 128
_MAX_EVENTS = 128


class CallSpan(ReadableSpan, api.Span):
    """A recording span below a sampled remote parent."""

    def __init__(
        self,
        name: str,
        parent: SpanContext,
        attributes: Mapping[str, Any],
        processor: SpanProcessor,
        resource: Resource,
    ) -> None:
        # Not super().__init__(): it would fill the same fields from defaults first.
        self._name = name
        self._own = SpanContext(parent.trace_id, random.getrandbits(64) or 1, False, _SAMPLED, parent.trace_state)
        self._context: SpanContext | None = self._own
        self._kind = SpanKind.SERVER
        self._instrumentation_info = None
        self._instrumentation_scope = _SCOPE
        self._parent = parent
        self._start_time = time.time_ns()
        self._end_time = None
        self._known = dict(attributes)
        self._attributes: types.Attributes = self._known
        self._happened = list[Event]()
        self._events: Sequence[Event] = self._happened
        self._links = ()
        self._resource = resource
        self._status = _UNSET
        self._processor = processor

    def get_span_context(self) -> SpanContext:
        return self._own

    def is_recording(self) -> bool:
        return self._end_time is None

    def set_attribute(self, key: str, value: Any) -> None:
        if self._end_time is None and (key in self._known or len(self._known) < _MAX_ATTRIBUTES):
            self._known[key] = value

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        if self._end_time is None and len(self._happened) < _MAX_EVENTS:
            self._happened.append(Event(name, attributes, timestamp))

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        if self._end_time is None and len(self._links) < _MAX_EVENTS:
            self._links = (*self._links, api.Link(context, attributes))

    def update_name(self, name: str) -> None:
        self._name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        self._status = status if isinstance(status, Status) else Status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Any = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Records which exception it was; its text may hold what belongs into no trace."""
        self.add_event("exception", {"exception.type": type(exception).__qualname__, **(attributes or {})}, timestamp)

    def end(self, end_time: int | None = None) -> None:
        if self._end_time is None:
            self._end_time = time.time_ns() if end_time is None else end_time
            self._processor.on_end(self)


class SpanSource:
    """Starts `CallSpan`s where the process has the SDK's provider.

    Args:
        provider: of the process.
    """

    def __init__(self, provider: api.TracerProvider) -> None:
        # The SDK offers no public way to its processors; the version is pinned, and a test sees the spans arrive.
        self._processor: SpanProcessor | None = getattr(provider, "_active_span_processor", None)
        self._resource = provider.resource if isinstance(provider, TracerProvider) else Resource({})

    def start(self, name: str, parent: SpanContext | None, attributes: Mapping[str, Any]) -> CallSpan | None:
        """A span below a sampled parent; None where the SDK has to decide whether there is one."""
        if parent is None or self._processor is None:
            return None
        span = CallSpan(name, parent, attributes, self._processor, self._resource)
        self._processor.on_start(span)  # type: ignore[arg-type]
        return span
