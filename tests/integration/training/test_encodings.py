"""What a run has encoded, found again by the next one: with the real database and store, the engine in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from argosy.training.v1 import training_service_pb2 as pb

from libs.common.blobs import BlobStore
from libs.common.tasks import Task
from libs.common.tasks import store as tasks
from libs.compute.context import LocalContext
from services.training.domain.spec import TrainingSpec
from services.training.engines import encodings
from services.training.engines.prepare import prepare
from services.training.jobs.run import RunTasks
from services.training.jobs.run_progress import RunProgress
from services.training.jobs.sweep import sweep
from services.training.store.encodings import Encodings
from tests.integration.training.conftest import training_service
from tests.integration.training.peers import HELDOUT, TRAIN, Caller, FakeDataset


@pytest.fixture
async def caller(mesh: Any, dataset: FakeDataset, tmp_path: Path, database_url: str) -> AsyncIterator[Caller]:
    async with training_service(mesh, tmp_path, database_url) as service:
        caller = Caller(mesh, service=service)
        await caller.project()
        await caller.training()
        yield caller
        await caller.close()


def app(caller: Caller) -> Any:
    assert caller.service is not None
    return caller.service.app


class LaterClock:
    """The service's clock, some days ahead."""

    def __init__(self, clock: Any, days: float) -> None:
        self._clock, self._ahead = clock, timedelta(days=days)

    def now(self) -> Any:
        return self._clock.now() + self._ahead


async def carried(caller: Caller) -> tuple[Task, dict[str, Any], LocalContext]:
    """A run up to its first checkpoint: its task, its plan, and what the engine was given and told."""
    own = app(caller)
    run = await caller.RunTraining(pb.RunTrainingRequest(name="orgs/acme/trainings/packages"))
    async with own.database.system(read_only=True) as uow:
        task = await tasks.get(uow, run.task)
    loading = RunTasks(own.database, own.blobs, own.datasets, own.signer, own.clock)
    spec = await loading._load(task, SimpleNamespace(settings=own.settings))  # type: ignore[arg-type]
    del spec["comparison"]
    # As on Ray: a grant to read each part, and one to write under the task's own name.
    store = BlobStore.from_grant(own.blobs.grant_write_sync(task.uid, 600.0))
    ctx = LocalContext(spec, blobs_write=store)
    plan = await asyncio.to_thread(prepare, ctx, TrainingSpec.from_json(spec["spec"]))
    async with own.database.system() as uow:
        await RunProgress(own.clock).checkpoint(task, {"plan": plan}, uow)
    return task, plan, ctx


def rows_read(ctx: LocalContext) -> str:
    return next(body for _, body in ctx.recorded.logs if body.endswith("rows were read"))


async def test_a_second_run_on_the_same_version_reads_no_row(caller: Caller, dataset: FakeDataset) -> None:
    own = app(caller)
    _, first, ctx = await carried(caller)
    assert rows_read(ctx) != "0 rows were read"
    assert ctx.spec["encodings"] == {}
    _, second, again = await carried(caller)
    assert rows_read(again) == "0 rows were read"
    # The run has its own copy under the same digest, readable with its own grant.
    assert second["prepared"] == first["prepared"]
    for entry in again.blobs_write.load_manifest_sync(second["prepared"])["blobs"]:
        assert again.blobs_write.stat_sync(entry["sha256"]).size == entry["size"]

    # Another organization is offered nothing, nor is a run that has no grant for the version.
    digests = [dataset.digests[TRAIN], dataset.digests[HELDOUT]]
    async with own.database.system(read_only=True) as uow:
        found = Encodings(uow)
        # A tokenizer, and two phases of both versions.
        assert len(await found.offered("acme", digests)) == 5
        assert len(await found.offered("acme", digests[1:])) == 2
        assert await found.offered("globex", digests) == {}
        assert await found.offered("acme", []) == {}
    uow = own.database.unit_of_work("globex", "users/mallory")
    try:
        # Row-level security says the same where a query forgets to.
        assert await Encodings(uow).manifests() == set()
    finally:
        await uow.rollback()


def test_what_was_kept_before_there_were_notes_is_found(tmp_path: Path) -> None:
    store = BlobStore(f"file://{tmp_path}/blobs")
    entry = store.put_sync(b"tokens").entry("tokens.npy")
    digest = store.commit_sync({"kind": "training.encoding", "blobs": [entry]})
    spec = {"encodings": {"key": {"grant": "", "manifest_digest": digest}}}
    ctx = LocalContext(spec, blobs_write=store, blobs_read=store)
    assert encodings.Encodings(ctx).find("key", "digest") == ([entry], {})


async def test_what_no_run_uses_is_swept_away(caller: Caller, dataset: FakeDataset) -> None:
    own = app(caller)
    await carried(caller)
    digests = [dataset.digests[TRAIN], dataset.digests[HELDOUT]]

    async def kept() -> dict[str, str]:
        async with own.database.system(read_only=True) as uow:
            return await Encodings(uow).offered("acme", digests)

    before = await kept()
    await sweep(own.database, own.blobs, LaterClock(own.clock, 13))  # type: ignore[arg-type]
    assert await kept() == before
    for digest in before.values():
        await own.blobs.load_manifest(digest)
    # A use starts the time anew; what was not used goes.
    key = next(iter(before))
    async with own.database.system() as uow:
        await Encodings(uow).remember(
            "acme", [{"key": key, "dataset_digest": digests[0]}], LaterClock(own.clock, 5).now()
        )
    await sweep(own.database, own.blobs, LaterClock(own.clock, 15))  # type: ignore[arg-type]
    assert list(await kept()) == [key]
