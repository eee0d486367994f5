"""The life-cycle of model versions: stages, the ways between them, and what each way asks for.

A stage is a word of the organization (`trained`, `in-review`); its state is what it means for the platform. What
happens to a version (a run ends, a gate is decided, a deployment goes live) moves it along the way that names the
event; every other way is gone by people.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum, StrEnum
from typing import Any

from libs.common.domain import DomainError
from services.training.domain.spec import invalid

_FIELD = "model_project.life_cycle"
_NAME = re.compile("[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


class State(StrEnum):
    """What a version is for the platform; names as in training.proto."""

    REGISTERED = "REGISTERED"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    ARCHIVED = "ARCHIVED"


class Event(StrEnum):
    """What happens to a version without anybody asking for it; names as in training.proto."""

    RUN_STARTED = "RUN_STARTED"
    RUN_SUCCEEDED = "RUN_SUCCEEDED"
    IMPORTED = "IMPORTED"
    EVALUATED = "EVALUATED"
    GATE_OPENED = "GATE_OPENED"
    GATE_SHUT = "GATE_SHUT"
    WENT_LIVE = "WENT_LIVE"
    STOPPED = "STOPPED"


class Role(IntEnum):
    """Roles of people; numbers as in options.proto."""

    VIEWER = 1
    EDITOR = 2
    APPROVER = 3
    ADMIN = 4


@dataclass(frozen=True)
class Stage:
    """A stage: its name, what it means for the platform, and a sentence for people."""

    name: str
    state: State
    description: str = ""


@dataclass(frozen=True)
class Way:
    """A way from one stage to another.

    Attributes:
        event: moves a version by itself; None: people do it.
        gates: that must be open for the files of the version.
        role: least role of who goes it.
        reason_required: whether a reason must be given.
        second_person: whether it must be somebody else than who made the version.
    """

    from_stage: str
    to_stage: str
    event: Event | None = None
    gates: tuple[str, ...] = ()
    role: Role = Role.EDITOR
    reason_required: bool = False
    second_person: bool = False


@dataclass(frozen=True)
class LifeCycle:
    """Stages and the ways between them; a version begins in the stage `start`."""

    start: str
    stages: tuple[Stage, ...]
    ways: tuple[Way, ...]

    def check(self) -> None:
        """Raises INVALID_FIELD, naming the field, for a life-cycle that makes no sense."""
        names = [stage.name for stage in self.stages]
        for at, stage in enumerate(self.stages):
            where = f"{_FIELD}.stages[{at}].name"
            if _NAME.fullmatch(stage.name) is None:
                raise invalid(where, f"must be lower-case letters, digits and dashes, not {stage.name!r}")
            if stage.name in names[:at]:
                raise invalid(where, f"is {stage.name} again")
        if self.start not in names:
            raise invalid(f"{_FIELD}.start", f"must be one of the stages, not {self.start!r}")
        if self.stage(self.start).state is not State.REGISTERED:
            raise invalid(f"{_FIELD}.start", "must be a stage that means REGISTERED: nothing is decided yet")
        for at, way in enumerate(self.ways):
            self._check_way(at, way, names)
        reached = self._reached()
        for at, name in enumerate(names):
            if name not in reached:
                raise invalid(f"{_FIELD}.stages[{at}].name", f"{name} cannot be reached from {self.start}")

    def _check_way(self, at: int, way: Way, names: Sequence[str]) -> None:
        where = f"{_FIELD}.transitions[{at}]"
        for name, value in (("from_stage", way.from_stage), ("to_stage", way.to_stage)):
            if value not in names:
                raise invalid(f"{where}.{name}", f"must be one of the stages, not {value!r}")
        if way.from_stage == way.to_stage:
            raise invalid(f"{where}.to_stage", f"leads from {way.from_stage} to itself")
        for gate in way.gates:
            if _NAME.fullmatch(gate) is None:
                raise invalid(f"{where}.gates", f"{gate!r} is no name of a gate")
        if way.event is not None and (way.reason_required or way.second_person or way.role is not Role.EDITOR):
            raise invalid(f"{where}.event", "goes by itself: it can ask for gates, not for a person")
        for other in self.ways[:at]:
            if way.event is None and (other.from_stage, other.to_stage, other.event) == (
                way.from_stage,
                way.to_stage,
                None,
            ):
                raise invalid(where, f"is the way from {way.from_stage} to {way.to_stage} again")
            if way.event is not None and (other.from_stage, other.event) == (way.from_stage, way.event):
                raise invalid(f"{where}.event", f"{way.event} leads out of {way.from_stage} already")

    def _reached(self) -> set[str]:
        reached, fresh = {self.start}, [self.start]
        while fresh:
            here = fresh.pop()
            for way in self.ways:
                if way.from_stage == here and way.to_stage not in reached:
                    reached.add(way.to_stage)
                    fresh.append(way.to_stage)
        return reached

    def stage(self, name: str) -> Stage:
        """The stage of this name. Raises STATE_CONFLICT."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise DomainError("STATE_CONFLICT", f"There is no stage {name!r}.", name=name, state="", wanted=name)

    def on(self, stage: str, event: Event) -> Way | None:
        """The way that an event opens out of a stage."""
        return next((way for way in self.ways if way.from_stage == stage and way.event is event), None)

    def asked(self, stage: str, target: str) -> Way | None:
        """The way that people go from a stage to another."""
        wanted = (stage, target, None)
        return next((way for way in self.ways if (way.from_stage, way.to_stage, way.event) == wanted), None)

    def targets(self, stage: str) -> list[str]:
        """Where people can move a version that stands in a stage."""
        return [way.to_stage for way in self.ways if way.from_stage == stage and way.event is None]

    def to_json(self) -> dict[str, Any]:
        """For the row; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LifeCycle:
        """What `to_json` gave."""
        stages = tuple(Stage(each["name"], State(each["state"]), each["description"]) for each in data["stages"])
        return cls(data["start"], stages, tuple(_way(each) for each in data["ways"]))


def _way(data: dict[str, Any]) -> Way:
    event = Event(data["event"]) if data["event"] else None
    values: dict[str, Any] = {**data, "event": event, "gates": tuple(data["gates"]), "role": Role(data["role"])}
    return Way(**values)


# What a project has that chose none. The verdict of an evaluation decides by itself, as it always did; people retire.
DEFAULT = LifeCycle(
    start="draft",
    stages=(
        Stage("draft", State.REGISTERED, "A run was asked for."),
        Stage("training", State.REGISTERED, "A run learns."),
        Stage("trained", State.REGISTERED, "Its files are complete; nothing is decided."),
        Stage("evaluated", State.REGISTERED, "An evaluation has measured it."),
        Stage("approved", State.APPROVED, "A gate is open: it may be deployed."),
        Stage("rejected", State.REJECTED, "A gate is shut: it may not be deployed."),
        Stage("live", State.APPROVED, "A deployment answers with it."),
        Stage("retired", State.ARCHIVED, "It is not to be used any more."),
    ),
    ways=(
        Way("draft", "training", Event.RUN_STARTED),
        Way("training", "trained", Event.RUN_SUCCEEDED),
        Way("draft", "trained", Event.IMPORTED),
        Way("trained", "evaluated", Event.EVALUATED),
        Way("evaluated", "approved", Event.GATE_OPENED),
        Way("evaluated", "rejected", Event.GATE_SHUT),
        Way("rejected", "approved", Event.GATE_OPENED),
        Way("approved", "rejected", Event.GATE_SHUT),
        Way("approved", "live", Event.WENT_LIVE),
        Way("live", "rejected", Event.GATE_SHUT),
        Way("live", "approved", Event.STOPPED),
        Way("trained", "retired", reason_required=True),
        Way("evaluated", "retired", reason_required=True),
        Way("approved", "retired", reason_required=True),
        Way("rejected", "retired", reason_required=True),
        # It is measured anew before it may be deployed again.
        Way("retired", "trained", reason_required=True),
    ),
)
