"""Fine-tuning jobs as OpenAI's clients read them: the job, its events, checkpoints and results."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import AsyncIterator, Iterable
from typing import Any

import orjson
from argosy.common.v1 import task_pb2
from argosy.training.v1 import training_pb2

from services.gateway.clients.trainings import (
    METADATA_LABEL,
    METHOD_LABEL,
    MODEL_LABEL,
    SUFFIX_LABEL,
    TRAINING_FILE_LABEL,
    VALIDATION_FILE_LABEL,
    Job,
)
from services.gateway.domain import openai_names as names
from services.gateway.http.openai.listing import Json

_State = task_pb2.Task.State
_STATUS: dict[_State, str] = {
    task_pb2.Task.STATE_CREATED: "queued",
    task_pb2.Task.STATE_QUEUED: "queued",
    task_pb2.Task.STATE_RUNNING: "running",
    task_pb2.Task.STATE_PAUSED: "paused",
    task_pb2.Task.STATE_SUCCEEDED: "succeeded",
    task_pb2.Task.STATE_FAILED: "failed",
    task_pb2.Task.STATE_CANCELLED: "cancelled",
}
ENDED = ("succeeded", "failed", "cancelled")
# A gateway that ends between the two calls that begin a job leaves a training without a run.
_BEGIN_SECONDS = 60
_HELDOUT_LOSS = ".heldout_loss_after"
_SEQUENCE = re.compile(r"[0-9]{1,18}\Z")
_LEVELS = {"DEBUG": "info", "INFO": "info", "WARNING": "warn", "ERROR": "error"}
# As in OpenAI's results files: https://platform.openai.com/docs/guides/supervised-fine-tuning
_RESULT_COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")


def status(job: Job, now: float) -> str:
    """The status of a job. `now` is UNIX time."""
    if job.task is None:
        return "validating_files" if now - job.training.create_time.seconds < _BEGIN_SECONDS else "failed"
    return _STATUS[job.task.state]


def job_object(job: Job, now: float) -> Json:
    """A job. `now` is UNIX time."""
    labels, task = job.training.labels, job.task
    current = status(job, now)
    done = current == "succeeded"
    method = _parsed(labels[METHOD_LABEL])
    # Labels can be overwritten.
    chosen = method.get(str(method.get("type")))
    finished = task.end_time.seconds if task is not None and current in ENDED else None
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.training.create_time.seconds,
        "finished_at": finished,
        "estimated_finish": task.eta.seconds
        if task is not None and current == "running" and task.eta.seconds
        else None,
        "model": labels[MODEL_LABEL],
        "fine_tuned_model": str(job.model) if done else None,
        "organization_id": job.training.name.split("/")[1],
        "status": current,
        "training_file": labels[TRAINING_FILE_LABEL],
        "validation_file": labels[VALIDATION_FILE_LABEL] or None,
        "result_files": [names.results_file(job.id)] if done else [],
        "trained_tokens": int(job.run.results["tokens"]) if done and job.run is not None else None,
        "hyperparameters": chosen.get("hyperparameters", {}) if isinstance(chosen, dict) else {},
        "method": method,
        "seed": job.training.spec.seed,
        "user_provided_suffix": labels[SUFFIX_LABEL] or None,
        "metadata": metadata_of(job.training),
        "integrations": [],
        "error": _error(job, current),
    }


def metadata_of(training: training_pb2.Training) -> Json:
    """The caller's own notes of a job."""
    return _parsed(training.labels[METADATA_LABEL])


