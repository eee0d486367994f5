"""The MLflow routes for the OpenAPI document. They follow https://mlflow.org/docs/latest/rest-api.html, not a proto."""

from __future__ import annotations

from services.gateway.http.mlflow.run_search import MOST_EXPERIMENTS
from services.gateway.http.mlflow.runs import MOST_METRICS, MOST_PARAMS, MOST_TAGS
from services.gateway.http.openapi_models import Schema

_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "integer"}
_ID: Schema = {"type": "string", "minLength": 1, "maxLength": 256}
_VALUE: Schema = {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}
_STATUS: Schema = {"type": "string", "enum": ["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]}
_VIEW: Schema = {"type": "string", "enum": ["ACTIVE_ONLY", "DELETED_ONLY", "ALL"]}
_PAGE: dict[str, Schema] = {
    "filter": _TEXT,
    "order_by": {"type": "array", "maxItems": 5, "items": _TEXT},
    "max_results": {"type": "integer", "minimum": 1, "maximum": 50_000},
    "page_token": _TEXT,
}


def _object(*needed: str, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, **({"required": list(needed)} if needed else {})}


def _list(schema: Schema, most: int | None = None) -> Schema:
    return {"type": "array", "items": schema, **({"maxItems": most} if most else {})}


_TAG = _object("key", "value", key={"type": "string", "minLength": 1, "maxLength": 250}, value=_TEXT)
_METRIC = _object(
    "key", "value", "timestamp", key=_TAG["properties"]["key"], value=_VALUE, timestamp=_NUMBER, step=_NUMBER
)


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/mlflow.{name}"}


MLFLOW_SCHEMAS: dict[str, Schema] = {
    "mlflow.Error": _object("error_code", "message", error_code=_TEXT, message=_TEXT),
    "mlflow.Experiment": _object(
        "experiment_id",
        "name",
        experiment_id=_ID,
        name=_TEXT,
        artifact_location=_TEXT,
        lifecycle_stage={"enum": ["active", "deleted"]},
        creation_time=_NUMBER,
        last_update_time=_NUMBER,
        tags=_list(_TAG),
    ),
    "mlflow.RunInfo": _object(
        "run_id",
        "experiment_id",
        "status",
        run_id=_ID,
        run_name=_TEXT,
        experiment_id=_ID,
        user_id=_TEXT,
        status=_STATUS,
        start_time=_NUMBER,
        end_time=_NUMBER,
        artifact_uri=_TEXT,
        lifecycle_stage={"enum": ["active", "deleted"]},
    ),
    "mlflow.Run": _object(
        "info",
        "data",
        info=_reference("RunInfo"),
        data=_object(metrics=_list(_METRIC), params=_list(_TAG), tags=_list(_TAG)),
    ),
    "mlflow.RegisteredModel": _object(
        "name",
        name=_ID,
        creation_timestamp=_NUMBER,
        last_updated_timestamp=_NUMBER,
        description=_TEXT,
        latest_versions=_list(_reference("ModelVersion")),
        tags=_list(_TAG),
        aliases=_list(_object(alias=_TEXT, version=_TEXT)),
    ),
    "mlflow.ModelVersion": _object(
        "name",
        "version",
        name=_ID,
        version=_ID,
        creation_timestamp=_NUMBER,
        source=_TEXT,
        run_id=_TEXT,
        status={"const": "READY"},
        tags=_list(_TAG),
        aliases=_list(_TEXT),
    ),
}


def _operation(name: str, summary: str, answer: Schema) -> Schema:
    error = {"description": "An error.", "content": {"application/json": {"schema": _reference("Error")}}}
    content: Schema = {"application/json": {"schema": answer}}
    return {
        "operationId": f"MLflow_{name}",
        "tags": ["MLflow"],
        "summary": summary,
        "responses": {"200": {"description": "OK", "content": content}, "default": error},
    }


def _post(name: str, summary: str, request: Schema, answer: Schema | None = None) -> Schema:
    made = _operation(name, summary, answer or _object())
    return {**made, "requestBody": {"required": True, "content": {"application/json": {"schema": request}}}}


def _get(name: str, summary: str, answer: Schema, /, *needed: str, **parameters: Schema) -> Schema:
    given = [
        {"name": field, "in": "query", "required": field in needed, "schema": schema}
        for field, schema in parameters.items()
    ]
    return {**_operation(name, summary, answer), "parameters": given}


def _experiment_change(name: str, summary: str, **more: Schema) -> Schema:
    return {"post": _post(name, summary, _object("experiment_id", *more, experiment_id=_ID, **more))}


def _run_change(name: str, summary: str, *needed: str, **more: Schema) -> Schema:
    return {"post": _post(name, summary, _object("run_id", *needed, run_id=_ID, **more))}


_FILES = _object(files=_list(_object("path", "is_dir", path=_TEXT, is_dir={"type": "boolean"}, file_size=_NUMBER)))
_BYTES: Schema = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
_IN_PATH: list[Schema] = [
    {"name": name, "in": "path", "required": True, "schema": _ID} for name in ("experiment", "run", "path")
]
_BASE = "/api/2.0/mlflow/"
_PROXY = "/api/2.0/mlflow-artifacts/artifacts"
_EXPERIMENT, _RUN = _object(experiment=_reference("Experiment")), _object(run=_reference("Run"))
_MODEL = _object(registered_model=_reference("RegisteredModel"))
_VERSION = _object(model_version=_reference("ModelVersion"))
_NEXT: dict[str, Schema] = {"next_page_token": _TEXT}


def _file(method: str, summary: str) -> Schema:
    made: Schema = {**_operation(f"{method}Artifact", summary, _object()), "parameters": _IN_PATH}
    if method == "Put":
        return {**made, "requestBody": {"required": True, **_BYTES}}
    if method == "Get":
        made["responses"]["200"] = {"description": "OK", **_BYTES}
    return made


MLFLOW_PATHS: dict[str, Schema] = {
    f"{_BASE}experiments/create": {
        "post": _post(
            "CreateExperiment",
            "Begin an experiment",
            _object("name", name={"type": "string", "minLength": 1, "maxLength": 100}, tags=_list(_TAG, 64)),
            _object(experiment_id=_ID),
        )
    },
    f"{_BASE}experiments/get": {
        "get": _get("GetExperiment", "One by its id", _EXPERIMENT, "experiment_id", experiment_id=_ID)
    },
    f"{_BASE}experiments/get-by-name": {
        "get": _get("GetExperimentByName", "One by its name", _EXPERIMENT, "experiment_name", experiment_name=_TEXT)
    },
    f"{_BASE}experiments/search": {
        "post": _post(
            "SearchExperiments",
            "Experiments",
            _object(view_type=_VIEW, **_PAGE),
            _object(experiments=_list(_reference("Experiment")), **_NEXT),
        )
    },
    f"{_BASE}experiments/delete": _experiment_change("DeleteExperiment", "Delete an experiment, softly"),
    f"{_BASE}experiments/restore": _experiment_change("RestoreExperiment", "Bring an experiment back"),
    f"{_BASE}experiments/update": _experiment_change("UpdateExperiment", "Rename an experiment", new_name=_TEXT),
    f"{_BASE}experiments/set-experiment-tag": _experiment_change(
        "SetExperimentTag", "Tag an experiment", key=_TEXT, value=_TEXT
    ),
    f"{_BASE}experiments/delete-experiment-tag": _experiment_change(
        "DeleteExperimentTag", "Take a tag away", key=_TEXT
    ),
    f"{_BASE}runs/create": {
        "post": _post(
            "CreateRun",
            "Begin a run",
            _object("experiment_id", experiment_id=_ID, run_name=_TEXT, start_time=_NUMBER, tags=_list(_TAG)),
            _RUN,
        )
    },
    f"{_BASE}runs/get": {"get": _get("GetRun", "One run", _RUN, "run_id", run_id=_ID)},
    f"{_BASE}runs/update": _run_change(
        "UpdateRun", "State, end and name", status=_STATUS, end_time=_NUMBER, run_name=_TEXT
    ),
    f"{_BASE}runs/delete": _run_change("DeleteRun", "Delete a run, softly"),
    f"{_BASE}runs/restore": _run_change("RestoreRun", "Bring a run back"),
    f"{_BASE}runs/search": {
        "post": _post(
            "SearchRuns",
            "Runs of experiments, those that Argosy started too",
            _object("experiment_ids", experiment_ids=_list(_ID, MOST_EXPERIMENTS), run_view_type=_VIEW, **_PAGE),
            _object(runs=_list(_reference("Run")), **_NEXT),
        )
    },
    f"{_BASE}runs/log-metric": _run_change("LogMetric", "One point", *_METRIC["required"], **_METRIC["properties"]),
    f"{_BASE}runs/log-parameter": _run_change("LogParam", "One parameter", "key", key=_TEXT, value=_TEXT),
    f"{_BASE}runs/log-batch": _run_change(
        "LogBatch",
        "Points, parameters and tags; all or none",
        metrics=_list(_METRIC, MOST_METRICS),
        params=_list(_TAG, MOST_PARAMS),
        tags=_list(_TAG, MOST_TAGS),
    ),
    f"{_BASE}runs/set-tag": _run_change("SetTag", "Tag a run", "key", key=_TEXT, value=_TEXT),
    f"{_BASE}runs/delete-tag": _run_change("DeleteTag", "Take a tag away", "key", key=_TEXT),
    f"{_BASE}runs/log-inputs": _run_change("LogInputs", "Names and digests of data", datasets=_list(_object())),
    f"{_BASE}metrics/get-history": {
        "get": _get(
            "GetMetricHistory",
            "The points of a metric by step",
            _object(metrics=_list(_METRIC), **_NEXT),
            "run_id",
            "metric_key",
            run_id=_ID,
            metric_key=_ID,
            max_results=_NUMBER,
            page_token=_TEXT,
        )
    },
    f"{_BASE}artifacts/list": {
        "get": _get(
            "ListArtifacts",
            "What lies right in a folder of a run",
            _object(**_FILES["properties"], **_NEXT),
            "run_id",
            run_id=_ID,
            path=_TEXT,
            page_token=_TEXT,
        )
    },
    _PROXY: {"get": _get("ListProxiedArtifacts", "Files of a run, by their path", _FILES, "path", path=_TEXT)},
    f"{_PROXY}/{{experiment}}/{{run}}/artifacts/{{path}}": {
        "get": _file("Get", "The bytes of a file"),
        "put": _file("Put", "Store a file"),
        "delete": _file("Delete", "Delete a file, or a folder"),
    },
    f"{_BASE}registered-models/create": {
        "post": _post("CreateRegisteredModel", "Begin a model", _object("name", name=_ID, description=_TEXT), _MODEL)
    },
    f"{_BASE}registered-models/get": {"get": _get("GetRegisteredModel", "One model", _MODEL, "name", name=_ID)},
    f"{_BASE}registered-models/search": {
        "get": _get(
            "SearchRegisteredModels",
            "Models",
            _object(registered_models=_list(_reference("RegisteredModel")), **_NEXT),
            **_PAGE,
        )
    },
    f"{_BASE}registered-models/get-latest-versions": {
        "post": _post(
            "GetLatestVersions",
            "The newest version",
            _object("name", name=_ID),
            _object(model_versions=_list(_reference("ModelVersion"))),
        )
    },
    f"{_BASE}registered-models/alias": {
        "get": _get(
            "GetModelVersionByAlias", "What an alias stands for", _VERSION, "name", "alias", name=_ID, alias=_ID
        ),
        "post": _post(
            "SetRegisteredModelAlias",
            "Make or move an alias",
            _object("name", "alias", "version", name=_ID, alias=_ID, version=_ID),
        ),
        "delete": _post("DeleteRegisteredModelAlias", "Delete an alias", _object("name", "alias", name=_ID, alias=_ID)),
    },
    f"{_BASE}registered-models/update": {
        "patch": _post(
            "UpdateRegisteredModel", "Describe a model", _object("name", name=_ID, description=_TEXT), _MODEL
        )
    },
    f"{_BASE}registered-models/delete": {
        "delete": _post("DeleteRegisteredModel", "Delete a model, softly", _object("name", name=_ID))
    },
    f"{_BASE}registered-models/set-tag": {
        "post": _post("SetRegisteredModelTag", "Tag a model", _object("name", "key", name=_ID, key=_TEXT, value=_TEXT))
    },
    f"{_BASE}registered-models/delete-tag": {
        "delete": _post("DeleteRegisteredModelTag", "Take a tag away", _object("name", "key", name=_ID, key=_TEXT))
    },
    f"{_BASE}model-versions/create": {
        "post": _post(
            "CreateModelVersion",
            "Take a model of safetensors among the files of a run into the registry",
            _object("name", "source", name=_ID, source=_TEXT, run_id=_TEXT, description=_TEXT),
            _VERSION,
        )
    },
    f"{_BASE}model-versions/get": {
        "get": _get("GetModelVersion", "One version", _VERSION, "name", "version", name=_ID, version=_ID)
    },
    f"{_BASE}model-versions/update": {
        "patch": _post(
            "UpdateModelVersion",
            "Describe a version",
            _object("name", "version", name=_ID, version=_ID, description=_TEXT),
            _VERSION,
        )
    },
    f"{_BASE}model-versions/delete": {
        "delete": _post(
            "DeleteModelVersion", "Delete a version, softly", _object("name", "version", name=_ID, version=_ID)
        )
    },
    f"{_BASE}model-versions/set-tag": {
        "post": _post(
            "SetModelVersionTag",
            "Tag a version",
            _object("name", "version", "key", name=_ID, version=_ID, key=_TEXT, value=_TEXT),
        )
    },
    f"{_BASE}model-versions/delete-tag": {
        "delete": _post(
            "DeleteModelVersionTag",
            "Take a tag away",
            _object("name", "version", "key", name=_ID, version=_ID, key=_TEXT),
        )
    },
    f"{_BASE}model-versions/search": {
        "get": _get(
            "SearchModelVersions",
            "Versions of models",
            _object(model_versions=_list(_reference("ModelVersion")), **_NEXT),
            **_PAGE,
        )
    },
}
