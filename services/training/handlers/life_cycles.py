"""Life-cycles to messages and back."""

from __future__ import annotations

from argosy.training.v1 import training_pb2 as pb

from services.training.domain.life_cycle import DEFAULT, Event, LifeCycle, Role, Stage, State, Way

_STATE, _EVENT = pb.ModelVersion.State, pb.StageTransition.Event


def life_cycle_message(cycle: LifeCycle) -> pb.LifeCycle:
    return pb.LifeCycle(
        start=cycle.start,
        stages=[
            pb.Stage(name=stage.name, state=f"STATE_{stage.state}", description=stage.description)
            for stage in cycle.stages
        ],
        transitions=[
            pb.StageTransition(
                from_stage=way.from_stage,
                to_stage=way.to_stage,
                event=f"EVENT_{way.event}" if way.event else "EVENT_UNSPECIFIED",
                gates=way.gates,
                role=int(way.role),  # pyrefly: ignore[bad-argument-type]
                reason_required=way.reason_required,
                second_person=way.second_person,
            )
            for way in cycle.ways
        ],
    )


def life_cycle_from(message: pb.LifeCycle) -> LifeCycle:
    """The life-cycle that a caller wrote, checked; an empty message is the default one.

    Raises:
        DomainError: INVALID_FIELD that names the field.
    """
    if message == pb.LifeCycle():
        return DEFAULT
    cycle = LifeCycle(
        message.start,
        tuple(
            Stage(stage.name, State(_STATE.Name(stage.state).removeprefix("STATE_")), stage.description)
            for stage in message.stages
        ),
        tuple(_way(way) for way in message.transitions),
    )
    cycle.check()
    return cycle


def _way(message: pb.StageTransition) -> Way:
    return Way(
        message.from_stage,
        message.to_stage,
        Event(_EVENT.Name(message.event).removeprefix("EVENT_")) if message.event else None,
        tuple(message.gates),
        Role(message.role or Role.EDITOR),
        message.reason_required,
        message.second_person,
    )
