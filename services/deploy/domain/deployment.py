"""Deployments: a name under which a model version is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, ClassVar

from services.deploy.domain.spec import Spec
from services.deploy.domain.transitions import Stateful
from services.deploy.domain.work_order import WorkOrder

STARTING = "STARTING"
LIVE = "LIVE"
DEGRADED = "DEGRADED"
STOPPED = "STOPPED"
FAILED = "FAILED"

SERVING = frozenset({LIVE, DEGRADED})
ENDED = frozenset({STOPPED, FAILED})


@dataclass(frozen=True, kw_only=True)
class Revision:
    """What a deployment serves, or is about to serve, by which work order."""

    work_order: str
    model_version: str
    model_digest: str
    spec: Spec
    traceparent: str = ""

    @classmethod
    def of(cls, order: WorkOrder, traceparent: str) -> Revision:
        """What a work order asks for, in the trace that carries its roll-out."""
        return cls(
            work_order=order.name,
            model_version=order.model_version,
            model_digest=order.model_digest,
            spec=order.spec,
            traceparent=traceparent,
        )

    def to_row(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Revision:
        """From JSON."""
        fields: dict[str, Any] = {**row, "spec": Spec.from_row(row["spec"])}
        return cls(**fields)


@dataclass(kw_only=True)
class Deployment(Stateful):
    """A model version being served under a name.

    Attributes:
        current: what is served; None before the first roll-out has ended.
        target: what is being rolled out beside it; None when nothing is.
        ready_replicas: of the current revision.
        live_time: since when the current revision is served.
    """

    allowed: ClassVar[Mapping[str, frozenset[str]]] = {
        "": frozenset({STARTING}),
        STARTING: frozenset({LIVE, FAILED, STOPPED}),
        LIVE: frozenset({LIVE, DEGRADED, STOPPED}),
        DEGRADED: frozenset({LIVE, DEGRADED, STOPPED}),
        STOPPED: frozenset({STARTING}),
        FAILED: frozenset({STARTING, STOPPED}),
    }

    current: Revision | None = None
    target: Revision | None = None
    ready_replicas: int = 0
    live_time: datetime | None = None

    @property
    def serving(self) -> bool:
        """Whether calls are routed to it."""
        return self.state in SERVING

    @property
    def shown(self) -> Revision | None:
        """The revision that people see: what is served, else what is coming."""
        return self.current or self.target

    def roll_out(self, revision: Revision, actor: str, now: datetime) -> None:
        """Begins to bring up a revision. A roll-out under way gives way to it; what is live stays so until the new
        one is ready."""
        self.target = revision
        self.update_time = now
        if self.state in ("", *ENDED):
            self.current, self.live_time, self.ready_replicas = None, None, 0
            self._step(STARTING, revision, actor, now)

    def switch(self, ready: int, actor: str, now: datetime) -> None:
        """The target is ready: it is served from now on."""
        assert self.target is not None
        self.current, self.target = self.target, None
        self.live_time, self.ready_replicas = now, ready
        self._step(LIVE, self.current, actor, now)

    def abandon(self, reason: str, actor: str, now: datetime) -> None:
        """The target cannot be brought up. What was live stays; without anything live the deployment has failed."""
        dropped, self.target = self.target, None
        self.update_time = now
        if self.state == STARTING and dropped is not None:
            self._step(FAILED, dropped, actor, now, reason)

    def observe(self, ready: int, actor: str, now: datetime) -> bool:
        """Takes note of how many replicas of the current revision are ready. Tells whether anything changed."""
        if not self.serving or self.current is None or ready == self.ready_replicas:
            return False
        self.ready_replicas = ready
        self.update_time = now
        state = LIVE if ready >= self.current.spec.replicas else DEGRADED
        if state != self.state:
            self._step(state, self.current, actor, now, f"{ready} of {self.current.spec.replicas} replicas are ready")
        return True

    def stop(self, reason: str, actor: str, now: datetime) -> bool:
        """Nothing is served any more. Tells whether it was not stopped before."""
        if self.state == STOPPED:
            return False
        shown = self.shown
        self.target, self.ready_replicas = None, 0
        self._step(STOPPED, shown, actor, now, reason)
        return True

    def _step(self, state: str, revision: Revision | None, actor: str, now: datetime, reason: str = "") -> None:
        self._move(
            state,
            actor=actor,
            now=now,
            reason=reason,
            model_version=revision.model_version if revision else "",
            work_order=revision.work_order if revision else "",
        )
