"""Runs as MLflow's clients read them."""

from __future__ import annotations

from typing import Any

from argosy.training.v1 import outside_run_service_pb2 as pb
from argosy.training.v1 import training_pb2

from services.gateway.domain import mlflow_names as names
from services.gateway.http.mlflow.errors import ParameterError
from services.gateway.http.mlflow.given import Json, number_json

_State = training_pb2.TrainingRun.State
STATES = {
    "RUNNING": ("RUNNING",),
    "SCHEDULED": ("QUEUED", "PAUSED"),
    "FINISHED": ("SUCCEEDED",),
    "FAILED": ("FAILED",),
    "KILLED": ("CANCELLED",),
}
_STATUS = {state: status for status, states in STATES.items() for state in states}


def state_of(status: str) -> Any:
    """Number of the state that a status of MLflow stands for. Raises ParameterError."""
    if status not in STATES:
        raise ParameterError("status", f"must be one of {', '.join(STATES)}")
    return _State.Value(f"STATE_{STATES[status][0]}")


def run_info(record: pb.RunRecord) -> Json:
    """What there is to say of a run beside its data."""
    run = record.run
    run_id = names.run_id(run.name)
    info: Json = {
        "run_id": run_id,
        "run_uuid": run_id,
        "run_name": shown_name(record),
        "experiment_id": names.experiment_id(run.name),
        "user_id": record.tags.get("mlflow.user", run.creator),
        "status": _STATUS[_State.Name(run.state)[len("STATE_") :]],
        "start_time": record.start_time.ToMilliseconds(),
        "artifact_uri": names.artifact_root(run.name),
        "lifecycle_stage": "deleted" if run.HasField("delete_time") else "active",
    }
    if record.HasField("end_time"):
        info["end_time"] = record.end_time.ToMilliseconds()
    return info


def shown_name(record: pb.RunRecord) -> str:
    """Of a run of ours `packages/3`."""
    _, _, _, training, _, number = record.run.name.split("/")
    return record.display_name or f"{training}/{number}"


def run_json(record: pb.RunRecord) -> Json:
    """A run."""
    run = record.run
    metrics = [
        {"key": one.key, "value": number_json(one.value), "timestamp": one.time // 1000, "step": one.step}
        for one in record.metrics
    ]
    known = {one.key for one in record.metrics}
    # What a run of ours came to beside its curves.
    end = record.end_time.ToMilliseconds() if record.HasField("end_time") else run.update_time.ToMilliseconds()
    metrics += [
        {"key": key, "value": number_json(value), "timestamp": end, "step": 0}
        for key, value in sorted(run.results.items())
        if key not in known
    ]
    tags = {**run.labels, **record.tags, "mlflow.runName": shown_name(record), "argosy.run": run.name}
    if run.model_version:
        tags["argosy.model_version"] = run.model_version
    data = {
        "metrics": metrics,
        "params": [{"key": key, "value": value} for key, value in sorted(record.parameters.items())],
        "tags": [{"key": key, "value": value} for key, value in sorted(tags.items())],
    }
    return {"info": run_info(record), "data": data, "inputs": {}}
