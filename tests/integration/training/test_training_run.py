"""A run from request to model version, with Ray Train on two workers, each on a node of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from argosy.common.v1 import resource_pb2, task_pb2, task_service_pb2
from argosy.training.v1 import model_service_pb2, training_pb2
from argosy.training.v1 import training_service_pb2 as pb
from google.protobuf.field_mask_pb2 import FieldMask
from safetensors import safe_open
from sqlalchemy import text

from libs.common.testing.ray import RunningRay, ray_head
from tests.integration.training.peers import HELDOUT, PROJECT, TRAIN, Caller, FakeDataset, spec_of
from tests.quota import RoomForAll

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def ray() -> Iterator[RunningRay]:
    """Two nodes with room for one worker each."""
    with ray_head(num_cpus=1) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        running.join()
        yield running


async def run(caller: Caller, **fields: Any) -> training_pb2.TrainingRun:
    await caller.project()
    training = await caller.training(**fields)
    return await caller.RunTraining(pb.RunTrainingRequest(name=training.name, request_id="run-1"))


async def events(caller: Caller, kind: str) -> int:
    """How many events of a type are in the outbox."""
    assert caller.service is not None
    async with caller.service.app.database.reading() as connection:  # type: ignore[union-attr]
        found = await connection.execute(text("SELECT count(*) FROM outbox WHERE type = :kind"), {"kind": kind})
        return found.scalar_one()


async def test_run_makes_a_model_version(
    worker: Caller, dataset: FakeDataset, quota: RoomForAll, tmp_path: Path
) -> None:
    started = await run(worker)
    assert started.name == "orgs/acme/trainings/packages/runs/1"
    assert (await run_again(worker)).name == started.name
    task = await worker.finish(started.task)
    assert task.state == task_pb2.Task.STATE_SUCCEEDED, task
    assert task.cost["tokens"] > 0

    done = await worker.GetTrainingRun(pb.GetTrainingRunRequest(name=started.name))
    assert done.model_version == f"{PROJECT}/versions/1" == task.result["model_version"]
    assert done.results["pretrain.heldout_loss_after"] < done.results["pretrain.heldout_loss_before"]
    assert done.results["sft.last_loss"] < done.results["sft.first_loss"]
    assert done.framework["ray"]
    assert done.checkpoint.phase == "sft"
    assert dataset.holders == [started.task] * 2

    version = await worker.GetModelVersion(model_service_pb2.GetModelVersionRequest(name=done.model_version))
    assert version.state == training_pb2.ModelVersion.STATE_REGISTERED
    assert version.secrecy == resource_pb2.SECRECY_CONFIDENTIAL
    assert {(parent.name, parent.digest, parent.relation) for parent in version.lineage.parents} == {
        (done.name, "", "made_by"),
        (TRAIN, dataset.digests[TRAIN], "trained_on"),
        (HELDOUT, dataset.digests[HELDOUT], "validated_on"),
    }
    assert dataset.digests[TRAIN] in version.model_card
    # Both phases read one text column, which is compared once.
    assert dataset.compared == [f"{HELDOUT} in {TRAIN} by text"]
    assert done.results["leaked_share"] == 0
    assert "0.00% of the held-out rows are in what it learned from" in version.model_card
    assert await events(worker, "training.model_version.created") == 1
    assert await events(worker, "training.run.succeeded") == 1

    metrics = await worker.ListTaskMetrics(task_service_pb2.ListTaskMetricsRequest(parent=started.task))
    assert {point.phase for point in metrics.metrics} == {"pretrain", "sft"}
    assert all(point.values["tokens_per_second"] > 0 for point in metrics.metrics)
    logs = await worker.ListTaskLogs(task_service_pb2.ListTaskLogsRequest(parent=started.task, page_size=1000))
    assert "workers: 2, nodes: 2" in [line.body for line in logs.logs]
    await check_download(worker, version, tmp_path)

    (room,) = quota.held.values()
    assert (room.needs.cpus, room.task, room.target, room.subject) == (2, started.task, started.name, "users/alice")
    assert room.needs.memory_bytes == started.costs.estimate.memory_bytes
    assert room.needs.storage_bytes == started.costs.estimate.storage_bytes
    async with asyncio.timeout(10):
        while not quota.settled:
            await asyncio.sleep(0.1)
    assert quota.settled == [room.reservation_id]
    assert quota.kept == {room.reservation_id: sum(file.size for file in version.files)}
    # Two checkpoints more than the model.
    assert 1 < started.costs.estimate.storage_bytes / done.costs.actual.storage_bytes < 8
    assert done.costs.estimate == started.costs.estimate
    assert done.costs.actual.tokens == done.results["tokens"]
    # Two processes of half a gigabyte each at least.
    assert done.costs.actual.memory_bytes > 1e9
    assert done.costs.memory_ratio == pytest.approx(1, rel=0.5)
    assert done.costs.seconds_ratio > 0


async def run_again(caller: Caller) -> training_pb2.TrainingRun:
    """The same request once more: the first answer, no second run."""
    return await caller.RunTraining(pb.RunTrainingRequest(name="orgs/acme/trainings/packages", request_id="run-1"))


async def check_download(caller: Caller, version: training_pb2.ModelVersion, folder: Path) -> None:
    """A file comes in parts, from any offset, and is what the version says."""
    size = next(file.size for file in version.files if file.path == "model.safetensors")
    request = model_service_pb2.DownloadModelFileRequest(name=version.name, path="model.safetensors")
    first = b"".join([part.data async for part in caller.DownloadModelFile(request)])
    request.offset = 1000
    rest = b"".join([part.data async for part in caller.DownloadModelFile(request)])
    assert len(first) == size
    assert rest == first[1000:]
    (folder / "model.safetensors").write_bytes(first)
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        assert "model.embed_tokens.weight" in tensors.keys()  # noqa: SIM118 - not a mapping


async def test_adapter_is_trained_on_a_version(worker: Caller) -> None:
    """From a version of a run to an adapter on it."""
    first = await run(worker, spec=spec_of(pretrain=4, sft=4, workers=1))
    assert (await worker.finish(first.task)).state == task_pb2.Task.STATE_SUCCEEDED
    base = f"{PROJECT}/versions/1"
    lora = training_pb2.Adapter(method=training_pb2.Adapter.METHOD_LORA, rank=4)
    spec = spec_of(architecture=None, adapter=lora, workers=1)
    del spec.phases[0]
    training = training_pb2.Training(name="orgs/acme/trainings/packages", base_model_version=base, spec=spec)
    mask = FieldMask(paths=["base_model_version", "spec"])
    await worker.UpdateTraining(pb.UpdateTrainingRequest(training=training, update_mask=mask))
    second = await worker.RunTraining(pb.RunTrainingRequest(name=training.name))
    task = await worker.finish(second.task)
    assert task.state == task_pb2.Task.STATE_SUCCEEDED, task
    done = await worker.GetTrainingRun(pb.GetTrainingRunRequest(name=second.name))
    assert done.results["sft.heldout_loss_after"] < done.results["sft.heldout_loss_before"]
    version = await worker.GetModelVersion(model_service_pb2.GetModelVersionRequest(name=done.model_version))
    assert version.base_model_version == base
    assert version.parameter_count == done.results["trained_parameters"] == 4 * (4 * 64 + 3 * 96)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {file.path for file in version.files}


async def test_run_on_held_out_rows_is_refused_before_it_trains(worker: Caller, dataset: FakeDataset) -> None:
    """One row of thirty is more than one in a hundred."""
    dataset.leaked = 1
    started = await run(worker)
    task = await worker.finish(started.task)
    assert (task.state, task.error.reason) == (task_pb2.Task.STATE_FAILED, "PREFLIGHT_FAILED")
    assert task.error.metadata["check"] == "leakage"
    assert "1 of 30 rows of the validation version (3.33%) are in the dataset version too" in task.error.message
    metrics = await worker.ListTaskMetrics(task_service_pb2.ListTaskMetricsRequest(parent=started.task))
    assert not metrics.metrics
    assert await events(worker, "training.model_version.created") == 0
    # Without a held-out version there is nothing to compare, and no figure that the rows could flatter.
    alone = training_pb2.Training(name="orgs/acme/trainings/packages", spec=spec_of(pretrain=2, sft=2, workers=1))
    mask = FieldMask(paths=["validation_version", "spec"])
    await worker.UpdateTraining(pb.UpdateTrainingRequest(training=alone, update_mask=mask))
    second = await worker.RunTraining(pb.RunTrainingRequest(name=alone.name))
    assert (await worker.finish(second.task)).state == task_pb2.Task.STATE_SUCCEEDED
    assert len(dataset.compared) == 1
    assert "leaked_share" not in (await worker.GetTrainingRun(pb.GetTrainingRunRequest(name=second.name))).results


async def test_killed_worker_does_not_end_the_run(worker: Caller) -> None:
    """kill -9 of a Ray Train worker in the middle: the run goes on from its checkpoint and makes one version."""
    started = await run(worker, spec=spec_of(pretrain=400, sft=20, checkpoint_every=20))
    async for event in worker.watch(started.task):
        if event.HasField("metrics") and event.metrics.step >= 40:
            break
    os.kill(train_worker(), signal.SIGKILL)
    task = await worker.finish(started.task)
    assert task.state == task_pb2.Task.STATE_SUCCEEDED, task
    assert await events(worker, "training.model_version.created") == 1
    metrics = await worker.ListTaskMetrics(task_service_pb2.ListTaskMetricsRequest(parent=started.task))
    steps = [point.step for point in metrics.metrics if point.phase == "pretrain"]
    assert steps[-1] == 400
    # Whatever was repeated lies after the newest checkpoint before the kill.
    repeated = len(steps) - len(set(steps))
    assert repeated <= 6


def train_worker() -> int:
    """Process id of one Ray Train worker of this session."""
    ours = {child.pid for child in psutil.Process().children(recursive=True)}
    for process in psutil.process_iter(["pid", "cmdline"]):
        title = " ".join(process.info["cmdline"] or [])
        if "RayTrainWorker" in title and process.info["pid"] in ours:
            return int(process.info["pid"])
    raise AssertionError("no Ray Train worker runs")


async def test_cancelled_run_stops_and_makes_nothing(worker: Caller) -> None:
    started = await run(worker, spec=spec_of(pretrain=100_000))
    async for event in worker.watch(started.task):
        if event.HasField("metrics"):
            break
    await worker.CancelTask(task_service_pb2.CancelTaskRequest(name=started.task))
    task = await worker.finish(started.task)
    assert task.state == task_pb2.Task.STATE_CANCELLED
    done = await worker.GetTrainingRun(pb.GetTrainingRunRequest(name=started.name))
    assert not done.model_version
    assert await events(worker, "training.run.cancelled") == 1
