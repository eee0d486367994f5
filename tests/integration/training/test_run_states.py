"""A run that is paused, resumed, cancelled and retried, on Ray."""

from __future__ import annotations

import asyncio

import pytest
from argosy.common.v1 import task_pb2
from argosy.training.v1 import model_service_pb2, run_metrics_pb2, training_pb2
from argosy.training.v1 import run_service_pb2 as runs
from argosy.training.v1 import training_service_pb2 as pb

from tests.integration.training.peers import PROJECT, Caller, spec_of
from tests.quota import RoomForAll

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

RunState = training_pb2.TrainingRun
# One worker takes every step in the carrier, so that nothing but the checkpoint carries the run over a pause.
# Steps enough for a pause and a cancel to come in the middle of them, however fast they are.
STEPS = 1500
SPEC = {"workers": 1, "pretrain": STEPS, "sft": 40, "checkpoint_every": 20}


async def curve(caller: Caller, run: str, key: str) -> list[int]:
    """The steps of a curve."""
    request = runs.GetRunCurvesRequest(parent="orgs/acme", runs=[run], keys=[key])
    (found,) = (await caller.GetRunCurves(request)).curves
    return list(found.steps)


async def events(caller: Caller, run: str) -> list[str]:
    found = await caller.ListRunEvents(runs.ListRunEventsRequest(parent=run, page_size=1000))
    names = [run_metrics_pb2.RunEvent.Kind.Name(event.kind).removeprefix("KIND_") for event in found.events]
    return [name for name in names if name != "CHECKPOINT"]


async def reached(caller: Caller, task: str, step: int) -> None:
    """Returns when the first phase has reported a step."""
    async for event in caller.watch(task):
        if event.HasField("metrics") and event.metrics.step >= step:
            return
        assert event.task.state not in (task_pb2.Task.STATE_FAILED, task_pb2.Task.STATE_SUCCEEDED), event.task


async def paused(caller: Caller, task: str) -> task_pb2.Task:
    async for event in caller.watch(task):
        if event.HasField("task") and event.task.state != task_pb2.Task.STATE_RUNNING:
            return event.task
    raise AssertionError("the task was never paused")


async def test_a_run_is_paused_resumed_cancelled_and_retried_without_a_seam(worker: Caller, quota: RoomForAll) -> None:
    """That the values are those of a run left alone is tested without Ray, in test_engine.py."""
    await worker.project()
    await worker.training(spec=spec_of(**SPEC))
    run = await worker.RunTraining(pb.RunTrainingRequest(name="orgs/acme/trainings/packages"))
    await reached(worker, run.task, 30)
    asked = await worker.PauseTrainingRun(runs.PauseTrainingRunRequest(name=run.name))
    assert asked.state == RunState.STATE_RUNNING
    assert (await paused(worker, run.task)).state == task_pb2.Task.STATE_PAUSED
    seen = await worker.GetTrainingRun(pb.GetTrainingRunRequest(name=run.name))
    assert seen.state == RunState.STATE_PAUSED
    # It stopped behind the checkpoint that it shows, and nothing came after it.
    stopped = max(await curve(worker, run.name, "pretrain.loss"))
    assert stopped == seen.checkpoint.step < STEPS

    await worker.ResumeTrainingRun(runs.ResumeTrainingRunRequest(name=run.name))
    await reached(worker, run.task, stopped + 30)
    await worker.CancelTrainingRun(runs.CancelTrainingRunRequest(name=run.name))
    assert (await worker.finish(run.task)).state == task_pb2.Task.STATE_CANCELLED
    seen = await worker.GetTrainingRun(pb.GetTrainingRunRequest(name=run.name))
    assert seen.state == RunState.STATE_CANCELLED
    assert seen.checkpoint.step > stopped

    retried = await worker.RetryTrainingRun(runs.RetryTrainingRunRequest(name=run.name))
    assert retried.state == RunState.STATE_QUEUED
    assert (await worker.finish(run.task)).state == task_pb2.Task.STATE_SUCCEEDED
    done = await worker.GetTrainingRun(pb.GetTrainingRunRequest(name=run.name))
    assert (done.state, done.model_version) == (RunState.STATE_SUCCEEDED, f"{PROJECT}/versions/1")
    assert await curve(worker, run.name, "pretrain.loss") == list(range(10, STEPS + 1, 10))
    assert await curve(worker, run.name, "sft.loss") == [10, 20, 30, 40]
    again = ["STARTED", "PAUSED", "RESUMED", "STARTED", "CANCELLED", "RETRIED", "STARTED", "SUCCEEDED"]
    assert await events(worker, run.name) == ["CREATED", *again]
    await check_keys(worker, done.name)
    await check_storage(worker, quota, run, done.model_version)


async def check_storage(caller: Caller, quota: RoomForAll, run: training_pb2.TrainingRun, name: str) -> None:
    """Of three rooms, the first two kept a checkpoint, each until the next one was left; the last keeps the model."""
    version = await caller.GetModelVersion(model_service_pb2.GetModelVersionRequest(name=name))
    rooms = list(quota.held.values())
    size = sum(file.size for file in version.files)
    async with asyncio.timeout(10):
        while list(quota.kept.values()) != [0, 0, size]:
            await asyncio.sleep(0.1)
    assert list(quota.kept) == [room.reservation_id for room in rooms]
    estimated = run.costs.estimate.storage_bytes
    assert rooms[0].needs.storage_bytes == estimated
    # What is kept already is not asked for again: weights and two moments in single precision.
    checkpoint = estimated - rooms[1].needs.storage_bytes
    assert checkpoint == pytest.approx(version.parameter_count * 12, rel=0.1)
    assert estimated - rooms[2].needs.storage_bytes == pytest.approx(checkpoint, rel=0.01)


async def check_keys(caller: Caller, run: str) -> None:
    found = (await caller.ListRunMetricKeys(runs.ListRunMetricKeysRequest(parent=run))).metric_keys
    names = ("cpu_share", "gradient_norm", "learning_rate", "loss", "resident_bytes", "tokens_per_second")
    assert [key.key for key in found] == [f"{phase}.{name}" for phase in ("pretrain", "sft") for name in names]
    figures = {key.key: key for key in found}
    assert 0.2 < figures["pretrain.cpu_share"].max_value < 1.5
    assert figures["sft.resident_bytes"].last_value > 100 << 20
