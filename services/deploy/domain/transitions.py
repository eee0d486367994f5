"""State machines whose every step is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from libs.common.domain import DomainError, Resource


@dataclass(frozen=True, kw_only=True)
class Transition:
    """One step of a resource from a state to another.

    Attributes:
        resource: name.
        from_state: empty for the first.
        actor: who caused it.
        model_version, work_order: what it was about.
        reason: for people.
    """

    resource: str
    from_state: str
    to_state: str
    actor: str
    time: datetime
    model_version: str = ""
    work_order: str = ""
    reason: str = ""


@dataclass(kw_only=True)
class Stateful(Resource):
    """A resource with a state machine. `pending` are transitions that the repository has not stored yet."""

    # State to the states that may follow it.
    allowed: ClassVar[Mapping[str, frozenset[str]]] = {}

    pending: list[Transition] = field(default_factory=list[Transition], repr=False, compare=False)

    def _move(
        self,
        to_state: str,
        *,
        actor: str,
        now: datetime,
        reason: str = "",
        model_version: str = "",
        work_order: str = "",
    ) -> None:
        """Changes the state and remembers the step. Raises STATE_CONFLICT for a step that the machine does not have."""
        if to_state not in self.allowed.get(self.state, frozenset()):
            message = f"{self.name} is {self.state or 'new'}; it cannot become {to_state}."
            raise DomainError("STATE_CONFLICT", message, name=self.name, state=self.state, wanted=to_state)
        self.pending.append(
            Transition(
                resource=self.name,
                from_state=self.state,
                to_state=to_state,
                actor=actor,
                time=now,
                model_version=model_version,
                work_order=work_order,
                reason=reason,
            )
        )
        self.state = to_state
        self.update_time = now
