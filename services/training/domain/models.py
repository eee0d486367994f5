"""Model projects, model versions, their stages and their gates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime

from libs.common.domain import DomainError, Resource
from services.training.domain.bases import ADAPTER_CONFIG
from services.training.domain.life_cycle import DEFAULT, Event, LifeCycle, State
from services.training.domain.spec import invalid

# Tasks of model versions that write text, and that score what others wrote.
TEXT_GENERATION, REWARD = "text-generation", "reward"


@dataclass(kw_only=True)
class ModelProject(Resource):
    """The line of versions of one model.

    Attributes:
        live_version: version that is live now; empty: none. Follows the events of deploy.
        metrics_url: dashboard that people look at.
        model_uri: where the files of the model lie outside, such as a folder of HDFS.
        life_cycle: of its versions.
        version_count: versions so far; they are numbered from 1.
    """

    display_name: str = ""
    description: str = ""
    train_framework: str = ""
    inference_framework: str = ""
    live_version: str = ""
    code_repo_url: str = ""
    metrics_url: str = ""
    model_uri: str = ""
    life_cycle: LifeCycle = DEFAULT
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
    """A stage that a model version got, with what it means: from which, by whom, when and why."""

    from_stage: str
    to_stage: str
    from_state: str
    to_state: str
    actor: str
    time: datetime
    reason: str


@dataclass(frozen=True)
class Signature:
    """The platform's signature of a version; `value` is Ed25519 (RFC 8032) over `signed_text`, in base64."""

    key_id: str
    value: str
    time: datetime


def signed_text(name: str, manifest_digest: str) -> bytes:
    """What is signed: the name with the digest, so that a signature cannot be moved to another version."""
    return f"argosy.model-version/1\n{name}\n{manifest_digest}\n".encode()


@dataclass(kw_only=True)
class ModelVersion(Resource):
    """An immutable set of model files, and what is decided about it.

    Attributes:
        stage: of the life-cycle of its project; `state` is what the stage means, or ARCHIVED while it is deleted.
        manifest_digest: SHA-256 of the manifest of its files.
        training_run: that made it; empty: imported.
        origin: where an imported one came from: an upload, a folder, a hub.
        licence: as its README says it; empty: it says nothing.
        task: what it does: `TEXT_GENERATION`, `REWARD`, or the task of the algorithm that made it; empty: not known.
        base_model_version: it was made from; of an adapter: the complete one that it belongs on.
        context_length: tokens.
        model_card: Markdown, written when it was made.
        description: Markdown, by people.
        gates: newest decision of each gate, by name.
        new_transitions: made since it was read, for the repository to store.
    """

    stage: str = ""
    manifest_digest: str = ""
    files: list[ModelFile] = field(default_factory=list[ModelFile])
    training_run: str = ""
    base_model_version: str = ""
    origin: str = ""
    licence: str = ""
    task: str = ""
    parameter_count: int = 0
    architecture: str = ""
    context_length: int = 0
    model_card: str = ""
    description: str = ""
    signature: Signature | None = None
    gates: list[Gate] = field(default_factory=list[Gate])
    new_transitions: list[Transition] = field(default_factory=list[Transition])

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.size for file in self.files)

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter, which belongs on `base_model_version`, instead of a complete model."""
        return any(file.path == ADAPTER_CONFIG for file in self.files)

    def require_task(self, wanted: str, field_path: str) -> None:
        """Refuses a version that does something else. Raises INVALID_FIELD that names both."""
        if self.task and self.task != wanted:
            raise invalid(field_path, f"names {self.name}, which is for {self.task}; it needs one for {wanted}")

    def begin(self, cycle: LifeCycle, actor: str, time: datetime, reason: str) -> None:
        """Its first stage."""
        self.stage, self.state = cycle.start, cycle.stage(cycle.start).state
        self.new_transitions.append(Transition("", self.stage, "", self.state, actor, time, reason))

    def happen(self, event: Event, cycle: LifeCycle, actor: str, time: datetime, reason: str) -> None:
        """Goes the way that an event opens; without one, or with a gate of it shut, the version stays."""
        way = cycle.on(self.stage, event)
        if way is not None and not self.shut_gates(way.gates):
            self.move(cycle, way.to_stage, actor, time, reason)

    def move(self, cycle: LifeCycle, target: str, actor: str, time: datetime, reason: str) -> None:
        """Into another stage, whoever may do that; see `domain.moving` for what people are asked."""
        state = cycle.stage(target).state
        self.new_transitions.append(Transition(self.stage, target, self.state, state, actor, time, reason))
        self.stage, self.state, self.update_time = target, state, time

    def shut_gates(self, wanted: Iterable[str]) -> list[str]:
        """Which of these gates are not open for its files."""
        opened = {gate.gate for gate in self.gates if gate.open and gate.model_digest == self.manifest_digest}
        return [gate for gate in wanted if gate not in opened]

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

    def decide(self, gate: Gate, cycle: LifeCycle, actor: str, now: datetime) -> None:
        """Keeps the verdict of an evaluation; the newest decision of all gates moves the version."""
        known = {other.gate: other for other in self.gates}
        earlier = known.get(gate.gate)
        if earlier is None or earlier.decide_time <= gate.decide_time:
            known[gate.gate] = gate
        self.gates = [known[name] for name in sorted(known)]
        newest = max(self.gates, key=lambda each: each.decide_time)
        reason = f"gate {newest.gate}: {newest.reason or newest.rule}"[:1000]
        self.happen(Event.EVALUATED, cycle, actor, now, f"measured by {gate.evaluation}")
        self.happen(Event.GATE_OPENED if newest.open else Event.GATE_SHUT, cycle, actor, now, reason)
        self.update_time = now

    def archive(self, actor: str, now: datetime) -> None:
        """When it is deleted."""
        self._set_state(State.ARCHIVED, actor, now, "deleted")

    def restore(self, cycle: LifeCycle, actor: str, now: datetime) -> None:
        """When it is undeleted: what its stage means."""
        self._set_state(cycle.stage(self.stage).state, actor, now, "undeleted")

    def _set_state(self, state: State, actor: str, now: datetime, reason: str) -> None:
        self.new_transitions.append(Transition(self.stage, self.stage, self.state, state, actor, now, reason))
        self.state, self.update_time = state, now


def decided(gate: Gate, now: datetime) -> Gate:
    """The gate with a time not in the future, so that a caller's clock cannot make a decision outlive later ones."""
    return replace(gate, decide_time=min(gate.decide_time, now))


@dataclass(kw_only=True)
class ModelAlias(Resource):
    """A name of a version inside its project that can be moved to another one: `champion`, `challenger`."""

    model_version: str = ""


@dataclass(frozen=True)
class AliasChange:
    """One move of an alias; `to_version` is empty when it was deleted."""

    alias: str
    from_version: str
    to_version: str
    actor: str
    time: datetime
    reason: str


@dataclass(frozen=True)
class Deployed:
    """A time in which a deployment answered with a version; `stop_time` is None while it does."""

    deployment: str
    model_version: str
    live_time: datetime
    stop_time: datetime | None
