"""`/v1/fine_tuning/jobs`. https://platform.openai.com/docs/api-reference/fine-tuning

A job is a training with one run; its labels hold what OpenAI says of a job and training does not.
"""

from __future__ import annotations

import asyncio
import hashlib
import re

import orjson
from argosy.common.v1 import task_pb2
from argosy.training.v1 import training_pb2

from libs.common.errors import ArgosyError
from services.gateway.clients import trainings as labels
from services.gateway.clients.applications import Metadata
from services.gateway.clients.datasets import Datasets, StoredFile
from services.gateway.clients.trainings import Job, Trainings
from services.gateway.domain import openai_names as names
from services.gateway.domain.fine_tuning import Plan, plan, usual_rate
from services.gateway.http.caller import Authenticator, Caller
from services.gateway.http.door import Handler
from services.gateway.http.exchange import JSON, Exchange
from services.gateway.http.openai.base_models import BaseModels, base_name
from services.gateway.http.openai.errors import MissingError, ParameterError
from services.gateway.http.openai.guard import admit, guarded
from services.gateway.http.openai.job_answers import (
    ENDED,
    checkpoint_object,
    event_objects,
    event_sequence,
    job_object,
    metadata_of,
    status,
)
from services.gateway.http.openai.job_parameters import DPO, HYPERPARAMETERS, SUPERVISED, JobRequest, parse_job
from services.gateway.http.openai.listing import first, list_body, parse_listing
from services.gateway.http.transcode import parse_json

_BODY_BYTES = 256 * 1024
_PATH = re.compile(r"/v1/fine_tuning/jobs/([^/]{1,128})(?:/(cancel|pause|resume|events|checkpoints))?\Z")
_ASKED = {None: "GET", "events": "GET", "checkpoints": "GET", "cancel": "POST", "pause": "POST", "resume": "POST"}
# OpenAI's default page.
_PAGE = 20
_MOST_LISTED = 100
_MOST_EVENTS = 1000
# Behind every sequence.
_NEWEST = (1 << 63) - 1
# A job may be asked for in the moment after its files were uploaded.
_FILE_SECONDS = 60.0
_METHODS = {SUPERVISED: training_pb2.Phase.METHOD_SFT, DPO: training_pb2.Phase.METHOD_DPO}
# Columns of the rows that each method learns from, that of the conversation first, and what a file has with them.
_COLUMNS = {SUPERVISED: ("messages",), DPO: ("prompt", "chosen", "rejected")}
_HOLDS = {SUPERVISED: "conversations", DPO: "preferences"}
_WARMUP = 0.1
_MOST_STEPS_UNSAVED = 200


