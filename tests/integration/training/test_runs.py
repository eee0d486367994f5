"""Metrics of runs, curves, lists, comparison, clones: over the wire with the real database; no long work."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from argosy.training.v1 import run_metrics_pb2, training_pb2
from argosy.training.v1 import run_service_pb2 as pb
from argosy.training.v1 import training_service_pb2 as training_service
from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy import text, update

from libs.common.clock import SYSTEM_CLOCK
from libs.common.tasks import store as tasks
from libs.common.tasks.tables import tasks as task_rows
from services.training.domain.divergence import OnDivergence
from services.training.domain.trainings import TrainingRun
from services.training.jobs.run_progress import RunProgress
from services.training.store.metrics import OPEN_SEGMENTS
from services.training.store.repositories import TrainingRuns
from tests.integration.training import metric_writer
from tests.integration.training.conftest import training_service as training
from tests.integration.training.peers import Caller, FakeDataset, refusal, spec_of

ORG = "orgs/acme"
TRAINING = f"{ORG}/trainings/packages"
RUN = f"{TRAINING}/runs/1"
START = 1_790_000_000_000_000


@pytest.fixture
async def editor(mesh: Any, dataset: FakeDataset, tmp_path: Path, database_url: str) -> AsyncIterator[Caller]:
    """An editor of acme, with a training and a run of it that nobody carries."""
    async with training(mesh, tmp_path, database_url) as service:
        caller = Caller(mesh, service=service)
        await caller.project()
        await caller.training(labels={"team": "red"})
        await run(caller)
        yield caller
        await caller.close()


async def run(caller: Caller, **fields: Any) -> training_pb2.TrainingRun:
    return await caller.RunTraining(training_service.RunTrainingRequest(name=TRAINING, **fields))


def app(caller: Caller) -> Any:
    assert caller.service is not None
    return caller.service.app


def series(key: str, steps: Any, values: Any, times: Any = None) -> run_metrics_pb2.MetricSeries:
    times = [START + 1000 * int(step) for step in steps] if times is None else times
    return run_metrics_pb2.MetricSeries(key=key, steps=steps, values=values, times=times)


async def report(caller: Caller, *given: run_metrics_pb2.MetricSeries, name: str = RUN, request_id: str = "") -> int:
    request = pb.ReportRunMetricsRequest(name=name, series=given, request_id=request_id)
    return (await caller.ReportRunMetrics(request)).point_count


async def curves(caller: Caller, *keys: str, runs: Any = (RUN,), **fields: Any) -> list[run_metrics_pb2.RunCurve]:
    request = pb.GetRunCurvesRequest(parent=ORG, runs=runs, keys=keys, **fields)
    return list((await caller.GetRunCurves(request)).curves)


async def keys(caller: Caller) -> dict[str, run_metrics_pb2.RunMetricKey]:
    found = await caller.ListRunMetricKeys(pb.ListRunMetricKeysRequest(parent=RUN))
    return {key.key: key for key in found.metric_keys}


async def segments(caller: Caller) -> int:
    async with app(caller).database.reading() as connection:
        return (await connection.execute(text("SELECT count(*) FROM run_metric_segments"))).scalar_one()


async def test_a_repeated_report_adds_nothing(editor: Caller) -> None:
    given = series("sft.loss", range(100), [1 / (step + 1) for step in range(100)])
    for _ in range(3):
        assert await report(editor, given, request_id="batch-1") == 100
    found = (await keys(editor))["sft.loss"]
    assert (found.point_count, found.first_step, found.last_step, found.last_value) == (100, 0, 99, 0.01)
    assert (found.min_value, found.max_value) == (0.01, 1.0)
    other = await refusal(report(editor, series("sft.loss", [1], [1.0]), request_id="batch-1"))
    assert other.reason == "REQUEST_ID_REUSED"
    # The same again under another id: counted, but the curve is what it was.
    await report(editor, given, request_id="batch-2")
    (curve,) = await curves(editor, "sft.loss")
    assert (curve.point_count, len(curve.values)) == (100, 100)


async def test_small_reports_become_few_segments_and_the_last_report_of_a_step_counts(editor: Caller) -> None:
    for number in range(3 * OPEN_SEGMENTS):
        await report(editor, series("sft.loss", [number, number + 1], [float(number), -1.0]))
    assert await segments(editor) <= OPEN_SEGMENTS
    (curve,) = await curves(editor, "sft.loss")
    assert curve.steps == list(range(3 * OPEN_SEGMENTS + 1))
    assert curve.values == [float(number) for number in range(3 * OPEN_SEGMENTS)] + [-1.0]
    await report(editor, series("sft.loss", [7], [700.0]))
    (curve,) = await curves(editor, "sft.loss")
    assert curve.values[7] == 700.0


async def test_reports_at_once_lose_nothing(editor: Caller) -> None:
    """Several calls write the same metrics, named in different orders."""

    async def one(number: int) -> None:
        names = ["a", "b", "c"] if number % 2 else ["c", "b", "a"]
        await report(editor, *[series(name, range(number * 10, number * 10 + 10), [number] * 10) for name in names])

    async with asyncio.TaskGroup() as group:
        for number in range(40):
            group.create_task(one(number))
    for curve in await curves(editor, "a", "b", "c"):
        assert curve.steps == list(range(400))
        assert curve.values == [step // 10 for step in range(400)]


async def test_curves_are_thinned_as_numpy_would(editor: Caller) -> None:
    rng = np.random.default_rng(1)
    values = 3 * np.exp(-np.arange(60_000) / 9000) + rng.normal(0, 0.2, 60_000)
    for start in range(0, 60_000, 20_000):
        part = slice(start, start + 20_000)
        await report(editor, series("sft.loss", range(start, start + 20_000), values[part]))
    (curve,) = await curves(editor, "sft.loss", max_points=502)
    assert (curve.point_count, len(curve.times)) == (60_000, 0)
    # 250 parts of 240 steps: of each the least and the greatest value, and the ends of the curve.
    wanted = {0, 59_999}
    for part in range(250):
        own = values[part * 240 : (part + 1) * 240]
        wanted |= {part * 240 + int(own.argmin()), part * 240 + int(own.argmax())}
    assert curve.steps == sorted(wanted)
    assert curve.values == [values[step] for step in sorted(wanted)]
    (whole,) = await curves(editor, "sft.loss", max_points=60_000, first_step=100, last_step=59_000)
    assert whole.values == values[100:59_001].tolist()
    (timed,) = await curves(editor, "sft.loss", max_points=100, axis=pb.CURVE_AXIS_TIME)
    assert len(timed.times) == len(timed.values) <= 100
    assert timed.times[-1] == START + 59_999_000
    too_many = await refusal(curves(editor, *[f"k{number}" for number in range(50)], max_points=100_000))
    assert too_many.metadata["field"] == "max_points"


async def test_what_is_not_finite_is_kept(editor: Caller) -> None:
    await report(editor, series("sft.loss", [1, 2, 3, 4], [1.0, math.nan, math.inf, -math.inf]))
    (curve,) = await curves(editor, "sft.loss")
    assert [str(value) for value in curve.values] == ["1.0", "nan", "inf", "-inf"]
    found = (await keys(editor))["sft.loss"]
    assert (found.min_value, found.max_value, found.last_value) == (1.0, 1.0, -math.inf)
    await report(editor, series("nothing", [1], [math.nan]))
    assert not (await keys(editor))["nothing"].HasField("min_value")
    request = pb.RenderRunCurvesRequest(parent=ORG, runs=[RUN], keys=["sft.loss", "missing"])
    svg = (await editor.RenderRunCurves(request)).svg
    assert svg.startswith("<svg")
    assert "packages/1" in svg
    assert "not finite from 2" in svg


@pytest.mark.parametrize(
    ("given", "field", "problem"),
    [
        (series("k", [1, 2], [1.0]), "series[0].steps", "has 2 entries beside 1 values"),
        (series("k", [1], [1.0], [1, 2]), "series[0].times", "has 2 entries beside 1 values"),
        (series("k", [1, -2], [1.0, 2.0]), "series[0].steps[1]", "must be from 0 to"),
        (series("k", [1, 1 << 60], [1.0, 2.0], [1, 2]), "series[0].steps[1]", "must be from 0 to"),
        (series("k", [1], [1.0], [1 << 62]), "series[0].times[0]", "must be from 0 to"),
        (series("k\n", [1], [1.0]), "series[0].key", ""),
    ],
)
async def test_a_report_that_is_wrong_names_its_point(editor: Caller, given: Any, field: str, problem: str) -> None:
    error = await refusal(report(editor, given))
    assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", field)
    assert problem in error.message


async def test_runs_of_others_are_not_there(editor: Caller) -> None:
    await report(editor, series("sft.loss", [1], [1.0]))
    rival = editor.other(org="rival", subject="users/mallory")
    request = pb.GetRunCurvesRequest(parent="orgs/rival", runs=[RUN], keys=["sft.loss"])
    assert (await refusal(rival.GetRunCurves(request))).reason == "NOT_FOUND"
    comparison = pb.CompareRunsRequest(parent="orgs/rival", runs=[RUN, f"{TRAINING}/runs/2"])
    assert (await refusal(rival.CompareRuns(comparison))).reason == "NOT_FOUND"
    assert (await refusal(report(rival, series("sft.loss", [1], [2.0])))).reason == "NOT_FOUND"
    listed = training_service.ListTrainingRunsRequest(parent="orgs/rival/trainings/-", filter="labels.team = red")
    assert not (await rival.ListTrainingRuns(listed)).training_runs
    await rival.close()


async def finish(caller: Caller, name: str, loss: float, state: str = "SUCCEEDED") -> None:
    async with app(caller).database.system() as uow:
        runs = TrainingRuns(uow)
        found = await runs.get(name, for_update=True)
        found.state, found.results = state, {"sft.last_loss": loss}
        await runs.save(found)


async def listed(caller: Caller, parent: str = f"{ORG}/trainings/-", **fields: Any) -> list[str]:
    """All pages of a list, two runs a page."""
    found: list[str] = []
    token = ""
    while True:
        request = training_service.ListTrainingRunsRequest(parent=parent, page_size=2, page_token=token, **fields)
        page = await caller.ListTrainingRuns(request)
        found += [each.name.removeprefix(f"{ORG}/trainings/") for each in page.training_runs]
        token = page.next_page_token
        if not token:
            return found


async def test_lists_filter_and_sort_by_anything(editor: Caller) -> None:
    for _ in range(4):
        await run(editor)
    clone = pb.CloneTrainingRequest(
        name=RUN,
        training_id="other",
        training=training_pb2.Training(labels={"team": "blue"}, spec=training_pb2.TrainingSpec(seed=99)),
        update_mask=FieldMask(paths=["labels", "spec.seed"]),
    )
    await editor.CloneTraining(clone)
    await editor.RunTraining(training_service.RunTrainingRequest(name=f"{ORG}/trainings/other"))
    for number, loss in ((1, 0.5), (2, 0.3), (3, 1.5), (4, 0.3)):
        await finish(editor, f"{TRAINING}/runs/{number}", loss)
    await finish(editor, f"{ORG}/trainings/other/runs/1", 0.1, "FAILED")
    own = [f"packages/runs/{number}" for number in range(1, 6)]
    everything = [*own, "other/runs/1"]
    assert await listed(editor) == everything[::-1]
    assert await listed(editor, order_by="create_time") == everything
    assert await listed(editor, TRAINING) == own[::-1]
    assert await listed(editor, TRAINING, order_by="create_time") == own
    by_loss = await listed(editor, order_by="results.sft.last_loss")
    # A run without the result is left out; of two with the same one the order is fixed, whichever it is.
    assert (by_loss[0], set(by_loss[1:3]), by_loss[3:]) == ("other/runs/1", {own[1], own[3]}, [own[0], own[2]])
    assert await listed(editor, order_by="results.sft.last_loss desc") == by_loss[::-1]
    low = "results.sft.last_loss < 0.5"
    assert set(await listed(editor, filter=low)) == {own[1], own[3], "other/runs/1"}
    assert set(await listed(editor, filter=f"{low} AND state = SUCCEEDED")) == {own[1], own[3]}
    assert await listed(editor, TRAINING, filter="state != SUCCEEDED") == [own[4]]
    assert await listed(editor, filter="labels.team = blue") == ["other/runs/1"]
    assert await listed(editor, filter="spec.seed = 99") == ["other/runs/1"]
    assert await listed(editor, filter="spec.seed != 99", order_by="create_time") == own
    assert await listed(editor, filter="training = other AND spec.sft.learning_rate <= 0.01") == ["other/runs/1"]
    assert await listed(editor, filter="create_time < 2020-01-01") == []
    assert await listed(editor, filter="creator = users/alice AND state = QUEUED") == [own[4]]


async def test_a_page_of_another_query_is_refused(editor: Caller) -> None:
    await run(editor)
    request = training_service.ListTrainingRunsRequest(
        parent=f"{ORG}/trainings/-", page_size=1, order_by="create_time", filter="labels.team = red"
    )
    first = await editor.ListTrainingRuns(request)
    request.filter, request.page_token = "labels.team = blue", first.next_page_token
    assert (await refusal(editor.ListTrainingRuns(request))).reason == "PAGE_TOKEN_INVALID"
    wrong = training_service.ListTrainingRunsRequest(parent=f"{ORG}/trainings/-", filter="state = FAILED OR x = 1")
    error = await refusal(editor.ListTrainingRuns(wrong))
    assert error.metadata["field"] == "filter"
    assert "at character 16: expected AND" in error.message


async def test_what_was_found_by_something_else_is_found_no_more(editor: Caller) -> None:
    """Terms follow the run: one state at a time."""
    await finish(editor, RUN, 2.0, "FAILED")
    await finish(editor, RUN, 3.0, "SUCCEEDED")
    assert await listed(editor, filter="state = FAILED") == []
    assert await listed(editor, filter="results.sft.last_loss < 2.5") == []
    assert await listed(editor, filter="state = SUCCEEDED AND results.sft.last_loss = 3") == ["packages/runs/1"]


async def test_a_comparison_shows_what_differs(editor: Caller) -> None:
    changed = training_pb2.Training(name=TRAINING, spec=spec_of(seed=8, sft=21))
    mask = FieldMask(paths=["spec"])
    await editor.UpdateTraining(training_service.UpdateTrainingRequest(training=changed, update_mask=mask))
    second = (await run(editor)).name
    await finish(editor, RUN, 0.5)
    found = await editor.CompareRuns(pb.CompareRunsRequest(parent=ORG, runs=[RUN, second]))
    assert {each.name: dict(each.values) for each in found.parameters} == {
        "spec.seed": {RUN: "7", second: "8"},
        "spec.sft.steps": {RUN: "20", second: "21"},
    }
    assert [(each.name, dict(each.values)) for each in found.results] == [("sft.last_loss", {RUN: 0.5})]


async def test_a_clone_is_what_the_run_was(editor: Caller) -> None:
    before = await editor.GetTraining(training_service.GetTrainingRequest(name=TRAINING))
    changed = training_pb2.Training(name=TRAINING, spec=spec_of(seed=8))
    mask = FieldMask(paths=["spec"])
    await editor.UpdateTraining(training_service.UpdateTrainingRequest(training=changed, update_mask=mask))
    request = pb.CloneTrainingRequest(
        name=RUN,
        training_id="again",
        training=training_pb2.Training(display_name="once more", spec=training_pb2.TrainingSpec(workers=1)),
        update_mask=FieldMask(paths=["display_name", "spec.workers"]),
        request_id="clone-1",
    )
    made = await editor.CloneTraining(request)
    assert (await editor.CloneTraining(request)).uid == made.uid
    wanted = before.spec
    wanted.workers = 1
    assert (made.spec, made.display_name, made.labels) == (wanted, "once more", {"team": "red"})
    assert made.dataset_version == before.dataset_version
    request.training.spec.workers, request.request_id = 5000, ""
    assert (await refusal(editor.CloneTraining(request))).metadata["field"] == "training.spec.workers"
    taken = pb.CloneTrainingRequest(name=RUN, training_id="again")
    assert (await refusal(editor.CloneTraining(taken))).reason == "ALREADY_EXISTS"
    for path in ("creator", "spec.colour", "labels.team"):
        wrong = pb.CloneTrainingRequest(name=RUN, update_mask=FieldMask(paths=[path]))
        assert (await refusal(editor.CloneTraining(wrong))).metadata["field"] == "update_mask"


async def carried(caller: Caller, name: str = RUN) -> tuple[TrainingRun, Any]:
    async with app(caller).database.system(read_only=True) as uow:
        found = await TrainingRuns(uow).get(name)
        return found, await tasks.get(uow, found.task)


def reported(losses: list[float], first: int = 0) -> list[dict[str, Any]]:
    """What an engine says, as its carrier hands it over."""
    return [
        {
            "kind": "metrics",
            "phase": "sft",
            "step": first + number,
            "values": {"loss": loss, "eta_seconds": 5.0},
            "time": "2026-01-02T03:04:05+00:00",
        }
        for number, loss in enumerate(losses)
    ]


async def hear(caller: Caller, losses: list[float], first: int = 0) -> Any:
    _, task = await carried(caller)
    async with app(caller).database.system() as uow:
        return await RunProgress(SYSTEM_CLOCK).metrics(task, reported(losses, first), uow)


async def events(caller: Caller) -> list[run_metrics_pb2.RunEvent]:
    return list((await caller.ListRunEvents(pb.ListRunEventsRequest(parent=RUN))).events)


async def test_what_the_engine_reports_is_a_curve_and_a_jump_an_alert(editor: Caller) -> None:
    assert await hear(editor, [1.0 + 0.01 * (step % 5) for step in range(40)]) is None
    assert set(await keys(editor)) == {"sft.loss"}
    assert await hear(editor, [8.0, 9.0], 40) is None
    assert await hear(editor, [10.0, 11.0], 42) is None
    alerts = [event for event in await events(editor) if event.kind == run_metrics_pb2.RunEvent.KIND_ALERT]
    assert [event.message for event in alerts] == ["the loss of sft has jumped to 10 at step 42"]
    assert dict(alerts[0].details) == {"phase": "sft", "step": "42"}


async def test_a_jump_stops_a_run_that_asks_for_it(editor: Caller) -> None:
    async with app(editor).database.system() as uow:
        runs = TrainingRuns(uow)
        found = await runs.get(RUN, for_update=True)
        found.spec = replace(found.spec, on_divergence=OnDivergence.STOP)
        await runs.save(found)
    await hear(editor, [1.0 + 0.01 * (step % 5) for step in range(40)])
    error = await hear(editor, [8.0, math.nan, 10.0], 40)
    assert (error.reason, error.metadata) == ("TRAINING_DIVERGED", {"phase": "sft", "step": "42"})
    # What was reported is there all the same.
    assert (await curves(editor, "sft.loss"))[0].steps == list(range(43))


async def move(caller: Caller, state: str) -> None:
    """The task as its worker would leave it, and the run with it."""
    found, task = await carried(caller)
    async with app(caller).database.system() as uow:
        values = {"state": state, "pause_requested": False}
        await (await uow.connection()).execute(update(task_rows).where(task_rows.c.uid == task.uid).values(values))
        runs = TrainingRuns(uow)
        found = await runs.get(RUN, for_update=True)
        found.state = state
        await runs.save(found)


async def test_pause_resume_and_retry_hold_to_the_states(editor: Caller) -> None:
    assert (await refusal(editor.ResumeTrainingRun(pb.ResumeTrainingRunRequest(name=RUN)))).reason == "STATE_CONFLICT"
    assert (await refusal(editor.RetryTrainingRun(pb.RetryTrainingRunRequest(name=RUN)))).reason == "STATE_CONFLICT"
    asked = await editor.PauseTrainingRun(pb.PauseTrainingRunRequest(name=RUN, request_id="p"))
    assert asked.state == training_pb2.TrainingRun.STATE_QUEUED
    assert (await carried(editor))[1].pause_requested
    await move(editor, "PAUSED")
    error = await refusal(editor.PauseTrainingRun(pb.PauseTrainingRunRequest(name=RUN)))
    assert error.message == f"{RUN} is paused; only a queued or running run can be paused."
    resumed = await editor.ResumeTrainingRun(pb.ResumeTrainingRunRequest(name=RUN))
    assert resumed.state == training_pb2.TrainingRun.STATE_QUEUED
    assert (await carried(editor))[1].state == "QUEUED"
    await move(editor, "FAILED")
    assert (await editor.RetryTrainingRun(pb.RetryTrainingRunRequest(name=RUN))).state == resumed.state
    # Nobody works on a paused task; it is queued for the worker that ends it.
    await move(editor, "PAUSED")
    await editor.CancelTrainingRun(pb.CancelTrainingRunRequest(name=RUN))
    assert [(await carried(editor))[1].state, (await carried(editor))[1].cancel_requested] == ["QUEUED", True]
    kinds = [run_metrics_pb2.RunEvent.Kind.Name(event.kind) for event in await events(editor)]
    assert kinds == ["KIND_CREATED", "KIND_RESUMED", "KIND_RETRIED"]


async def test_a_killed_writer_loses_nothing_accepted_and_adds_nothing_twice(editor: Caller, database_url: str) -> None:
    """kill -9 between two statements, whichever they are; whoever repeats every batch makes it whole."""
    found, _ = await carried(editor)
    command = [sys.executable, "-m", "tests.integration.training.metric_writer", database_url, found.uid]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    told = -1
    # Behind a joining of segments.
    while told < 2 * OPEN_SEGMENTS + 7:
        told = int(await process.stdout.readline())
    process.kill()
    told = max([told, *[int(line) for line in (await process.stdout.read()).split()]])
    await process.wait()
    there = (await keys(editor))["a"].point_count // metric_writer.STEPS
    assert there in (told + 1, told + 2)
    added = [await metric_writer.write(app(editor).database, found.uid, number) for number in range(there + 3)]
    assert added == [False] * there + [True] * 3
    for curve in await curves(editor, "a", "b", max_points=10_000):
        assert curve.steps == list(range((there + 3) * metric_writer.STEPS))
        assert curve.values == [step * (1.0 if curve.key == "a" else 0.5) for step in curve.steps]
    assert (await keys(editor))["b"].point_count == (there + 3) * metric_writer.STEPS
