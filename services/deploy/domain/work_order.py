"""Work orders: a deployment that is asked for, decided by a second person, and rolled out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from libs.common.domain import DomainError
from services.deploy.domain.spec import Spec
from services.deploy.domain.transitions import Stateful

PENDING = "PENDING"
REJECTED = "REJECTED"
APPROVED = "APPROVED"
ROLLING_OUT = "ROLLING_OUT"
SUCCEEDED = "SUCCEEDED"
FAILED = "FAILED"
CANCELLED = "CANCELLED"

# Kind of the task that carries a roll-out.
ROLLOUT_TASK = "deploy.rollout"

ENDED = frozenset({REJECTED, SUCCEEDED, FAILED, CANCELLED})


@dataclass(kw_only=True)
class WorkOrder(Stateful):
    """One execution of a deployment.

    Attributes:
        deployment_config: it came from; empty: the spec was given directly.
        spec: as it was when the order was written.
        model_version, model_digest: what is to be served.
        deployment_id: deployment to create or change.
        evidence_evaluation, evidence_rule, evidence_figures: the gate that let it through.
        decider, decide_time, decide_reason: set by the decision.
        task, task_uid: carries the roll-out.
        deployment: name, once approved.
        failure: why it failed.
        justification: why the change is asked for.
    """

    allowed: ClassVar[Mapping[str, frozenset[str]]] = {
        "": frozenset({PENDING}),
        PENDING: frozenset({APPROVED, REJECTED}),
        APPROVED: frozenset({ROLLING_OUT, FAILED, CANCELLED}),
        ROLLING_OUT: frozenset({SUCCEEDED, FAILED, CANCELLED}),
        # Its task may be retried.
        FAILED: frozenset({ROLLING_OUT}),
        CANCELLED: frozenset({ROLLING_OUT}),
    }

    deployment_config: str = ""
    spec: Spec = field(default_factory=Spec)
    model_version: str = ""
    model_digest: str = ""
    deployment_id: str = ""
    evidence_evaluation: str = ""
    evidence_rule: str = ""
    evidence_figures: dict[str, float] = field(default_factory=dict[str, float])
    decider: str = ""
    decide_time: datetime | None = None
    decide_reason: str = ""
    task: str = ""
    task_uid: str = ""
    deployment: str = ""
    failure: str = ""
    justification: str = ""

    @property
    def ended(self) -> bool:
        """Whether it is over, unless its task is retried."""
        return self.state in ENDED

    def submit(self, now: datetime) -> None:
        """The first step: it waits for a decision."""
        self._step(PENDING, self.creator, now, self.justification)

    def approve(self, decider: str, reason: str, now: datetime) -> None:
        """A second person lets it through.

        Raises:
            DomainError: SELF_APPROVAL when the decider wrote it; STATE_CONFLICT when it is decided.
        """
        if decider == self.creator:
            raise DomainError("SELF_APPROVAL", f"{self.name} needs the decision of a second person.", name=self.name)
        self._decide(APPROVED, decider, reason, now)
        self.deployment = f"orgs/{self.org}/deployments/{self.deployment_id}"

    def reject(self, decider: str, reason: str, now: datetime) -> None:
        """Somebody says no; whoever wrote it may, too. Raises STATE_CONFLICT when it is decided."""
        self._decide(REJECTED, decider, reason, now)

    def start(self, actor: str, now: datetime) -> None:
        """The roll-out begins, or begins again. Raises STATE_CONFLICT unless it is approved, failed or cancelled."""
        self.failure = ""
        self._step(ROLLING_OUT, actor, now)

    def succeed(self, actor: str, now: datetime) -> None:
        """The deployment is live with it."""
        self._step(SUCCEEDED, actor, now)

    def fail(self, actor: str, reason: str, now: datetime) -> None:
        """It could not be rolled out; what was live before stays live."""
        self.failure = reason
        self._step(FAILED, actor, now, reason)

    def cancel(self, actor: str, reason: str, now: datetime) -> None:
        """Somebody stopped the roll-out."""
        self._step(CANCELLED, actor, now, reason)

    def _decide(self, state: str, decider: str, reason: str, now: datetime) -> None:
        self._step(state, decider, now, reason)
        self.decider, self.decide_reason, self.decide_time = decider, reason, now

    def _step(self, state: str, actor: str, now: datetime, reason: str = "") -> None:
        self._move(state, actor=actor, now=now, reason=reason, model_version=self.model_version, work_order=self.name)
