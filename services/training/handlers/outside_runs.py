"""Runs that Argosy did not start, and what any run has to show."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from argosy.training.v1 import outside_run_service_pb2 as pb
from argosy.training.v1 import training_pb2

from libs.common.db.mapping import timestamp
from libs.common.domain import DomainError, Parent
from libs.common.ids import resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import PageToken, page_size
from services.training.domain.outside_runs import (
    ENDED,
    RunRecord,
    give_parameters,
    require_outside,
    require_outside_run,
)
from services.training.domain.run_query import Condition, Field, Order
from services.training.domain.runs import EventKind, RunEvent, RunState, parameters
from services.training.domain.spec import TrainingSpec
from services.training.domain.trainings import TrainingRun
from services.training.handlers.messages import PAGE_BYTES, run_message
from services.training.handlers.run_metrics import series_from
from services.training.store.metrics import RunMetrics, points_page
from services.training.store.repositories import RUNS_AT_ONCE, TrainingRuns, Trainings
from services.training.store.run_events import RunEvents
from services.training.store.run_query import Life, query_runs, skipped_of
from services.training.store.run_records import Newest, RunRecords

if TYPE_CHECKING:
    from services.training.app import App

_OPERATORS = {
    pb.RunCondition.OPERATOR_EQUAL: "=",
    pb.RunCondition.OPERATOR_NOT_EQUAL: "!=",
    pb.RunCondition.OPERATOR_LESS: "<",
    pb.RunCondition.OPERATOR_AT_MOST: "<=",
    pb.RunCondition.OPERATOR_GREATER: ">",
    pb.RunCondition.OPERATOR_AT_LEAST: ">=",
    pb.RunCondition.OPERATOR_LIKE: "LIKE",
    pb.RunCondition.OPERATOR_ILIKE: "ILIKE",
    pb.RunCondition.OPERATOR_IN: "IN",
    pb.RunCondition.OPERATOR_NOT_IN: "NOT IN",
}


async def create_outside_run(request: pb.CreateOutsideRunRequest, call: Call[App]) -> pb.RunRecord:
    training = await Trainings(call.uow).get(request.parent)
    require_outside(training)
    now, creator = call.clock.now(), call.principal.subject
    run = TrainingRun(
        uid=uuid7(),
        name=f"{training.name}/runs/{request.outside_run_id or resource_id('run')}",
        create_time=now,
        update_time=now,
        creator=creator,
        state=RunState.RUNNING,
        secrecy=training.secrecy,
        lineage=[Parent(training.name, relation="run_of")],
        spec=TrainingSpec(()),
        outside=True,
    )
    give_parameters(run, request.parameters)
    started = request.start_time.ToDatetime(UTC) if request.HasField("start_time") else now
    record = RunRecord(run.uid, run.org, request.display_name, started)
    record.tag(request.tags, [])
    await TrainingRuns(call.uow).insert(run)
    await RunRecords(call.uow).save(record)
    await RunEvents(call.uow).add(run, RunEvent(EventKind.CREATED, now, f"reported by {creator}"))
    call.uow.emit("training.run.created", run)
    return _record(run, record, [])


async def report_outside_run(request: pb.ReportOutsideRunRequest, call: Call[App]) -> pb.ReportOutsideRunResponse:
    series = await series_from(request.series, call.clock.now())
    runs = TrainingRuns(call.uow)
    run = await runs.get(request.name)
    require_outside_run(run)
    state = RunState(training_pb2.TrainingRun.State.Name(request.state)[6:]) if request.state else None
    # Points alone change no other row, so that many writers of one run do not wait for each other's words.
    says_more = state or request.parameters or request.tags or request.removed_tags or request.display_name
    says_more = says_more or request.HasField("end_time") or run.state in ENDED
    if says_more:
        run = await runs.get(request.name, for_update=True)
    if series:
        await RunMetrics(call.uow).report(run.uid, run.org, series)
    if says_more:
        await _tell(run, state, request, call)
    return pb.ReportOutsideRunResponse(point_count=sum(len(given.values) for given in request.series))


async def _tell(run: TrainingRun, state: RunState | None, request: pb.ReportOutsideRunRequest, call: Call[App]) -> None:
    """Stores everything but points."""
    records, now = RunRecords(call.uow), call.clock.now()
    record = (await records.of([run.uid]))[run.uid]
    give_parameters(run, request.parameters)
    record.tag(request.tags, list(request.removed_tags))
    record.display_name = request.display_name or record.display_name
    ends = state in ENDED and run.state != state
    if state is not None:
        run.state = state
        if state not in ENDED:
            record.end_time = None
        elif record.end_time is None or ends:
            record.end_time = now
    if request.HasField("end_time"):
        record.end_time = request.end_time.ToDatetime(UTC)
    await settle(run, call)
    await records.save(record)
    if ends:
        await RunEvents(call.uow).add(run, RunEvent(EventKind(run.state), now, f"{run.state.lower()}, its sender says"))
        call.uow.emit(f"training.run.{run.state.lower()}", run)


async def settle(run: TrainingRun, call: Call[App]) -> None:
    """Stores a run; one that has ended has the newest values of its metrics as results, by which lists find it."""
    if run.state in ENDED:
        newest = (await RunRecords(call.uow).newest([run.uid])).get(run.uid, [])
        run.results = {point.key: point.value for point in newest if math.isfinite(point.value)}
    run.update_time = call.clock.now()
    await TrainingRuns(call.uow).save(run)


async def get_run_record(request: pb.GetRunRecordRequest, call: Call[App]) -> pb.RunRecord:
    return await _read(await TrainingRuns(call.uow).get(request.name, deleted=True), call)


async def delete_outside_run(request: pb.DeleteOutsideRunRequest, call: Call[App]) -> pb.RunRecord:
    runs = TrainingRuns(call.uow)
    run = await runs.get(request.name)
    require_outside_run(run)
    run.require_etag(request.etag)
    return await _read(await runs.soft_delete(run, call.clock.now()), call)


async def undelete_outside_run(request: pb.UndeleteOutsideRunRequest, call: Call[App]) -> pb.RunRecord:
    runs = TrainingRuns(call.uow)
    run = await runs.get(request.name, deleted=True)
    run.require_etag(request.etag)
    return await _read(await runs.undelete(run, call.clock.now()), call)


async def search_runs(request: pb.SearchRunsRequest, call: Call[App]) -> pb.SearchRunsResponse:
    org = request.parent.split("/")[1]
    conditions = [_condition(given, number) for number, given in enumerate(request.conditions)]
    orders = [_order(given, number) for number, given in enumerate(request.orders)]
    foreign = next((name for name in request.trainings if name.split("/")[1] != org), None)
    if foreign is not None:
        raise DomainError("NOT_FOUND", f"{foreign} does not exist.", name=foreign)
    life = Life(pb.SearchRunsRequest.Life.Name(request.life)[5:]) if request.life else Life.ACTIVE
    size, skipped = page_size(request.page_size), skipped_of(PageToken.decode(request))
    found = await query_runs(
        TrainingRuns(call.uow), org, request.trainings, conditions, orders, life, size + 1, skipped
    )
    answer, size_bytes = pb.SearchRunsResponse(), 0
    async for message in _in_turn(found[:size], call):
        size_bytes += message.ByteSize()
        if answer.run_records and size_bytes > PAGE_BYTES:
            break
        answer.run_records.append(message)
    taken = len(answer.run_records)
    answer.next_page_token = PageToken.encode(request, str(skipped + taken) if taken < len(found) else "")
    return answer


async def _in_turn(uids: Sequence[str], call: Call[App]) -> AsyncIterator[pb.RunRecord]:
    """The records of runs, few of them in memory at a time."""
    for start in range(0, len(uids), RUNS_AT_ONCE):
        for message in await _messages(await TrainingRuns(call.uow).of(uids[start : start + RUNS_AT_ONCE]), call):
            yield message


async def list_run_points(request: pb.ListRunPointsRequest, call: Call[App]) -> pb.ListRunPointsResponse:
    run = await TrainingRuns(call.uow).get(request.parent)
    size = page_size(request.page_size, default=1_000, maximum=25_000)
    position = PageToken.decode(request)
    first = max(request.first_step, skipped_of(position))
    points, following = await points_page(RunMetrics(call.uow), run.uid, request.key, first, size)
    columns = zip(points.steps.tolist(), points.times.tolist(), points.values.tolist(), strict=True)
    return pb.ListRunPointsResponse(
        run_points=[pb.RunPoint(step=step, time=time, value=value) for step, time, value in columns],
        next_page_token=PageToken.encode(request, "" if following is None else str(following)),
    )


async def _read(run: TrainingRun, call: Call[App]) -> pb.RunRecord:
    return (await _messages([run], call))[0]


async def _messages(runs: Sequence[TrainingRun], call: Call[App]) -> list[pb.RunRecord]:
    """Runs with what else there is to say of them."""
    store, uids = RunRecords(call.uow), [run.uid for run in runs]
    records, newest = await store.of(uids), await store.newest(uids)
    return [_record(run, records.get(run.uid), newest.get(run.uid, [])) for run in runs]


def _record(run: TrainingRun, record: RunRecord | None, newest: Sequence[Newest]) -> pb.RunRecord:
    # What an algorithm and a sender call parameters stands without a prefix.
    given = {name: value for name, value in parameters(run).items() if not name.startswith("parameters.")}
    message = pb.RunRecord(
        run=run_message(run),
        parameters={name: _text(value) for name, value in (given | run.parameters).items()},
        metrics=[pb.NewestPoint(key=one.key, step=one.step, time=one.time, value=one.value) for one in newest],
        start_time=timestamp(record.start_time if record else run.create_time),
    )
    ended: datetime | None = run.update_time if run.state in ENDED else None
    if record is not None:
        message.display_name, ended = record.display_name, record.end_time
        message.tags.update(record.tags)
    if ended is not None:
        message.end_time.CopyFrom(timestamp(ended))
    return message


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _condition(given: pb.RunCondition, number: int) -> Condition:
    field = Field(pb.RunCondition.Field.Name(given.field)[6:])
    condition = Condition(field, given.key, _OPERATORS[given.operator], tuple(given.texts), given.number)
    condition.check(f"conditions[{number}]")
    return condition


def _order(given: pb.RunOrder, number: int) -> Order:
    order = Order(Field(pb.RunCondition.Field.Name(given.field)[6:]), given.key, given.descending)
    order.check(f"orders[{number}]")
    return order
