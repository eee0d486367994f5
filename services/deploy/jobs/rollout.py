"""The task of a roll-out. Nothing is computed: the supervisor works towards what is wanted, and the task shows how
far it is.

So its carrier is not a Ray actor but the rows themselves: the same questions (`submit`, `poll`, `cancel`) are
answered from work order, deployment and replicas, by whichever process asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libs.common.clock import Clock
from libs.common.db.uow import Database, UnitOfWork
from libs.common.domain import Parent
from libs.common.ids import uuid7
from libs.common.tasks import Task, TaskError, TaskKind
from libs.compute.client import CarrierReport
from services.deploy.domain import work_order as states
from services.deploy.domain.deployment import Deployment, Revision
from services.deploy.domain.replica import READY, Replica
from services.deploy.domain.work_order import ROLLOUT_TASK, WorkOrder
from services.deploy.store.repositories import Deployments, Replicas, WorkOrders

Json = dict[str, Any]

ACTOR = "services/deploy"

# How far a replica is when it says this; loading the model takes most of the time.
_STAGES = {"fetching model": 0.2, "loading model": 0.4}
_ASKED = 0.1
_BEFORE = 0.05
_ALMOST = 0.95


class RolloutCarrier:
    """Answers the task worker's questions about roll-outs from the database.

    Args:
        database: of the service.
        clock: gives the times of transitions.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def submit(
        self,
        name: str,
        entrypoint: str,
        spec: Json,
        *,
        kind: str = "",
        attempt: int = 1,
        resume: Json | None = None,
        write_grant: str | None = None,
        resources: Mapping[str, float] | None = None,
        traceparent: str = "",
    ) -> None:
        """Nothing to do: the attempt's own transaction has asked for the new revision already."""

    async def poll(self, name: str, cursor: int = 0) -> CarrierReport:
        """How far the roll-out is, or how it ended."""
        uow = self._database.system(read_only=True)
        try:
            order = await WorkOrders(uow).by_task(_task_uid(name))
            if order.ended:
                return _outcome(order)
            replicas = await Replicas(uow).present(order.deployment)
        finally:
            await uow.rollback()
        fraction, message = progress(order, replicas)
        return CarrierReport("running", progress={"fraction": fraction, "message": message, "cost": {}})

    async def cancel(self, name: str) -> None:
        """Takes the target back; what was live stays live."""
        now = self._clock.now()
        async with self._database.system() as uow:
            order = await WorkOrders(uow).by_task(_task_uid(name), for_update=True)
            if not order.ended:
                await _give_up(uow, order, "the task was cancelled", now)
                order.cancel(ACTOR, "the task was cancelled", now)
                await WorkOrders(uow).save(order)

    async def pause(self, name: str) -> None:
        """A roll-out has no checkpoint to stop at."""

    async def dismiss(self, name: str) -> None:
        """There is no process of its own to end."""

    async def list(self, prefix: str = "") -> list[str]:
        """There are no processes of its own."""
        return []

    async def close(self) -> None:
        """Holds nothing."""


def progress(order: WorkOrder, replicas: list[Replica]) -> tuple[float, str]:
    """How far a roll-out is (0 to 1), and what it is doing, for people."""
    own = [replica for replica in replicas if replica.work_order == order.name and not replica.stopping]
    wanted = order.spec.replicas
    ready = sum(replica.state == READY for replica in own)
    fraction = min(sum(_done(replica) for replica in own) / wanted, _ALMOST)
    slowest = min((replica for replica in own if replica.state != READY), key=_done, default=None)
    doing = (slowest.message if slowest is not None else "") or "starting replicas"
    return fraction, f"{ready} of {wanted} replicas ready; {doing}"


def _done(replica: Replica) -> float:
    if replica.state == READY:
        return 1.0
    return _STAGES.get(replica.message, _ASKED if replica.start_time is not None else _BEFORE)


