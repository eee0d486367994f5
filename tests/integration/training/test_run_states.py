"""Runs on Ray: one that is paused, resumed, cancelled and retried; own code that is killed or attacks."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from argosy.common.v1 import task_pb2, task_service_pb2
from argosy.training.v1 import algorithm_code_service_pb2 as code
from argosy.training.v1 import algorithm_pb2, model_service_pb2, run_metrics_pb2, training_pb2
from argosy.training.v1 import algorithm_service_pb2 as catalogue
from argosy.training.v1 import run_service_pb2 as runs
from argosy.training.v1 import training_service_pb2 as pb

from tests.integration.training.peers import PROJECT, Caller, spec_of
from tests.integration.training.scripts import left
from tests.quota import RoomForAll

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

RunState = training_pb2.TrainingRun
# One worker takes every step in the carrier, so that nothing but the checkpoint carries the run over a pause.
# Steps enough for a pause and a cancel to come in the middle of them, however fast they are.
STEPS = 1500
SPEC = {"workers": 1, "pretrain": STEPS, "sft": 40, "checkpoint_every": 20}
# Every tenth step, and those of the checkpoints.
REPORTED = sorted({*range(10, STEPS + 1, 10), *range(18, STEPS, 18)})


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
    assert await curve(worker, run.name, "pretrain.loss") == REPORTED
    assert await curve(worker, run.name, "sft.loss") == [10, 12, 20, 30, 40]
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


# Waits in its first attempt behind its third step, for whoever kills it.
COUNTING = """
import argosy_run as run, os, time
begun = run.resumed_step()
print("in", os.getcwd(), "from", begun)
state = run.CHECKPOINT / "state"
count = int(state.read_text()) if begun else 0
for step in range(begun + 1, 7):
    count += step
    state.write_text(str(count))
    run.log_metric(step, count=count)
    run.save_checkpoint(step)
    if step == 3 and not begun:
        time.sleep(120)
(run.OUTPUT / "count.json").write_text(str(count))
"""
# Says what it was told when it left its process and its machine, and then writes for ever.
LEAVING = """
import itertools, os, socket
print("in", os.getcwd())
for leave in (os.fork, lambda: os.execv("/bin/true", ["true"]), lambda: socket.create_connection(("127.0.0.1", 80))):
    try:
        leave()
    except PermissionError as error:
        print("refused:", error)
for number in itertools.count():
    with open(f"output/{number}", "wb") as file:
        file.write(bytes(1 << 20))
"""


async def started(caller: Caller, id: str, source: str) -> training_pb2.TrainingRun:
    """A run of a script that reads no data."""
    name = f"orgs/acme/algorithms/{id}"
    draft = f"{name}/draft"
    await caller.CreateAlgorithm(
        catalogue.CreateAlgorithmRequest(parent="orgs/acme", algorithm_id=id, algorithm=algorithm_pb2.Algorithm())
    )
    await caller.PutAlgorithmDraftFile(code.PutAlgorithmDraftFileRequest(name=draft, path="main.py", content=source))
    limits = algorithm_pb2.CodeLimits(max_disk_bytes=8 << 20)
    settled = code.AlgorithmDraft(name=draft, without_data=True, limits=limits)
    await caller.UpdateAlgorithmDraft(code.UpdateAlgorithmDraftRequest(algorithm_draft=settled))
    version = await caller.PublishAlgorithmDraft(code.PublishAlgorithmDraftRequest(name=draft))
    given = training_pb2.Training(
        model_project=PROJECT, algorithm_version=version.name, spec=training_pb2.TrainingSpec(seed=7)
    )
    made = await caller.CreateTraining(pb.CreateTrainingRequest(parent="orgs/acme", training_id=id, training=given))
    return await caller.RunTraining(pb.RunTrainingRequest(name=made.name))


async def printed(caller: Caller, task: str) -> list[str]:
    logs = await caller.ListTaskLogs(task_service_pb2.ListTaskLogsRequest(parent=task, page_size=1000))
    return [line.body for line in logs.logs]


async def all_given_back(quota: RoomForAll) -> None:
    async with asyncio.timeout(10):
        while set(quota.settled) != set(quota.held):
            await asyncio.sleep(0.1)


async def test_own_code_goes_on_where_its_killed_carrier_was(worker: Caller, quota: RoomForAll) -> None:
    await worker.project()
    run = await started(worker, "counting", COUNTING)
    async with asyncio.timeout(60):
        while (await worker.GetTrainingRun(pb.GetTrainingRunRequest(name=run.name))).checkpoint.step < 3:
            await asyncio.sleep(0.1)
    (script,) = left()
    folder, carrier = Path(script.cwd()), script.parent()
    assert carrier is not None
    carrier.send_signal(signal.SIGKILL)
    # The script goes with its carrier, and the folder with the next attempt.
    script.wait(10)
    assert (await worker.finish(run.task)).state == task_pb2.Task.STATE_SUCCEEDED
    assert not folder.exists()
    assert not left()
    places = [line.split() for line in await printed(worker, run.task) if line.startswith("in ")]
    assert [place[-1] for place in places] == ["0", "3"]
    assert not any(os.path.exists(place[1]) for place in places)
    # Each step was done once.
    assert await curve(worker, run.name, "script.count") == [1, 2, 3, 4, 5, 6]
    done = await worker.GetTrainingRun(pb.GetTrainingRunRequest(name=run.name))
    assert (done.results["count"], done.model_version) == (21, f"{PROJECT}/versions/1")
    request = model_service_pb2.DownloadModelFileRequest(name=done.model_version, path="count.json")
    assert b"".join([part.data async for part in worker.DownloadModelFile(request)]) == b"21"
    assert "WORKER_LOST" in await events(worker, run.name)
    await all_given_back(quota)


async def test_own_code_that_leaves_or_fills_the_disk_ends_and_leaves_nothing(
    worker: Caller, quota: RoomForAll
) -> None:
    await worker.project()
    run = await started(worker, "leaving", LEAVING)
    task = await worker.finish(run.task)
    assert (task.state, task.error.reason) == (task_pb2.Task.STATE_FAILED, "CONTENT_INVALID")
    says = "The script main.py failed: its files took more than the 8 MiB of disk that they may (max_disk_bytes)"
    assert task.error.message == says
    lines = await printed(worker, run.task)
    assert [line for line in lines if "refused" in line] == ["refused: [Errno 1] Operation not permitted"] * 3
    (place,) = [line.split()[1] for line in lines if line.startswith("in ")]
    assert not os.path.exists(place)
    assert not left()
    assert not (await worker.GetTrainingRun(pb.GetTrainingRunRequest(name=run.name))).model_version
    await all_given_back(quota)