class Jobs:
    """Handlers of the jobs.

    Args:
        authenticator: knows keys and tokens.
        datasets: keep the files.
        trainings: do the work.
        models: know the models to begin with.
    """

    def __init__(
        self, authenticator: Authenticator, datasets: Datasets, trainings: Trainings, models: BaseModels
    ) -> None:
        self._authenticator = authenticator
        self._datasets = datasets
        self._trainings = trainings
        self._models = models

    def handlers(self) -> dict[str, dict[str, Handler]]:
        """Path -> HTTP method -> handler."""
        return {"/v1/fine_tuning/jobs": {"POST": self.create, "GET": self.listed}}

    def prefixed(self) -> dict[str, dict[str, Handler]]:
        """Path prefix -> HTTP method -> handler."""
        return {"/v1/fine_tuning/jobs/": {"GET": self.one, "POST": self.one}}

    async def create(self, exchange: Exchange) -> None:
        """POST /v1/fine_tuning/jobs."""
        await guarded(exchange, self._create(exchange))

    async def listed(self, exchange: Exchange) -> None:
        """GET /v1/fine_tuning/jobs."""
        await guarded(exchange, self._list(exchange))

    async def one(self, exchange: Exchange) -> None:
        """/v1/fine_tuning/jobs/{fine_tuning_job_id} and what is below it."""
        await guarded(exchange, self._one(exchange))

    async def _create(self, exchange: Exchange) -> None:
        caller = await admit(exchange, self._authenticator)
        body = await exchange.body(_BODY_BYTES)
        exchange.require_content_type(JSON)
        request, metadata = parse_job(parse_json(body)), exchange.call_metadata()
        base = await self._models.find(request.model, caller, metadata)
        method = request.method
        training_file = await self._file("training_file", request.training_file, method, caller, metadata)
        validation_file = None
        if request.validation_file:
            validation_file = await self._file("validation_file", request.validation_file, method, caller, metadata)
        rows = training_file.version.row_count if training_file.version is not None else 0
        chosen = plan(request.hyperparameters, rows, await self._base_rate(base, caller, metadata))
        key = exchange.headers.get(b"idempotency-key", b"").decode("ascii", "replace")
        job_id = names.new_id("ftjob", f"{caller.org} {caller.subject}", key)
        training = training_pb2.Training(
            name=names.training(caller.org, job_id),
            display_name=f"Fine-tuning of {base_name(base.name)}",
            labels=_labels(request, job_id, base.name, chosen),
            dataset_version=training_file.dataset.latest_version,
            validation_version=validation_file.dataset.latest_version if validation_file is not None else "",
            model_project=names.model_project(caller.org, job_id),
            base_model_version=base.name,
            spec=_spec(request, job_id, chosen),
        )
        try:
            job = await self._trainings.begin(training, caller, metadata)
        except ArgosyError as error:
            if error.is_reason("PREFLIGHT_FAILED"):
                raise ParameterError("training_file", error.message, "invalid_training_file") from error
            raise
        await exchange.respond(200, orjson.dumps(job_object(job, _now(exchange))))

    async def _file(self, param: str, file_id: str, method: str, caller: Caller, metadata: Metadata) -> StoredFile:
        """A file that has been read without a fault and holds what the method learns from."""
        found = None
        if names.is_file(file_id):
            found = await self._datasets.read(names.dataset(caller.org, file_id), _FILE_SECONDS, caller, metadata)
        if found is None:
            raise MissingError(param, "File", file_id)
        if found.fault:
            raise ParameterError(param, f"{param}: {file_id} cannot be used. {found.fault}", f"invalid_{param}")
        if found.version is None:
            raise ParameterError(param, f"{param}: {file_id} is still being read; ask again.", "file_not_ready")
        if not {column.name for column in found.version.columns}.issuperset(_COLUMNS[method]):
            message = f"{param}: {file_id} does not hold {_HOLDS[method]}, which {method} learns from."
            raise ParameterError(param, message, f"invalid_{param}")
        return found

    async def _base_rate(self, base: training_pb2.ModelVersion, caller: Caller, metadata: Metadata) -> float:
        """The learning rate that a model was made with: that of its run, else the usual one of its size."""
        known = await self._trainings.learning_rate(base.training_run, caller, metadata) if base.training_run else 0.0
        return known or usual_rate(base.parameter_count)

    async def _list(self, exchange: Exchange) -> None:
        caller = await admit(exchange, self._authenticator)
        listing = parse_listing(exchange.query, usual=_PAGE, most=_MOST_LISTED, metadata=True)
        metadata = exchange.call_metadata()
        wanted = {name[len("metadata[") : -1]: value for name, value in listing.others.items()}
        if listing.after and not names.is_job(listing.after):
            raise listing.unknown()
        after = names.training(caller.org, listing.after) if listing.after else ""
        jobs = self._trainings.jobs(after, listing.limit + 1, caller, metadata)
        page, more = await listing.page(job async for job in jobs if wanted.items() <= metadata_of(job).items())
        found = await asyncio.gather(*(self._trainings.state(job, caller, metadata) for job in page))
        await exchange.respond(200, list_body([job_object(job, _now(exchange)) for job in found], more))

    async def _one(self, exchange: Exchange) -> None:
        caller = await admit(exchange, self._authenticator)
        matched = _PATH.match(exchange.path)
        if matched is None or _ASKED[matched[2]] != exchange.method.replace("HEAD", "GET"):
            shown = exchange.path[:200]
            message = f"There is nothing at {exchange.method} {shown}."
            raise ArgosyError("ROUTE_UNKNOWN", message, metadata={"path": shown})
        job_id, action = matched[1], matched[2]
        exchange.route = f"{exchange.method} /v1/fine_tuning/jobs/{{job}}" + (f"/{action}" if action else "")
        metadata = exchange.call_metadata()
        job = None
        if names.is_job(job_id):
            job = await self._trainings.job(names.training(caller.org, job_id), caller, metadata)
        if job is None:
            raise MissingError("fine_tuning_job_id", "fine-tuning job", job_id)
        if action == "events":
            body = await self._events(exchange, job, caller)
        elif action == "checkpoints":
            body = await self._checkpoints(exchange, job, caller)
        else:
            if action == "cancel":
                job = await self._cancel(job, caller, exchange)
            elif action is not None:
                job = await self._pause_or_resume(job, action, caller, exchange)
            body = orjson.dumps(job_object(job, _now(exchange)))
        await exchange.respond(200, body)

    async def _cancel(self, job: Job, caller: Caller, exchange: Exchange) -> Job:
        current = status(job, _now(exchange))
        if job.task is None or current in ENDED:
            message = f"The job {job.id} cannot be cancelled: it is {current}."
            raise ParameterError("fine_tuning_job_id", message, "job_not_cancellable")
        task = await self._trainings.cancel(job.task.name, caller, exchange.call_metadata())
        return Job(job.training, job.run, task)

    async def _pause_or_resume(self, job: Job, action: str, caller: Caller, exchange: Exchange) -> Job:
        """A pause takes until the next checkpoint; the job says `paused` then."""
        metadata = exchange.call_metadata()
        call = self._trainings.pause if action == "pause" else self._trainings.resume
        refused = job.run is None
        if job.run is not None:
            try:
                await call(job.run.name, caller, metadata)
            except ArgosyError as error:
                if not error.is_reason("STATE_CONFLICT"):
                    raise
                refused = True
        if refused:
            message = f"The job {job.id} cannot be {action}d: it is {status(job, _now(exchange))}."
            raise ParameterError("fine_tuning_job_id", message, f"job_cannot_be_{action}d")
        return await self._trainings.state(job.training, caller, metadata)

    async def _events(self, exchange: Exchange, job: Job, caller: Caller) -> bytes:
        listing = parse_listing(exchange.query, usual=_PAGE, most=_MOST_EVENTS)
        before = event_sequence(job, listing.after) if listing.after else _NEWEST
        if before is None:
            raise listing.unknown()
        if before == 0:
            # Behind the first event there is none.
            return list_body([], False)
        # As many of both: the page is among them.
        wanted, logs, metrics = listing.limit + 1, list[task_pb2.TaskLog](), list[task_pb2.TaskMetrics]()
        if job.run is not None:
            call = (job.run.task, before, wanted, caller, exchange.call_metadata())
            logs = await first(wanted, self._trainings.newest_logs(*call))
            metrics = await first(wanted, self._trainings.newest_metrics(*call))
        events = event_objects(job, logs, metrics, not listing.after, _now(exchange))
        return list_body(events[: listing.limit], len(events) > listing.limit)

    async def _checkpoints(self, exchange: Exchange, job: Job, caller: Caller) -> bytes:
        listing = parse_listing(exchange.query, usual=_PAGE, most=_MOST_LISTED)
        task = job.run.task if job.run is not None else ""
        metrics = self._trainings.newest_metrics(task, _NEWEST, _PAGE, caller, exchange.call_metadata())
        found = await checkpoint_object(job, metrics)
        if listing.after and (found is None or found["id"] != listing.after):
            raise listing.unknown()
        return list_body([found] if found is not None and not listing.after else [], False)


