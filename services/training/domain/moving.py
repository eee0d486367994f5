"""What people are asked before a model version moves into another stage."""

from __future__ import annotations

from datetime import datetime

from libs.common.domain import DomainError
from services.training.domain.life_cycle import LifeCycle, State
from services.training.domain.models import ModelVersion
from services.training.domain.spec import invalid


def move_by_hand(
    version: ModelVersion, cycle: LifeCycle, target: str, actor: str, role: int, now: datetime, reason: str, live: bool
) -> None:
    """Moves a version as somebody asked.

    Args:
        target: the stage.
        role: of the actor, as options.proto numbers them.
        live: whether a deployment answers with the version.

    Raises:
        DomainError: INVALID_FIELD, there is no such stage, or a reason is missing; STATE_CONFLICT, no way leads there;
            ROLE_MISSING; SELF_APPROVAL; GATE_SHUT; IN_USE, a live version is to be archived.
    """
    if target not in [stage.name for stage in cycle.stages]:
        raise invalid("stage", f"must be a stage of the project, not {target!r}")
    way = cycle.asked(version.stage, target)
    if way is None:
        possible = ", ".join(cycle.targets(version.stage)) or "nowhere"
        message = f"{version.name} is {version.stage}; people can move it to: {possible}."
        raise DomainError("STATE_CONFLICT", message, name=version.name, state=version.stage, wanted=target)
    if role < way.role:
        message = f"This transition needs the role {way.role.name}."
        raise DomainError("ROLE_MISSING", message, required_role=f"ROLE_{way.role.name}")
    if way.second_person and actor == version.creator:
        message = f"{actor} made {version.name}; somebody else has to move it to {target}."
        raise DomainError("SELF_APPROVAL", message, name=version.name)
    if way.reason_required and not reason.strip():
        raise invalid("reason", f"must be given to move a version from {version.stage} to {target}")
    shut = version.shut_gates(way.gates)
    if shut:
        message = f"{version.name} cannot become {target}: the gate {shut[0]} is not open for its files."
        error = DomainError("GATE_SHUT", message, model_version=version.name, gate=shut[0])
        # `reason` of the metadata is not the error's own.
        error.metadata["reason"] = "not open"
        raise error
    if live and cycle.stage(target).state is State.ARCHIVED:
        message = f"{version.name} is live; stop its deployment first."
        raise DomainError("IN_USE", message, name=version.name, used_by="a deployment")
    version.move(cycle, target, actor, now, reason)


def require_fitting(cycle: LifeCycle, before: LifeCycle, used: dict[str, int]) -> None:
    """Refuses a new life-cycle that would leave versions without a stage, or change what is decided about them.

    Args:
        before: the one that the project has.
        used: stages with the number of versions that stand in each, deleted ones too.

    Raises:
        DomainError: IN_USE that names the stage.
    """
    names = {stage.name for stage in cycle.stages}
    for stage, count in sorted(used.items()):
        if stage not in names:
            message = f"{count} versions stand in the stage {stage}, which the new life-cycle does not have."
            raise DomainError("IN_USE", message, name=stage, used_by=f"{count} versions")
        if cycle.stage(stage).state is not before.stage(stage).state:
            message = f"{count} versions stand in the stage {stage}; what it means cannot be changed meanwhile."
            raise DomainError("IN_USE", message, name=stage, used_by=f"{count} versions")
