"""Runs: outside ones, and, to be read, those that Argosy started."""

from __future__ import annotations

import hashlib
import json
import secrets

from argosy.training.v1 import outside_run_service_pb2 as pb
from argosy.training.v1 import run_metrics_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from services.gateway.clients.outside_runs import OutsideRuns
from services.gateway.domain import mlflow_names as names
from services.gateway.http.mlflow.errors import MissingError, ParameterError, UnsupportedError
from services.gateway.http.mlflow.experiments import Experiments
from services.gateway.http.mlflow.given import Given, Json, number_json
from services.gateway.http.mlflow.guard import Answer, Visit
from services.gateway.http.mlflow.run_answers import run_info, run_json, state_of
from services.gateway.http.mlflow.run_search import search_request

# https://mlflow.org/docs/latest/rest-api.html#request-limits
MOST_METRICS, MOST_PARAMS, MOST_TAGS, _MOST_ENTITIES = 1000, 100, 100, 1000
_LONGEST_PARAM, _LONGEST_TAG = 6_000, 8_000
# A page of MLflow's own server.
_HISTORY_PAGE = 25_000
_RUN_NAME = "mlflow.runName"
# Milliseconds; later ones are refused by training, and must be a number of 64 bits until there.
_LAST_TIME = 1 << 52
ADVICE = (
    "Argosy takes models as safetensors only, because reading a pickled model runs whatever is in it: write the "
    "weights with save_pretrained, log them with mlflow.log_artifacts(folder, 'model') and register them with "
    "MlflowClient().create_model_version(name, source='runs:/<run id>/model', run_id='<run id>'); with autolog, pass "
    "log_models=False."
)