def _labels(request: JobRequest, job_id: str, base: str, chosen: Plan) -> dict[str, str]:
    hyperparameters = {name: getattr(chosen, name) for name in HYPERPARAMETERS[request.method]}
    method = {"type": request.method, request.method: {"hyperparameters": hyperparameters}}
    return {
        labels.JOB_LABEL: job_id,
        labels.MODEL_LABEL: request.model,
        labels.BASE_LABEL: base_name(base),
        labels.SUFFIX_LABEL: request.suffix,
        labels.TRAINING_FILE_LABEL: request.training_file,
        labels.VALIDATION_FILE_LABEL: request.validation_file,
        labels.METHOD_LABEL: orjson.dumps(method).decode(),
        labels.METADATA_LABEL: orjson.dumps(request.metadata).decode(),
    }


def _spec(request: JobRequest, job_id: str, chosen: Plan) -> training_pb2.TrainingSpec:
    # The same job has the same seed, also when it is asked for again by its key.
    seed = int(hashlib.sha256(job_id.encode()).hexdigest()[:7], 16) if request.seed is None else request.seed
    phase = training_pb2.Phase(
        method=_METHODS[request.method],
        steps=chosen.steps,
        batch_size=chosen.batch_size,
        learning_rate=chosen.learning_rate,
        warmup_fraction=_WARMUP,
        messages_column=_COLUMNS[request.method][0],
        beta=chosen.beta if request.method == DPO else None,
    )
    return training_pb2.TrainingSpec(
        phases=[phase], seed=seed, checkpoint_every=min(chosen.steps_per_epoch, _MOST_STEPS_UNSAVED)
    )


def _now(exchange: Exchange) -> float:
    return exchange.started.timestamp()
