"""The OpenAI routes of files and fine-tuning for the OpenAPI document."""

from __future__ import annotations

from services.gateway.domain.fine_tuning import MOST_BATCH
from services.gateway.http.openapi_models import Schema, operation, reference

_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "integer"}
_ORDER: Schema = {"type": "string", "enum": ["asc", "desc"]}


def _object(kind: str, **properties: Schema) -> Schema:
    return {
        "type": "object",
        "required": ["id", "object", "created_at"],
        "properties": {"id": _TEXT, "object": {"const": kind}, "created_at": _NUMBER, **properties},
    }


def _list_of(name: str) -> Schema:
    return {
        "type": "object",
        "required": ["object", "data", "has_more"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": reference(name)},
            "has_more": {"type": "boolean"},
            "first_id": {"type": ["string", "null"]},
            "last_id": {"type": ["string", "null"]},
        },
    }


def _auto(schema: Schema) -> Schema:
    return {"anyOf": [{"const": "auto"}, schema]}


_HYPERPARAMETERS: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "n_epochs": _auto({"type": "integer", "minimum": 1, "maximum": 50}),
        "batch_size": _auto({"type": "integer", "minimum": 1, "maximum": MOST_BATCH}),
        "learning_rate_multiplier": _auto({"type": "number", "exclusiveMinimum": 0, "maximum": 1e4}),
    },
}
_BETA = _auto({"type": "number", "exclusiveMinimum": 0, "maximum": 2})
_PREFERENCES: Schema = {**_HYPERPARAMETERS, "properties": {**_HYPERPARAMETERS["properties"], "beta": _BETA}}
_METHOD: Schema = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"enum": ["supervised", "dpo"]},
        "supervised": {"type": "object", "properties": {"hyperparameters": _HYPERPARAMETERS}},
        "dpo": {"type": "object", "properties": {"hyperparameters": _PREFERENCES}},
    },
}
_METADATA: Schema = {
    "type": "object",
    "maxProperties": 16,
    "additionalProperties": {"type": "string", "maxLength": 512},
}

FINE_TUNING_SCHEMAS: dict[str, Schema] = {
    "openai.File": _object(
        "file",
        bytes=_NUMBER,
        filename=_TEXT,
        purpose=_TEXT,
        status={"type": "string", "enum": ["uploaded", "processed", "error"]},
        status_details={"type": ["string", "null"]},
    ),
    "openai.FileList": _list_of("File"),
    "openai.DeletedFile": {
        "type": "object",
        "required": ["id", "object", "deleted"],
        "properties": {"id": _TEXT, "object": {"const": "file"}, "deleted": {"type": "boolean"}},
    },
    "openai.FineTuningJobRequest": {
        "type": "object",
        "required": ["model", "training_file"],
        "additionalProperties": False,
        "properties": {
            "model": {
                "type": "string",
                "minLength": 1,
                "maxLength": 512,
                "description": "A deployment, a model project, a model version by its resource name, or `ft:...`.",
            },
            "training_file": {"type": "string", "maxLength": 512},
            "validation_file": {"type": ["string", "null"], "maxLength": 512},
            "method": _METHOD,
            "hyperparameters": _HYPERPARAMETERS,
            "suffix": {"type": ["string", "null"], "maxLength": 64, "pattern": "^[A-Za-z0-9._-]*$"},
            "seed": {"type": ["integer", "null"], "minimum": 0, "maximum": (1 << 31) - 1},
            "metadata": _METADATA,
        },
    },
    "openai.FineTuningJob": _object(
        "fine_tuning.job",
        model=_TEXT,
        fine_tuned_model={"type": ["string", "null"]},
        status={
            "type": "string",
            "enum": ["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"],
        },
        training_file=_TEXT,
        validation_file={"type": ["string", "null"]},
        result_files={"type": "array", "items": _TEXT},
        hyperparameters=_HYPERPARAMETERS,
        method=_METHOD,
        seed=_NUMBER,
        trained_tokens={"type": ["integer", "null"]},
        finished_at={"type": ["integer", "null"]},
        estimated_finish={"type": ["integer", "null"]},
        metadata=_METADATA,
        error={"type": ["object", "null"], "properties": {"code": _TEXT, "message": _TEXT}},
    ),
    "openai.FineTuningJobList": _list_of("FineTuningJob"),
    "openai.FineTuningEvent": _object("fine_tuning.job.event", level=_TEXT, message=_TEXT, type=_TEXT),
    "openai.FineTuningEventList": _list_of("FineTuningEvent"),
    "openai.FineTuningCheckpoint": _object(
        "fine_tuning.job.checkpoint",
        step_number=_NUMBER,
        fine_tuned_model_checkpoint=_TEXT,
        fine_tuning_job_id=_TEXT,
        metrics={"type": "object"},
    ),
    "openai.FineTuningCheckpointList": _list_of("FineTuningCheckpoint"),
}


