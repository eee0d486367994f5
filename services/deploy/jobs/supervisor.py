"""Makes replicas what is wanted of them. Level-triggered: it looks at the rows and at Ray, and does the next step.

It keeps nothing that matters in memory, so it may be killed at any moment and several may run beside each other: a
replica is started under a stored name, and every write is refused when somebody else has changed the row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

from libs.common.aio import Background
from libs.common.clock import Clock
from libs.common.db.uow import Database, UnitOfWork
from libs.common.domain import DomainError, Parent
from libs.common.errors import ArgosyError, reason_of
from libs.common.ids import resource_id, uuid7
from services.deploy.domain import replica as states
from services.deploy.domain.deployment import Deployment, Revision
from services.deploy.domain.plan import MAX_STARTS, plan
from services.deploy.domain.replica import Replica, actor_name
from services.deploy.jobs.replica_host import Observation, ReplicaHost
from services.deploy.store.announcements import emit_live, endpoints_changed
from services.deploy.store.repositories import Deployments, Replicas, WorkOrders

ACTOR = "services/deploy"
# Beats between two looks while there is nothing to look after.
_IDLE = 3

_log = logging.getLogger(__name__)


class Supervisor:
    """The reconciler of deployments and replicas.

    Args:
        database: of the service.
        host: starts, looks at and stops replicas.
        clock: for leases, back-off and the beat.
        beat_seconds: between two looks at all rows.
        health_seconds: between two looks at a replica that is ready.
        start_seconds: a replica that is not ready after this is started again.
    """

    def __init__(
        self,
        database: Database,
        host: ReplicaHost,
        clock: Clock,
        *,
        beat_seconds: float,
        health_seconds: float,
        start_seconds: float,
    ) -> None:
        self._database = database
        self._host = host
        self._clock = clock
        self._beat = beat_seconds
        self._health = health_seconds
        self._start = start_seconds
        # Replicas that are being worked on in this process, and when a ready one is looked at again.
        self._busy: set[str] = set()
        self._next_look: dict[str, float] = {}

    async def run(self) -> None:
        """Reconciles until it is cancelled; waits while the database is away."""
        async with Background("replicas") as background:
            while True:
                try:
                    busy = await self._reconcile(background)
                except DomainError as error:
                    _log.warning("reconciling waits: %s", error.message)
                    busy = True
                await self._clock.sleep(self._beat if busy else _IDLE * self._beat)

    async def _reconcile(self, background: Background) -> bool:
        """Returns whether there is anything to look after."""
        uow = self._database.system(read_only=True)
        try:
            deployments = await Deployments(uow).to_reconcile()
            replicas = await Replicas(uow).present()
        finally:
            await uow.rollback()
        for deployment in deployments:
            own = [replica for replica in replicas if replica.deployment == deployment.name]
            if plan(deployment, own).changes(deployment):
                await self._reconcile_deployment(deployment.name)
        for replica in replicas:
            if replica.uid not in self._busy:
                self._busy.add(replica.uid)
                background.start(self._tend(replica), name=replica.name)
        present = {replica.uid for replica in replicas}
        self._next_look = {uid: at for uid, at in self._next_look.items() if uid in present}
        return bool(deployments or replicas)

    # Deployments: rows only.

    async def _reconcile_deployment(self, name: str) -> None:
        try:
            async with self._database.system() as uow:
                await self._step(uow, name)
        except DomainError as error:
            if error.reason != "CONFLICT":
                raise
            # Somebody else changed it; the next beat sees what they made of it.

    async def _step(self, uow: UnitOfWork, name: str) -> None:
        deployments, replicas = Deployments(uow), Replicas(uow)
        deployment = await deployments.find(name, deleted=True, for_update=True)
        if deployment is None:
            return
        own = await replicas.present(name)
        steps, now = plan(deployment, own), self._clock.now()
        for revision in steps.create:
            await replicas.insert(_new_replica(deployment, revision, now))
        for replica in steps.stop:
            replica.stop("not wanted any more", now)
            await replicas.save(replica)
        for replica in steps.retry:
            replica.lost(replica.message, now)
            await replicas.save(replica)
        if steps.switch:
            await self._switch(uow, deployment, now)
        elif steps.abandon:
            await self._abandon(uow, deployment, steps.abandon, now)
        elif deployment.observe(steps.ready, ACTOR, now):
            await deployments.save(deployment)
            await endpoints_changed(uow)

    async def _switch(self, uow: UnitOfWork, deployment: Deployment, now: datetime) -> None:
        assert deployment.target is not None
        order = await WorkOrders(uow).get(deployment.target.work_order, for_update=True)
        deployment.switch(deployment.target.spec.replicas, ACTOR, now)
        await Deployments(uow).save(deployment)
        if not order.ended:
            order.succeed(ACTOR, now)
            await WorkOrders(uow).save(order)
        await endpoints_changed(uow)
        emit_live(uow, deployment)

    async def _abandon(self, uow: UnitOfWork, deployment: Deployment, reason: str, now: datetime) -> None:
        assert deployment.target is not None
        order = await WorkOrders(uow).get(deployment.target.work_order, for_update=True)
        deployment.abandon(reason, ACTOR, now)
        await Deployments(uow).save(deployment)
        if not order.ended:
            order.fail(ACTOR, reason, now)
            await WorkOrders(uow).save(order)

    # Replicas: Ray first, then one short transaction.

    async def _tend(self, replica: Replica) -> None:
        try:
            await self._next_step(replica)
        except (DomainError, ArgosyError) as error:
            # The database, Ray or training is away, or somebody else was faster: the next beat tries again.
            _log.info("%s waits: %s", replica.name, error)
        finally:
            self._busy.discard(replica.uid)

    async def _next_step(self, replica: Replica) -> None:
        now = self._clock.now()
        if replica.stopping:
            await self._host.stop(replica)
            await self._save(replica, lambda r: r.gone(self._clock.now()))
        elif replica.expired(now):
            await self._save(replica, lambda r: r.stop("its lease ran out", now))
        elif replica.state == states.STARTING:
            await self._bring_up(replica, now)
        elif replica.state == states.READY and self._clock.monotonic() >= self._next_look.get(replica.uid, 0.0):
            self._next_look[replica.uid] = self._clock.monotonic() + self._health
            await self._check(replica)

    async def _bring_up(self, replica: Replica, now: datetime) -> None:
        if replica.start_time is None:
            if replica.may_start(now):
                await self._begin(replica, now)
            return
        seen = await self._host.look(replica)
        if seen.state == Observation.READY:
            self._next_look[replica.uid] = self._clock.monotonic() + self._health
            await self._save(replica, lambda r: r.became_ready(seen.address, seen.context_length, now))
        elif seen.state in (Observation.FAILED, Observation.GONE):
            await self._replace(replica, seen)
        elif (now - replica.start_time).total_seconds() > self._start:
            await self._replace(replica, Observation(Observation.FAILED, message="it did not become ready in time"))
        elif seen.message and seen.message != replica.message:
            await self._save(replica, lambda r: r.progressed(seen.message, now))

    async def _begin(self, replica: Replica, now: datetime) -> None:
        try:
            await self._host.start(replica)
        except (DomainError, ArgosyError) as error:
            if _passes(error):
                raise
            message = error.message
            _log.warning("%s cannot be started: %s", replica.name, message)
            await self._save(replica, lambda r: r.failed(message, now))
        else:
            await self._save(replica, lambda r: r.started(now))

    async def _check(self, replica: Replica) -> None:
        seen = await self._host.look(replica)
        if seen.state == Observation.READY:
            if seen.address != replica.address:
                now = self._clock.now()
                await self._save(replica, lambda r: r.became_ready(seen.address, seen.context_length, now))
        elif seen.state in (Observation.FAILED, Observation.GONE):
            await self._replace(replica, seen)

    async def _replace(self, replica: Replica, seen: Observation) -> None:
        """Ends what is left of it; then it is started again after a pause, or given up."""
        now = self._clock.now()
        message = seen.message or "it died"
        _log.warning("%s is lost: %s", replica.name, message)
        address = replica.address

        def lose(current: Replica) -> None:
            current.lost(message, now)
            given_up = current.for_evaluation and current.failures >= MAX_STARTS
            if seen.permanent or given_up:
                current.failed(message, now)

        # First the row, so that nobody is sent there any more; Ray may be away for long.
        await self._save(replica, lose)
        await self._host.kill(replica, address)

    async def _save(self, replica: Replica, change: Callable[[Replica], Any]) -> None:
        """Changes the row as it was read. Raises CONFLICT when somebody else has changed it meanwhile."""
        was_ready = replica.state == states.READY
        async with self._database.system() as uow:
            change(replica)
            await Replicas(uow).save(replica)
            if replica.deployment and was_ready != (replica.state == states.READY):
                await endpoints_changed(uow)


def _passes(error: DomainError | ArgosyError) -> bool:
    """Whether the same step may work later, as the catalogue of errors says."""
    return error.reason == "DEADLINE_EXCEEDED" or reason_of(error.reason).retry_after is not None


def _new_replica(deployment: Deployment, revision: Revision, now: datetime) -> Replica:
    uid = uuid7()
    return Replica(
        uid=uid,
        # Ids are at most 63 characters; 17 are taken by the part that makes it unique.
        name=f"orgs/{deployment.org}/replicas/{resource_id(deployment.id[:40].rstrip('-'))}",
        create_time=now,
        update_time=now,
        creator=ACTOR,
        state=states.STARTING,
        secrecy=deployment.secrecy,
        lineage=[Parent(revision.model_version, revision.model_digest, "deployed_from")],
        deployment=deployment.name,
        work_order=revision.work_order,
        model_version=revision.model_version,
        model_digest=revision.model_digest,
        spec=revision.spec,
        audience=deployment.name,
        actor=actor_name(uid),
        traceparent=revision.traceparent,
    )
