"""Model projects, model versions, their states and their gates."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from libs.common.domain import DomainError, Resource
from services.training.domain.bases import ADAPTER_CONFIG
from services.training.domain.spec import invalid


class State(StrEnum):
    """States of a model version; names as in training.proto."""

    REGISTERED = "REGISTERED"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    ARCHIVED = "ARCHIVED"


_ALLOWED: dict[State, frozenset[State]] = {
    State.REGISTERED: frozenset({State.APPROVED, State.REJECTED, State.ARCHIVED}),
    State.APPROVED: frozenset({State.REJECTED, State.ARCHIVED}),
    State.REJECTED: frozenset({State.APPROVED, State.ARCHIVED}),
    # Back to what it was; see `ModelVersion.restore`.
    State.ARCHIVED: frozenset({State.REGISTERED, State.APPROVED, State.REJECTED}),
}


@dataclass(kw_only=True)
class ModelProject(Resource):
    """The line of versions of one model.

    Attributes:
        live_version: version that is live now; empty: none. Follows the events of deploy.
        version_count: versions so far; they are numbered from 1.
    """

    display_name: str = ""
    description: str = ""
    train_framework: str = ""
    inference_framework: str = ""
    live_version: str = ""
    code_repo_url: str = ""
    version_count: int = 0

    def next_version(self) -> str:
        """The name of the version that comes now."""
        self.version_count += 1
        return f"{self.name}/versions/{self.version_count}"


@dataclass(frozen=True)
class ModelFile:
    """A file of a model version: relative path, SHA-256 in hexadecimal, bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Gate:
    """The verdict of an evaluation about a model version.

    Attributes:
        gate: name, such as `release`.
        evaluation: that decided.
        rule: in words, with its margin.
        figures: `score`, `lower`, `upper`, `baseline`, `margin`, ...
        model_digest: manifest that was evaluated.
        reason: why, for people.
    """

    gate: str
    open: bool
    evaluation: str
    rule: str
    figures: dict[str, float]
    model_digest: str
    decide_time: datetime
    reason: str = ""


@dataclass(frozen=True)
class Transition:
    """A state that a model version got: from which, by whom, when and why."""

    from_state: str
    to_state: str
    actor: str
    time: datetime
    reason: str


@dataclass(kw_only=True)
class ModelVersion(Resource):
    """An immutable set of model files, and what is decided about it.

    Attributes:
        manifest_digest: SHA-256 of the manifest of its files.
        training_run: that made it; empty: imported.
        base_model_version: it was made from; of an adapter: the complete one that it belongs on.
        context_length: tokens.
        model_card: Markdown.
        gates: newest decision of each gate, by name.
        new_transitions: made since it was read, for the repository to store.
    """

    manifest_digest: str = ""
    files: list[ModelFile] = field(default_factory=list[ModelFile])
    training_run: str = ""
    base_model_version: str = ""
    parameter_count: int = 0
    architecture: str = ""
    context_length: int = 0
    model_card: str = ""
    gates: list[Gate] = field(default_factory=list[Gate])
    new_transitions: list[Transition] = field(default_factory=list[Transition])

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter, which belongs on `base_model_version`, instead of a complete model."""
        return any(file.path == ADAPTER_CONFIG for file in self.files)

    def register(self, actor: str, now: datetime, reason: str) -> None:
        """Its first state."""
        self.state = State.REGISTERED
        self.new_transitions.append(Transition("", State.REGISTERED, actor, now, reason))

    def require_matching(self, gate: Gate) -> None:
        """Refuses a verdict about other content.

        Raises:
            DomainError: INVALID_FIELD without evaluation or digest; STATE_CONFLICT for another digest.
        """
        if not gate.evaluation:
            raise invalid("gate.evaluation", "must be set")
        if not gate.model_digest:
            raise invalid("gate.model_digest", "must be set")
        if gate.model_digest != self.manifest_digest:
            raise DomainError(
                "STATE_CONFLICT",
                f"The evaluation saw {gate.model_digest[:12]}, {self.name} is {self.manifest_digest[:12]}.",
                name=self.name,
                state=self.manifest_digest,
                wanted=gate.model_digest,
            )

    def decide(self, gate: Gate, actor: str, now: datetime) -> None:
        """Keeps the verdict of an evaluation; the newest decision of all gates gives the state."""
        known = {other.gate: other for other in self.gates}
        earlier = known.get(gate.gate)
        if earlier is None or earlier.decide_time <= gate.decide_time:
            known[gate.gate] = gate
        self.gates = [known[name] for name in sorted(known)]
        newest = max(self.gates, key=lambda each: each.decide_time)
        target = State.APPROVED if newest.open else State.REJECTED
        if target != self.state:
            self._move(target, actor, now, f"gate {newest.gate}: {newest.reason or newest.rule}"[:1000])
        self.update_time = now

    def archive(self, actor: str, now: datetime) -> None:
        """When it is deleted."""
        self._move(State.ARCHIVED, actor, now, "deleted")

    def restore(self, actor: str, now: datetime) -> None:
        """When it is undeleted: the state that its gates give it."""
        newest = max(self.gates, key=lambda each: each.decide_time, default=None)
        target = State.REGISTERED if newest is None else State.APPROVED if newest.open else State.REJECTED
        self._move(target, actor, now, "undeleted")

    def _move(self, target: State, actor: str, now: datetime, reason: str) -> None:
        if target not in _ALLOWED[State(self.state)]:
            raise self._conflict(target)
        self.new_transitions.append(Transition(self.state, target, actor, now, reason))
        self.state = target
        self.update_time = now

    def _conflict(self, target: State) -> DomainError:
        message = f"{self.name} is {self.state}; it cannot become {target}."
        return DomainError("STATE_CONFLICT", message, name=self.name, state=self.state, wanted=str(target))


def decided(gate: Gate, now: datetime) -> Gate:
    """The gate with a time not in the future, so that a caller's clock cannot make a decision outlive later ones."""
    return replace(gate, decide_time=min(gate.decide_time, now))
