"""What a run goes through: its states, what may be asked of it in each, what happened to it, and what it was given."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from libs.common.domain import DomainError
from services.training.domain.trainings import TrainingRun

Value = float | str


class RunState(StrEnum):
    """States of a run. Its task decides them; they are kept on the run so that lists can filter by them."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


# In which states somebody may ask for what.
_ALLOWED = {
    "paused": (RunState.QUEUED, RunState.RUNNING),
    "resumed": (RunState.PAUSED,),
    "retried": (RunState.FAILED, RunState.CANCELLED),
}


def require(run: TrainingRun, wish: str) -> None:
    """Raises STATE_CONFLICT unless a run in its state can be `paused`, `resumed` or `retried`."""
    require_started_here(run)
    allowed = _ALLOWED[wish]
    if run.state not in allowed:
        wanted = " or ".join(state.lower() for state in allowed)
        message = f"{run.name} is {run.state.lower()}; only a {wanted} run can be {wish}."
        raise DomainError("STATE_CONFLICT", message, name=run.name, state=run.state, wanted=allowed[0])


def require_started_here(run: TrainingRun) -> None:
    """Raises STATE_CONFLICT for an outside run: who started it stops it."""
    if run.outside:
        message = f"{run.name} was not started by Argosy; whoever started it must do this."
        raise DomainError("STATE_CONFLICT", message, name=run.name, state="outside", wanted="started by Argosy")


class EventKind(StrEnum):
    """Kinds of events of a run."""

    CREATED = "CREATED"
    STARTED = "STARTED"
    CHECKPOINT = "CHECKPOINT"
    PAUSED = "PAUSED"
    RESUMED = "RESUMED"
    RETRIED = "RETRIED"
    WORKER_LOST = "WORKER_LOST"
    ALERT = "ALERT"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True)
class RunEvent:
    """Something that happened to a run: a kind, a sentence for people, and its parts."""

    kind: EventKind
    time: datetime
    message: str
    details: dict[str, str] = field(default_factory=dict[str, str])


def parameters(run: TrainingRun) -> dict[str, Value]:
    """What a run was given, by name: `spec.workers`, `spec.sft.learning_rate`, `parameters.epochs`, ..."""
    own = dict(_flat("parameters", run.parameters))
    if run.outside:
        return {name: _number_or_text(value) for name, value in own.items()}
    names = ("dataset_version", "validation_version", "model_project", "base_model_version", "algorithm_version")
    found: dict[str, Value] = {name: getattr(run, name) for name in names if getattr(run, name)}
    spec = run.spec.to_json()
    phases = dict(zip(run.spec.phase_names, spec.pop("phases"), strict=True))
    return found | dict(_flat("spec", spec)) | dict(_flat("spec", phases)) | own


def _number_or_text(value: Value) -> Value:
    """Outside, every parameter is a text; one that reads as a number can be compared as one."""
    try:
        number = float(value)
    except ValueError:
        return value
    return number if math.isfinite(number) else value


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
    for name, value in values.items():
        path = f"{prefix}.{name}"
        if isinstance(value, Mapping):
            yield from _flat(path, value)
        elif isinstance(value, bool):
            yield path, str(value).lower()
        elif isinstance(value, (int, float)):
            yield path, float(value)
        elif isinstance(value, str):
            yield path, value
        elif value is not None:
            yield path, json.dumps(value, ensure_ascii=False)