class Runs:
    """Answers about runs.

    Args:
        backend: training.
        experiments: whose runs they are.
    """

    def __init__(self, backend: OutsideRuns, experiments: Experiments) -> None:
        self._backend = backend
        self._experiments = experiments

    def answers(self) -> dict[str, dict[str, Answer]]:
        """Path below `/api/2.0/mlflow/` -> HTTP method -> answer."""
        return {
            "runs/create": {"POST": self.create},
            "runs/get": {"GET": self.get},
            "runs/update": {"POST": self.update},
            "runs/delete": {"POST": self.delete},
            "runs/restore": {"POST": self.restore},
            "runs/search": {"POST": self.search},
            "runs/log-metric": {"POST": self.log_metric},
            "runs/log-parameter": {"POST": self.log_parameter},
            "runs/log-batch": {"POST": self.log_batch},
            "runs/set-tag": {"POST": self.set_tag},
            "runs/delete-tag": {"POST": self.delete_tag},
            "runs/log-inputs": {"POST": self.log_inputs},
            "runs/log-model": {"POST": self.refuse_model},
            "runs/outputs": {"POST": self.refuse_model},
            # The client looks there for a folder of files too.
            "logged-models/search": {"POST": self.no_models},
            "metrics/get-history": {"GET": self.get_history},
        }

    async def create(self, visit: Visit) -> Json:
        """Begins an outside run."""
        given = visit.given
        tags = given.pairs("tags", _MOST_ENTITIES, _LONGEST_TAG)
        display_name = given.text("run_name", most=250) or tags.pop(_RUN_NAME, "") or f"run-{secrets.token_hex(4)}"
        started = given.whole("start_time", 0)
        training = await self._experiments.find(visit)
        if not training.outside:
            message = f"{training.name} is a training whose runs Argosy starts: `argosy training run`."
            raise UnsupportedError(message)
        request = pb.CreateOutsideRunRequest(parent=training.name, display_name=display_name[:250], tags=tags)
        if started:
            _set_time(request.start_time, started, "start_time")
        return {"run": run_json(await self._backend.runs.CreateOutsideRun(request, **visit.call))}

    async def get(self, visit: Visit) -> Json:
        """One with all that there is to say of it."""
        return {"run": run_json(await self.record(visit))}

    async def update(self, visit: Visit) -> Json:
        """Changes state, end and name."""
        given = visit.given
        status = given.text("status", most=20)
        request = pb.ReportOutsideRunRequest(
            name=_name(visit), display_name=given.text("run_name", most=250), state=state_of(status) if status else None
        )
        ended = given.whole("end_time", 0)
        if ended:
            _set_time(request.end_time, ended, "end_time")
        await self._backend.runs.ReportOutsideRun(request, **visit.call)
        return {"run_info": run_info(await self.record(visit))}

    async def delete(self, visit: Visit) -> Json:
        """Softly."""
        request = pb.DeleteOutsideRunRequest(name=_name(visit))
        await self._backend.runs.DeleteOutsideRun(request, **visit.call)
        return {}

    async def restore(self, visit: Visit) -> Json:
        """Brings one back."""
        request = pb.UndeleteOutsideRunRequest(name=_name(visit))
        await self._backend.runs.UndeleteOutsideRun(request, **visit.call)
        return {}

    async def search(self, visit: Visit) -> Json:
        """The runs of some experiments that meet a filter."""
        request = search_request(visit.org, visit.given)
        if request is None:
            return {"runs": []}
        found = await self._backend.runs.SearchRuns(request, **visit.call)
        answer: Json = {"runs": [run_json(record) for record in found.run_records]}
        return answer | ({"next_page_token": found.next_page_token} if found.next_page_token else {})

    async def log_metric(self, visit: Visit) -> Json:
        """One point."""
        await self._report(visit, metrics=[visit.given])
        return {}

    async def log_parameter(self, visit: Visit) -> Json:
        """One parameter."""
        given = visit.given
        value = given.text("value", most=_LONGEST_PARAM)
        await self._report(visit, parameters={given.text("key", most=250, needed=True): value})
        return {}

    async def log_batch(self, visit: Visit) -> Json:
        """Points, parameters and tags, all or none of them."""
        given = visit.given
        metrics = given.objects("metrics", MOST_METRICS)
        parameters = given.pairs("params", MOST_PARAMS, _LONGEST_PARAM)
        tags = given.pairs("tags", MOST_TAGS, _LONGEST_TAG)
        if len(metrics) + len(parameters) + len(tags) > _MOST_ENTITIES:
            raise ParameterError(
                "metrics", f"metrics, params and tags together have at most {_MOST_ENTITIES:,} entries"
            )
        await self._report(visit, metrics, parameters, tags)
        return {}

    async def set_tag(self, visit: Visit) -> Json:
        """One tag."""
        given = visit.given
        await self._report(
            visit, tags={given.text("key", most=250, needed=True): given.text("value", most=_LONGEST_TAG)}
        )
        return {}

    async def delete_tag(self, visit: Visit) -> Json:
        """Takes a tag away."""
        key = visit.given.text("key", most=250, needed=True)
        record = await self.record(visit)
        if key not in record.tags:
            raise MissingError("tag", key)
        request = pb.ReportOutsideRunRequest(name=record.run.name, removed_tags=[key])
        await self._backend.runs.ReportOutsideRun(request, **visit.call)
        return {}

    async def log_inputs(self, visit: Visit) -> Json:
        """Names and digests of data sets, kept as tags `mlflow.input.{name}`."""
        tags: dict[str, str] = {}
        for one in visit.given.objects("datasets", _MOST_ENTITIES):
            dataset = one.one("dataset")
            said = {name: dataset.text(name, most=500) for name in ("digest", "source_type")}
            name = dataset.text("name", most=200, needed=True)
            tags[f"mlflow.input.{name}"] = json.dumps(said | one.pairs("tags", 20, 500))
        await self._report(visit, tags=tags)
        return {}

    async def refuse_model(self, visit: Visit) -> Json:
        """Models that are pickled."""
        raise UnsupportedError(ADVICE)

    async def no_models(self, _visit: Visit) -> Json:
        """There are none."""
        return {"models": []}

    async def get_history(self, visit: Visit) -> Json:
        """The points of a metric by step. Of several of one step there is the last one."""
        given = visit.given
        key = given.text("metric_key", most=250, needed=True)
        request = pb.ListRunPointsRequest(
            parent=_name(visit),
            key=key,
            page_size=min(_HISTORY_PAGE, max(1, given.whole("max_results", _HISTORY_PAGE))),
            page_token=given.text("page_token", most=1024),
        )
        page = await self._backend.runs.ListRunPoints(request, **visit.call)
        points = [
            {"key": key, "value": number_json(point.value), "timestamp": point.time // 1000, "step": point.step}
            for point in page.run_points
        ]
        return {"metrics": points, **({"next_page_token": page.next_page_token} if page.next_page_token else {})}

    async def record(self, visit: Visit) -> pb.RunRecord:
        """The run that `run_id` names, deleted or not."""
        return await self._backend.runs.GetRunRecord(pb.GetRunRecordRequest(name=_name(visit)), **visit.call)

    async def _report(
        self,
        visit: Visit,
        metrics: list[Given] | None = None,
        parameters: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        tags = dict(tags or {})
        request = pb.ReportOutsideRunRequest(
            name=_name(visit),
            series=series_of(metrics or []),
            parameters=parameters,
            display_name=tags.pop(_RUN_NAME, "")[:250],
            tags=tags,
        )
        if request.series:
            # Points carry their time: the same batch again is a repetition, which is answered and adds nothing.
            request.request_id = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        await self._backend.runs.ReportOutsideRun(request, **visit.call)


def series_of(metrics: list[Given]) -> list[run_metrics_pb2.MetricSeries]:
    """Points as columns by metric."""
    found: dict[str, run_metrics_pb2.MetricSeries] = {}
    for one in metrics:
        key = one.text("key", most=250, needed=True)
        series = found.get(key)
        if series is None:
            series = found[key] = run_metrics_pb2.MetricSeries(key=key)
        series.steps.append(one.whole("step", 0))
        series.times.append(1000 * max(-_LAST_TIME, min(one.whole("timestamp", 0), _LAST_TIME)))
        series.values.append(one.number("value"))
    return list(found.values())


def _name(visit: Visit) -> str:
    """Resource name of the run that `run_id` names."""
    given = visit.given.run_id()
    name = names.run(visit.org, given)
    if name is None:
        raise MissingError("run", given)
    return name


def _set_time(field: Timestamp, milliseconds: int, where: str) -> None:
    # Up to the last second of the year 9999, as a Timestamp has it.
    if not 0 <= milliseconds <= 253_402_300_799_000:
        raise ParameterError(where, "must be milliseconds since 1970")
    field.FromMilliseconds(milliseconds)
