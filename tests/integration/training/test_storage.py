"""What runs, searches and model versions hold of quotas: storage until it is deleted, memory of all trials."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from argosy.common.v1 import task_service_pb2
from argosy.training.v1 import model_service_pb2, run_service_pb2, search_pb2, training_pb2
from argosy.training.v1 import search_service_pb2 as searches
from argosy.training.v1 import training_service_pb2 as pb
from argosy.training.v1.run_metrics_pb2 import RunEvent

from libs.common.blobs import BlobStore
from libs.common.clock import SYSTEM_CLOCK, ManualClock
from libs.common.domain import DomainError
from libs.common.tasks import left_rooms
from libs.common.tasks import store as tasks
from services.training.domain.estimate import estimate
from services.training.jobs.run import RunTasks
from services.training.jobs.run_progress import RunProgress
from services.training.jobs.search import SearchTasks
from services.training.jobs.sweep import sweep
from services.training.store.given_up import given_up
from services.training.store.repositories import TrainingRuns
from services.training.store.searches import Searches
from tests.integration.training.peers import Caller, refusal
from tests.integration.training.versions import TRAINING, app, apply, finished_run
from tests.quota import RoomForAll

CONTENT = b"weights"


async def kept(caller: Caller, holder: str) -> int:
    async with app(caller).database.system(read_only=True) as uow:
        return await left_rooms.kept_by(uow, holder)


async def end(caller: Caller, run: training_pb2.TrainingRun, state: str, **values: object) -> None:
    """As if its worker had ended the run."""
    async with app(caller).database.system() as uow:
        await tasks.change(uow, await tasks.get(uow, run.task), state=state, **values)
        found = await TrainingRuns(uow).get(run.name)
        found.state = state
        await TrainingRuns(uow).save(found)


async def test_a_version_counts_until_it_is_deleted_and_again_when_it_is_undeleted(served: Caller) -> None:
    version = await finished_run(served, CONTENT)
    delete = model_service_pb2.DeleteModelVersionRequest(name=version.name)
    undelete = model_service_pb2.UndeleteModelVersionRequest(name=version.name)
    await served.DeleteModelVersion(delete)
    await served.UndeleteModelVersion(undelete)
    assert await kept(served, version.name) == len(CONTENT)
    async with app(served).database.system() as uow:
        (room,) = await left_rooms.untold(uow, 9)
        assert (room.subject, room.kept_bytes, room.holder) == ("users/alice", len(CONTENT), version.name)
        await left_rooms.tell(uow, room)
    await served.DeleteModelVersion(delete)
    async with app(served).database.system() as uow:
        (again,) = await left_rooms.untold(uow, 9)
        assert (again.reservation, again.kept_bytes) == (room.reservation, 0)
        await left_rooms.tell(uow, again)
        # Whoever is late with what he read before changes nothing.
        await left_rooms.tell(uow, room)
        assert not await left_rooms.untold(uow, 9)
    assert await kept(served, version.name) == 0


async def test_a_run_leaves_its_model_or_its_checkpoint(served: Caller) -> None:
    parts = app(served)
    kind = RunTasks(parts.database, parts.blobs, parts.datasets, parts.signer, SYSTEM_CLOCK).kind()
    await served.project()
    await served.training()
    run = await served.RunTraining(pb.RunTrainingRequest(name=TRAINING))
    assert run.costs.estimate.storage_bytes > 0
    async with parts.database.system(read_only=True) as uow:
        task = await tasks.get(uow, run.task)
    assert (await kind.needs_of(task, None)).storage_bytes == run.costs.estimate.storage_bytes
    assert kind.kept_of(task) == (run.task, 0)
    await end(served, run, "FAILED", checkpoint={"bytes": 12})
    async with parts.database.system(read_only=True) as uow:
        assert kind.kept_of(await tasks.get(uow, run.task)) == (run.task, 12)
    version = await apply(served, run, CONTENT)
    made = {"model_version": version.name, "model_bytes": len(CONTENT)}
    await end(served, run, "SUCCEEDED", result=made)
    async with parts.database.system(read_only=True) as uow:
        assert kind.kept_of(await tasks.get(uow, run.task)) == (version.name, len(CONTENT))


@pytest.mark.parametrize(("days", "left"), [(29, 12), (31, 0)])
async def test_a_checkpoint_counts_as_long_as_it_is_kept_for_a_retry(served: Caller, days: int, left: int) -> None:
    await served.project()
    await served.training()
    run = await served.RunTraining(pb.RunTrainingRequest(name=TRAINING))
    await end(served, run, "FAILED")
    async with app(served).database.system() as uow:
        await left_rooms.leave(uow, "acme", "r", run.task, "users/alice", run.task, 12)
    later = ManualClock(SYSTEM_CLOCK.now() + timedelta(days=days))
    await sweep(app(served).database, app(served).blobs, later)
    assert await kept(served, run.task) == left


async def test_a_checkpoint_goes_soon_when_another_one_or_the_model_has_replaced_it(served: Caller) -> None:
    """Or a long run fills the disk: its storage is reckoned as its model and two checkpoints."""
    parts = app(served)
    progress = RunProgress(SYSTEM_CLOCK)
    await served.project()
    await served.training()
    run = await served.RunTraining(pb.RunTrainingRequest(name=TRAINING))

    async def checkpoint(step: int) -> tuple[str, str]:
        """As its worker writes and the service tells of it: digests of manifest and weights."""
        async with parts.database.system() as uow:
            task = await tasks.get(uow, run.task, for_update=True)
            store = BlobStore.from_grant(await parts.blobs.grant_write(task.uid, 60))
            weights = store.put_sync(b"weights behind step %d" % step)
            digest = store.commit_sync({"kind": "training.checkpoint", "blobs": [weights.entry("model.safetensors")]})
            told = {"manifest_digest": digest, "phase": "sft", "step": step, "bytes": weights.size}
            await progress.checkpoint(await tasks.change(uow, task, state="RUNNING", checkpoint=told), told, uow)
        return digest, weights.sha256

    async def there(digests: tuple[str, str], minutes: int) -> list[bool]:
        """Behind a sweep that comes so many minutes from now."""
        later = ManualClock(SYSTEM_CLOCK.now() + timedelta(minutes=minutes))
        await sweep(parts.database, parts.blobs, later)
        return [await present(digest) for digest in digests]

    async def present(digest: str) -> bool:
        try:
            return (await parts.blobs.stat(digest)).size > 0
        except DomainError as error:
            assert error.reason == "NOT_FOUND"
            return False

    first, second = await checkpoint(4), await checkpoint(8)
    assert await there(first, 5) == [True, True], "a group of workers may be reading it"
    assert await there(first, 11) == [False, False]
    assert await there(second, 11) == [True, True]
    version = await apply(served, run, CONTENT)
    await end(served, run, "SUCCEEDED")
    assert await there(second, 11) == [False, False]
    assert await there((version.manifest_digest, version.files[0].sha256), 11) == [True, True]
    async with parts.database.system(read_only=True) as uow:
        assert await given_up(uow, SYSTEM_CLOCK.now() + timedelta(days=1)) == []


async def test_a_search_holds_the_memory_of_all_its_trials(served: Caller, quota: RoomForAll) -> None:
    """It is asked for before there is a search, and reserved when it begins."""
    await served.project()
    await served.training()
    rows = search_pb2.SearchDimension(
        path="phases[1].batch_size", integer=search_pb2.IntegerRange(low=12, high=48, step=12)
    )
    search = search_pb2.HyperparameterSearch(
        training=TRAINING,
        space=[rows],
        method=search_pb2.HyperparameterSearch.METHOD_RANDOM,
        objective=search_pb2.Objective(result="sft.last_loss", direction=search_pb2.Objective.DIRECTION_MINIMIZE),
        budget=search_pb2.SearchBudget(max_trials=6, max_parallel=2),
    )
    quota.impossible = "it needs 2 cores, and orgs/acme may use 1"
    refused = await refusal(served.CreateSearch(searches.CreateSearchRequest(parent="orgs/acme", search=search)))
    assert (refused.reason, refused.metadata["check"]) == ("PREFLIGHT_FAILED", "quota")
    quota.impossible = ""
    made = await served.CreateSearch(searches.CreateSearchRequest(parent="orgs/acme", search=search))
    async with app(served).database.system(read_only=True) as uow:
        found = await Searches(uow).get(made.name)
        task = await tasks.get(uow, found.task)
    needs = await SearchTasks(app(served).database, None, SYSTEM_CLOCK).kind().needs_of(task, None)  # type: ignore[arg-type]
    one = estimate(found.plan.largest(found.spec))
    assert one.memory_bytes > estimate(replace(found.spec, workers=1)).memory_bytes
    # Two at a time, of one worker each; the model of the best.
    wanted = (2, 2 * one.memory_bytes, one.storage_bytes)
    assert (needs.cpus, needs.memory_bytes, needs.storage_bytes) == wanted
    assert [(each.cpus, each.memory_bytes, each.storage_bytes) for each in quota.asked] == [wanted, wanted]


async def test_a_retry_of_the_task_is_a_retry_of_its_run(served: Caller) -> None:
    """Otherwise the run is worked on while its row says that it has failed, and nobody could pause it."""
    await served.project()
    await served.training()
    run = await served.RunTraining(pb.RunTrainingRequest(name=TRAINING))
    await end(served, run, "FAILED")
    await served.RetryTask(task_service_pb2.RetryTaskRequest(name=run.task))
    again = await served.GetTrainingRun(pb.GetTrainingRunRequest(name=run.name))
    assert again.state == training_pb2.TrainingRun.STATE_QUEUED
    events = (await served.ListRunEvents(run_service_pb2.ListRunEventsRequest(parent=run.name))).events
    assert (events[-1].kind, events[-1].message) == (RunEvent.KIND_RETRIED, "retried by users/alice")
    await served.PauseTrainingRun(run_service_pb2.PauseTrainingRunRequest(name=run.name))
