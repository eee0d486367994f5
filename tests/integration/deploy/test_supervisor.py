"""The supervisor with real rows and a machine whose faults the test decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from libs.common.clock import ManualClock
from libs.common.db.engine import create_engine
from libs.common.db.migrate import migrate
from libs.common.db.uow import Database
from libs.common.domain import DomainError
from libs.common.ids import uuid7
from libs.common.tasks import Task
from libs.compute.errors import ComputeUnavailable
from services.deploy.domain import deployment as d
from services.deploy.domain import replica as r
from services.deploy.domain import work_order as w
from services.deploy.domain.deployment import Deployment
from services.deploy.domain.replica import Replica, actor_name
from services.deploy.domain.spec import Spec
from services.deploy.domain.work_order import WorkOrder
from services.deploy.jobs.replica_host import Observation
from services.deploy.jobs.rollout import RolloutCarrier, rollout_kind
from services.deploy.jobs.supervisor import Supervisor
from services.deploy.store.repositories import Deployments, Replicas, Transitions, WorkOrders

pytestmark = pytest.mark.timeout(60)
MIGRATIONS = Path(__file__).parents[3] / "services" / "deploy" / "migrations"
DOCS = "orgs/acme/deployments/docs"


class FakeHost:
    """Processes by actor name; `ready` and `fault` decide what they say."""

    def __init__(self) -> None:
        self.running: dict[str, Observation] = {}
        self.starts: list[str] = []
        self.away = False
        self.outcome = Observation(Observation.READY, "127.0.0.1:1", 64)
        self.refusal: DomainError | None = None

    async def start(self, replica: Replica) -> None:
        self._require()
        if self.refusal is not None:
            raise self.refusal
        self.starts.append(replica.model_version)
        self.running[replica.actor] = self.outcome

    async def look(self, replica: Replica) -> Observation:
        if self.away:
            return Observation(Observation.UNKNOWN, message="away")
        return self.running.get(replica.actor, Observation(Observation.GONE, message="its process died"))

    async def stop(self, replica: Replica) -> None:
        self._require()
        self.running.pop(replica.actor, None)

    async def kill(self, replica: Replica, address: str) -> None:
        await self.stop(replica)

    def _require(self) -> None:
        if self.away:
            raise ComputeUnavailable


class World:
    """A database, a clock that the test moves, a host, and one supervisor at a time."""

    def __init__(self, database: Database, clock: ManualClock) -> None:
        self.database, self.clock, self.host = database, clock, FakeHost()
        self.begin()

    def begin(self) -> None:
        """A new process: nothing is remembered."""
        self.supervisor = Supervisor(
            self.database,
            self.host,  # type: ignore[arg-type]
            self.clock,
            beat_seconds=1,
            health_seconds=2,
            start_seconds=600,
        )

    async def beats(self, count: int = 1) -> None:
        """Lets so many beats pass, each to its end."""
        self.clock._sleepers.clear()
        running = asyncio.ensure_future(self.supervisor.run())
        await self._settled()
        for _ in range(count):
            self.clock.advance(1)
            await self._settled()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    async def _settled(self) -> None:
        """Waits until the supervisor has done all that it could and sleeps until its next beat."""
        async with asyncio.timeout(20):
            while not self.clock._sleepers or self.supervisor._busy:
                await asyncio.sleep(0.005)

    async def order(self, version: str, replicas: int = 1) -> WorkOrder:
        """An approved order whose task has begun."""
        now = self.clock.now()
        order = WorkOrder(
            uid=uuid7(),
            name=f"orgs/acme/workOrders/{version}",
            create_time=now,
            update_time=now,
            creator="users/alice",
            model_version=version,
            model_digest="digest",
            deployment_id="docs",
            spec=Spec(replicas=replicas),
            task_uid=uuid7(),
        )
        order.submit(now)
        order.approve("users/bob", "", now)
        async with self.database.system() as uow:
            await WorkOrders(uow).insert(order)
        await self.start_task(order)
        return order

    async def start_task(self, order: WorkOrder) -> None:
        """What the task worker does at the start of an attempt."""
        task = Task.__new__(Task)
        object.__setattr__(task, "target", order.name)
        on_start = rollout_kind(self.database, self.clock).on_start
        assert on_start is not None
        async with self.database.system() as uow:
            await on_start(task, uow)

    @property
    def carrier(self) -> RolloutCarrier:
        return RolloutCarrier(self.database, self.clock)

    async def deployment(self) -> Deployment:
        uow = self.database.system(read_only=True)
        try:
            return await Deployments(uow).get(DOCS)
        finally:
            await uow.rollback()

    async def replicas(self) -> list[Replica]:
        uow = self.database.system(read_only=True)
        try:
            return await Replicas(uow).present()
        finally:
            await uow.rollback()

    async def state_of(self, order: WorkOrder) -> str:
        uow = self.database.system(read_only=True)
        try:
            return (await WorkOrders(uow).get(order.name)).state
        finally:
            await uow.rollback()


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    await migrate(database_url, MIGRATIONS)
    clock = ManualClock()
    database = Database(create_engine(database_url, "test"), "deploy", clock)
    yield World(database, clock)
    await database.close()


def task_of(order: WorkOrder) -> str:
    return f"argosy-deploy-{order.task_uid}-1"


async def test_an_order_becomes_a_live_deployment(world: World) -> None:
    order = await world.order("v1", replicas=2)
    assert (await world.carrier.poll(task_of(order))).state == "running"
    await world.beats(4)
    live = await world.deployment()
    assert (live.state, live.ready_replicas) == (d.LIVE, 2)
    assert [replica.state for replica in await world.replicas()] == [r.READY, r.READY]
    assert await world.state_of(order) == w.SUCCEEDED
    report = await world.carrier.poll(task_of(order))
    assert (report.state, (report.result or {})["deployment"]) == ("succeeded", DOCS)
    uow, now = world.database.system(read_only=True), world.clock.now()
    try:
        then, _ = await Transitions(uow).live_at("acme", now, 10, "")
        assert [(step.resource, step.to_state) for step in then] == [(DOCS, d.LIVE)]
        assert await Transitions(uow).live_at("acme", now - timedelta(hours=1), 10, "") == ([], "")
        assert await Transitions(uow).live_at("evil", now, 10, "") == ([], "")
    finally:
        await uow.rollback()


async def test_a_dead_replica_is_started_again_by_another_process(world: World) -> None:
    await world.order("v1")
    await world.beats(4)
    world.host.running.clear()
    world.begin()
    await world.beats(2)
    assert (await world.deployment()).state == d.DEGRADED
    await world.beats(4)
    assert (await world.deployment()).state == d.LIVE
    (replica,) = await world.replicas()
    assert (replica.restarts, replica.failures, world.host.starts) == (1, 0, ["v1", "v1"])


async def test_a_new_process_adopts_what_runs(world: World) -> None:
    await world.order("v1")
    await world.beats(4)
    world.begin()
    await world.beats(4)
    assert world.host.starts == ["v1"]
    assert (await world.deployment()).state == d.LIVE


async def test_while_ray_is_away_nothing_is_given_up(world: World) -> None:
    await world.order("v1")
    await world.beats(4)
    world.host.away = True
    await world.beats(6)
    assert (await world.deployment()).state == d.LIVE
    async with world.database.system() as uow:
        docs = await Deployments(uow).get(DOCS)
        docs.stop("", "users/bob", world.clock.now())
        await Deployments(uow).save(docs)
    await world.beats(4)
    (replica,) = await world.replicas()
    assert replica.stopping
    world.host.away = False
    await world.beats(4)
    assert (await world.replicas(), world.host.running) == ([], {})


async def test_a_revision_that_dies_again_and_again_leaves_the_old_one_live(world: World) -> None:
    await world.order("v1")
    await world.beats(4)
    world.host.outcome = Observation(Observation.FAILED, message="the engine died")
    bad = await world.order("v2")
    for _ in range(10):
        world.clock.advance(30)
        await world.beats(2)
    assert await world.state_of(bad) == w.FAILED
    report = await world.carrier.poll(task_of(bad))
    assert (report.state, (report.error or {})["message"]) == ("failed", "the engine died")
    live = await world.deployment()
    assert (live.state, live.current and live.current.model_version, live.target) == (d.LIVE, "v1", None)
    assert [replica.model_version for replica in await world.replicas()] == ["v1"]
    # Its task may be retried.
    world.host.outcome = Observation(Observation.READY, "127.0.0.1:2", 64)
    await world.start_task(bad)
    await world.beats(6)
    assert await world.state_of(bad) == w.SUCCEEDED


async def test_a_model_that_must_not_be_served_fails_at_once(world: World) -> None:
    world.host.outcome = Observation(Observation.FAILED, message="not safetensors", permanent=True)
    bad = await world.order("v1")
    await world.beats(6)
    assert await world.state_of(bad) == w.FAILED
    assert (await world.deployment()).state == d.FAILED
    assert (world.host.starts, await world.replicas()) == (["v1"], [])


async def test_files_other_than_the_approved_ones_are_not_started(world: World) -> None:
    world.host.refusal = DomainError("PREFLIGHT_FAILED", "other files")
    bad = await world.order("v1")
    await world.beats(6)
    assert (await world.state_of(bad), world.host.starts) == (w.FAILED, [])


async def test_a_cancelled_roll_out_leaves_the_old_one_live(world: World) -> None:
    await world.order("v1")
    await world.beats(4)
    world.host.outcome = Observation(Observation.STARTING, message="loading model")
    other = await world.order("v2")
    await world.beats(3)
    report = await world.carrier.poll(task_of(other))
    assert report.progress == {"fraction": 0.4, "message": "0 of 1 replicas ready; loading model", "cost": {}}
    await world.carrier.cancel(task_of(other))
    await world.beats(4)
    assert await world.state_of(other) == w.CANCELLED
    assert (await world.carrier.poll(task_of(other))).state == "cancelled"
    assert [replica.model_version for replica in await world.replicas()] == ["v1"]
    assert (await world.deployment()).state == d.LIVE


async def test_a_newer_order_supersedes_one_that_still_rolls_out(world: World) -> None:
    world.host.outcome = Observation(Observation.STARTING, message="loading model")
    first = await world.order("v1")
    await world.beats(2)
    world.host.outcome = Observation(Observation.READY, "127.0.0.1:2", 64)
    second = await world.order("v2")
    await world.beats(5)
    assert [await world.state_of(first), await world.state_of(second)] == [w.CANCELLED, w.SUCCEEDED]


async def test_an_expired_lease_takes_the_replica_away(world: World) -> None:
    uid, now = uuid7(), world.clock.now()
    leased = Replica(
        uid=uid,
        name="orgs/acme/replicas/eval-1",
        create_time=now,
        update_time=now,
        state=r.STARTING,
        model_version="v1",
        actor=actor_name(uid),
        holder="e1",
        lease_expire_time=now + timedelta(seconds=20),
    )
    async with world.database.system() as uow:
        await Replicas(uow).insert(leased)
    await world.beats(3)
    assert [replica.state for replica in await world.replicas()] == [r.READY]
    world.clock.advance(20)
    await world.beats(3)
    assert (await world.replicas(), world.host.running) == ([], {})