def rollout_kind(database: Database, clock: Clock) -> TaskKind:
    """The kind `deploy.rollout`."""

    async def load(task: Task, runtime: Any) -> Json:
        return task.input

    async def on_start(task: Task, uow: UnitOfWork) -> None:
        now = clock.now()
        orders = WorkOrders(uow)
        order = await orders.get(task.target, for_update=True)
        if order.state == states.ROLLING_OUT or order.state == states.SUCCEEDED:
            return
        order.start(ACTOR, now)
        await orders.save(order)
        await _ask(uow, order, now)

    async def apply(task: Task, result: Json, uow: UnitOfWork) -> Json:
        return result

    async def on_failure(task: Task, error: TaskError, uow: UnitOfWork) -> None:
        """The task may end without the roll-out having ended, such as when it was cancelled before it began."""
        now = clock.now()
        order = await WorkOrders(uow).get(task.target, for_update=True)
        if order.ended:
            return
        await _give_up(uow, order, error.message, now)
        if error.reason == "CANCELLED":
            order.cancel(ACTOR, error.message, now)
        else:
            order.fail(ACTOR, error.message, now)
        await WorkOrders(uow).save(order)

    return TaskKind(
        name=ROLLOUT_TASK,
        load=load,
        entrypoint="",
        apply=apply,
        resources={},
        on_start=on_start,
        on_failure=on_failure,
        driver=RolloutCarrier(database, clock),
    )


async def _ask(uow: UnitOfWork, order: WorkOrder, now: Any) -> None:
    """Makes the order's revision the target of its deployment, which is made when it does not exist."""
    deployments = Deployments(uow)
    revision = Revision.of(order, uow.scope.traceparent)
    lineage = [Parent(order.model_version, order.model_digest, "deployed_from"), Parent(order.name, "", "ordered_by")]
    deployment = await deployments.find(order.deployment, for_update=True)
    if deployment is None:
        deployment = Deployment(
            uid=uuid7(),
            name=order.deployment,
            create_time=now,
            update_time=now,
            creator=order.creator,
            labels=order.labels,
            secrecy=order.secrecy,
            lineage=lineage,
        )
        deployment.roll_out(revision, ACTOR, now)
        await deployments.insert(deployment)
        return
    replaced = deployment.target
    deployment.roll_out(revision, ACTOR, now)
    deployment.secrecy, deployment.lineage = max(deployment.secrecy, order.secrecy), lineage
    await deployments.save(deployment)
    if replaced is not None and replaced.work_order != order.name:
        await _supersede(uow, replaced.work_order, order.name, now)


async def _supersede(uow: UnitOfWork, name: str, by: str, now: Any) -> None:
    """A newer order took the place of one that was still rolling out."""
    orders = WorkOrders(uow)
    order = await orders.get(name, for_update=True)
    if not order.ended:
        order.cancel(ACTOR, f"superseded by {by}", now)
        await orders.save(order)


async def _give_up(uow: UnitOfWork, order: WorkOrder, reason: str, now: Any) -> None:
    deployments = Deployments(uow)
    deployment = await deployments.find(order.deployment, for_update=True)
    if deployment is not None and deployment.target is not None and deployment.target.work_order == order.name:
        deployment.abandon(reason, ACTOR, now)
        await deployments.save(deployment)


def _outcome(order: WorkOrder) -> CarrierReport:
    if order.state == states.SUCCEEDED:
        result = {"deployment": order.deployment, "work_order": order.name, "model_version": order.model_version}
        return CarrierReport("succeeded", result=result)
    if order.state == states.CANCELLED:
        return CarrierReport("cancelled")
    error = {
        "reason": "REPLICA_UNAVAILABLE",
        "message": order.failure or "the roll-out failed",
        "metadata": {"deployment": order.deployment},
        "retryable": True,
    }
    return CarrierReport("failed", error=error)


def _task_uid(carrier: str) -> str:
    """Carriers are called `argosy-deploy-<uid of the task>-<attempt>`."""
    return carrier.removeprefix("argosy-deploy-").rsplit("-", 1)[0]