def _in_path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1, "maxLength": 64}}


def _in_query(most: int, **more: Schema) -> list[Schema]:
    fields: dict[str, Schema] = {"after": _TEXT, "limit": {"type": "integer", "minimum": 1, "maximum": most}, **more}
    return [{"name": name, "in": "query", "schema": schema} for name, schema in fields.items()]


def _with(made: Schema, *parameters: Schema) -> Schema:
    return {**made, "parameters": list(parameters)}


def _upload() -> Schema:
    form = {
        "type": "object",
        "required": ["file", "purpose"],
        "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"const": "fine-tune"}},
    }
    made = operation("CreateFile", "Upload JSON lines for fine-tuning", "File")
    return {**made, "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


def _content() -> Schema:
    made = operation("GetFileContent", "The lines of a file, or the results of a job", "File")
    made["responses"]["200"]["content"] = {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "text/csv": {"schema": _TEXT},
    }
    return _with(made, _in_path("file_id"))


def _begin() -> Schema:
    made = operation("CreateFineTuningJob", "Begin a fine-tuning job", "FineTuningJob")
    schema = {"schema": reference("FineTuningJobRequest")}
    return {**made, "requestBody": {"required": True, "content": {"application/json": schema}}}


_FILE, _JOB = _in_path("file_id"), _in_path("job")
FINE_TUNING_PATHS: dict[str, Schema] = {
    "/v1/files": {
        "post": _upload(),
        "get": _with(operation("ListFiles", "Files", "FileList"), *_in_query(10_000, order=_ORDER, purpose=_TEXT)),
    },
    "/v1/files/{file_id}": {
        "get": _with(operation("GetFile", "One file", "File"), _FILE),
        "delete": _with(operation("DeleteFile", "Delete a file that no running job uses", "DeletedFile"), _FILE),
    },
    "/v1/files/{file_id}/content": {"get": _content()},
    "/v1/fine_tuning/jobs": {
        "post": _begin(),
        "get": _with(operation("ListFineTuningJobs", "Fine-tuning jobs", "FineTuningJobList"), *_in_query(100)),
    },
    "/v1/fine_tuning/jobs/{job}": {
        "get": _with(operation("GetFineTuningJob", "One fine-tuning job", "FineTuningJob"), _JOB)
    },
    "/v1/fine_tuning/jobs/{job}/cancel": {
        "post": _with(operation("CancelFineTuningJob", "Stop a job", "FineTuningJob"), _JOB)
    },
    "/v1/fine_tuning/jobs/{job}/pause": {
        "post": _with(operation("PauseFineTuningJob", "Stop a job at its next checkpoint", "FineTuningJob"), _JOB)
    },
    "/v1/fine_tuning/jobs/{job}/resume": {
        "post": _with(operation("ResumeFineTuningJob", "Go on with a paused job", "FineTuningJob"), _JOB)
    },
    "/v1/fine_tuning/jobs/{job}/events": {
        "get": _with(
            operation("ListFineTuningEvents", "What happened, newest first", "FineTuningEventList"),
            _JOB,
            *_in_query(1000),
        )
    },
    "/v1/fine_tuning/jobs/{job}/checkpoints": {
        "get": _with(
            operation("ListFineTuningCheckpoints", "The newest checkpoint", "FineTuningCheckpointList"),
            _JOB,
            *_in_query(100),
        )
    },
}