def _parsed(text: str) -> Json:
    """A label with JSON; empty for one that somebody has overwritten."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _error(job: Job, current: str) -> Json | None:
    """Why a job failed; what is wrong with a file is said of its parameter, as OpenAI does."""
    if current != "failed":
        return None
    if job.task is None:
        message = "The job was broken off before it began; create it again."
        return {"code": "not_started", "message": message, "param": None}
    error = job.task.error
    if error.reason == "CONTENT_INVALID":
        return {"code": "invalid_training_file", "message": error.message, "param": "training_file"}
    if error.reason == "PREFLIGHT_FAILED" and error.metadata["check"] == "leakage":
        return {"code": "invalid_validation_file", "message": error.message, "param": "validation_file"}
    return {"code": error.reason.lower(), "message": error.message, "param": None}


def event_objects(
    job: Job, logs: Iterable[task_pb2.TaskLog], metrics: Iterable[task_pb2.TaskMetrics], newest: bool, now: float
) -> list[Json]:
    """Events of a job, newest first, down to its creation.

    Args:
        newest: whether no event stands before these, so that its end does.
        now: UNIX time.
    """
    found: list[tuple[int, Json]] = [(0, _event(job.training.create_time.seconds, f"Created the job {job.id}."))]
    found += [(log.sequence, _event(log.time.seconds, log.body, _LEVELS.get(log.severity, "info"))) for log in logs]
    found += [(point.sequence, _metrics_event(job, point)) for point in metrics]
    found.sort(key=lambda event: event[0])
    last = _last_event(job, now) if newest else None
    if last is not None:
        found.append((found[-1][0] + 1, last))
    return [event | {"id": f"{_event_prefix(job)}{sequence}"} for sequence, event in reversed(found)]


def event_sequence(job: Job, event_id: str) -> int | None:
    """The place of an event among those of a job; None for an id that is of none of them."""
    number = event_id.removeprefix(_event_prefix(job))
    return int(number) if number != event_id and _SEQUENCE.match(number) else None


def _event_prefix(job: Job) -> str:
    return f"ftevent-{job.id.removeprefix('ftjob-')}-"


def _metrics_event(job: Job, point: task_pb2.TaskMetrics) -> Json:
    total = job.training.spec.phases[0].steps
    data = {"step": point.step, "total_steps": total, "train_loss": point.values["loss"]}
    message = f"Step {point.step}/{total}: training loss={point.values['loss']:.2f}"
    return _event(point.time.seconds, message) | {"type": "metrics", "data": data}


def _last_event(job: Job, now: float) -> Json | None:
    current = status(job, now)
    if job.task is None or current not in ENDED:
        return None
    end = job.task.end_time.seconds
    if current == "succeeded":
        return _event(end, f"The job has succeeded. New fine-tuned model: {job.model}.")
    if current == "failed":
        return _event(end, job.task.error.message, "error")
    return _event(end, "The job was cancelled.")


def _event(created: int, message: str, level: str = "info") -> Json:
    return {
        "object": "fine_tuning.job.event",
        "created_at": created,
        "level": level,
        "message": message,
        "type": "message",
        "data": None,
    }


async def checkpoint_object(job: Job, newest: AsyncIterator[task_pb2.TaskMetrics]) -> Json | None:
    """The newest complete checkpoint of a job. That of a job that has succeeded is its model; no other can be asked.

    Args:
        newest: points of the job, newest first; no more are taken than are needed.
    """
    if job.run is None or not job.run.HasField("checkpoint"):
        return None
    done = bool(job.run.model_version)
    # After the last step of a phase a checkpoint counts from the beginning of the next.
    step = job.run.checkpoint.step or job.training.spec.phases[0].steps
    figures: dict[str, Any] = {"step": step}
    async for point in newest:
        if point.step <= step:
            figures["train_loss"] = point.values["loss"]
            break
    heldout = _heldout_loss(job.run)
    if done and heldout is not None:
        figures["full_valid_loss"] = heldout
    return {
        "id": f"ftckpt-{job.id.removeprefix('ftjob-')}-{step}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": job.run.checkpoint.time.seconds,
        "fine_tuned_model_checkpoint": str(job.model) + ("" if done else f":ckpt-step-{step}"),
        "fine_tuning_job_id": job.id,
        "metrics": figures,
        "step_number": step,
    }


def results_csv(job: Job, metrics: Iterable[task_pb2.TaskMetrics]) -> bytes:
    """The curves of a job as OpenAI's results file has them; what was not measured is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _RESULT_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    rows: list[Json] = [{"step": point.step, "train_loss": f"{point.values['loss']:.5f}"} for point in metrics]
    heldout = None if job.run is None else _heldout_loss(job.run)
    if rows and heldout is not None:
        rows[-1]["valid_loss"] = f"{heldout:.5f}"
    writer.writerows(rows)
    return text.getvalue().encode()


def _heldout_loss(run: training_pb2.TrainingRun) -> float | None:
    """That of the one phase of a job, whatever its method."""
    return next((value for name, value in run.results.items() if name.endswith(_HELDOUT_LOSS)), None)
