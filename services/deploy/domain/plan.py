"""What has to happen so that the replicas of a deployment are those that it wants. Decides, does nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from services.deploy.domain import replica as replica_states
from services.deploy.domain.deployment import ENDED, Deployment, Revision
from services.deploy.domain.replica import Replica

# Starts of one replica within a roll-out before it counts as failed.
MAX_STARTS = 5


@dataclass
class Plan:
    """Steps for one deployment.

    Attributes:
        create: revisions of which one more replica is wanted, as often as they are listed.
        stop: replicas that are not wanted any more.
        retry: replicas of what is served that failed for good: it was served before, so the machine may be at fault.
        switch: the target is ready and is to be served from now on.
        abandon: why the target is to be given up; empty: it is not.
        ready: ready replicas of the revision that is served.
    """

    create: list[Revision] = field(default_factory=list[Revision])
    stop: list[Replica] = field(default_factory=list[Replica])
    retry: list[Replica] = field(default_factory=list[Replica])
    switch: bool = False
    abandon: str = ""
    ready: int = 0

    def changes(self, deployment: Deployment) -> bool:
        """Whether there is anything to do."""
        work = self.create or self.stop or self.retry or self.switch or self.abandon
        return bool(work) or (deployment.serving and self.ready != deployment.ready_replicas)


def plan(deployment: Deployment, replicas: Sequence[Replica]) -> Plan:
    """The steps from what there is to what is wanted.

    New replicas come before the old ones go: a target is served only when all of its replicas are ready, and only
    then are those of the old revision stopped.

    Args:
        deployment: as stored.
        replicas: its replicas that are not gone.
    """
    steps = Plan()
    if deployment.state in ENDED:
        steps.stop = [replica for replica in replicas if not replica.stopping]
        return steps
    wanted = [revision for revision in (deployment.current, deployment.target) if revision is not None]
    kept = {revision.work_order for revision in wanted}
    steps.stop = [replica for replica in replicas if replica.work_order not in kept and not replica.stopping]
    if deployment.target is not None:
        _roll_out(deployment.target, replicas, steps)
    if deployment.current is not None:
        _keep(deployment.current, replicas, steps)
    return steps


def _of(revision: Revision, replicas: Sequence[Replica]) -> list[Replica]:
    return [replica for replica in replicas if replica.work_order == revision.work_order and not replica.stopping]


def _ready(replicas: Sequence[Replica]) -> int:
    return sum(replica.state == replica_states.READY for replica in replicas)


def _roll_out(target: Revision, replicas: Sequence[Replica], steps: Plan) -> None:
    own = _of(target, replicas)
    for replica in own:
        if replica.state == replica_states.FAILED or replica.failures >= MAX_STARTS:
            steps.abandon = replica.message or "a replica did not come up"
            return
    steps.create += [target] * (target.spec.replicas - len(own))
    steps.switch = _ready(own) >= target.spec.replicas


def _keep(current: Revision, replicas: Sequence[Replica], steps: Plan) -> None:
    own = _of(current, replicas)
    steps.ready = _ready(own)
    steps.retry = [replica for replica in own if replica.state == replica_states.FAILED]
    steps.create += [current] * (current.spec.replicas - len(own))
