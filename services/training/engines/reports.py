"""What a worker tells the task that it works for."""

from __future__ import annotations

from typing import Any, Protocol

from libs.compute.context import EngineContext

Json = dict[str, Any]


class Reports(Protocol):
    """The task as a worker sees it, near (`TaskReports`) or through Ray (`relay.RelayReports`)."""

    def progress(self, fraction: float, message: str, cost: dict[str, float]) -> None: ...

    def metrics(self, phase: str, step: int, values: dict[str, float]) -> None: ...

    def log(self, body: str, severity: str = "INFO") -> None: ...

    def checkpoint(self, data: Json) -> None: ...

    def cancelled(self) -> bool: ...

    def pausing(self) -> bool: ...


class TaskReports:
    """Hands reports straight to the engine's context.

    Args:
        plan: goes into every checkpoint, so that whoever resumes has the prepared data too.
    """

    def __init__(self, ctx: EngineContext, plan: Json) -> None:
        self._ctx = ctx
        self._plan = plan

    def progress(self, fraction: float, message: str, cost: dict[str, float]) -> None:
        self._ctx.progress(fraction, message, **cost)

    def metrics(self, phase: str, step: int, values: dict[str, float]) -> None:
        self._ctx.metrics(phase, step, **values)

    def log(self, body: str, severity: str = "INFO") -> None:
        self._ctx.log(body, severity)

    def checkpoint(self, data: Json) -> None:
        self._ctx.checkpoint({**data, "plan": self._plan})

    def cancelled(self) -> bool:
        return self._ctx.cancelled()

    def pausing(self) -> bool:
        return self._ctx.pausing()
