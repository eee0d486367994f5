"""Replicas: processes that serve one deployment or one evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from libs.common.domain import DomainError, Resource
from services.deploy.domain.spec import Spec

STARTING = "STARTING"
READY = "READY"
FAILED = "FAILED"
GONE = "GONE"

# A crash is mostly over at once; a replica that dies again and again must not keep a core busy with loading.
_FIRST_BACKOFF_SECONDS = 0.5
_MAX_BACKOFF_SECONDS = 30.0


def actor_name(replica_uid: str) -> str:
    """Under which Ray knows a replica; whoever starts again finds it by this."""
    return f"argosy-deploy-replica-{replica_uid}"


@dataclass(kw_only=True)
class Replica(Resource):
    """What is wanted of a replica, and what was last seen of it.

    Attributes:
        deployment: that it serves; empty for an evaluation.
        work_order: revision of the deployment that it belongs to.
        model_version, model_digest, spec: what it serves and with what.
        audience: what tokens for it must carry.
        address: `host:port` while it is ready.
        actor: name under which Ray knows it.
        traceparent: trace of whoever asked for it.
        holder: evaluation that leased it.
        lease_expire_time: an evaluation replica is gone after this.
        stopping: it is not wanted any more.
        message: what it is doing, or what failed.
        restarts: how often it was started again.
        failures: the same, since it was last ready.
        start_time: when Ray was last asked for it; None: it is to be started.
        retry_time: it is not started again before this.
        context_length: tokens that the engine takes.
    """

    deployment: str = ""
    work_order: str = ""
    model_version: str = ""
    model_digest: str = ""
    spec: Spec = field(default_factory=Spec)
    audience: str = ""
    address: str = ""
    actor: str = ""
    traceparent: str = ""
    holder: str = ""
    lease_expire_time: datetime | None = None
    stopping: bool = False
    message: str = ""
    restarts: int = 0
    failures: int = 0
    start_time: datetime | None = None
    retry_time: datetime | None = None
    context_length: int = 0

    @property
    def for_evaluation(self) -> bool:
        """Whether it is leased and not part of a deployment."""
        return not self.deployment

    @property
    def alive(self) -> bool:
        """Whether it is still wanted and not given up."""
        return not self.stopping and self.state in (STARTING, READY)

    def expired(self, now: datetime) -> bool:
        """Whether its lease has run out."""
        return self.lease_expire_time is not None and now >= self.lease_expire_time

    def may_start(self, now: datetime) -> bool:
        """Whether its back-off is over."""
        return self.retry_time is None or now >= self.retry_time

    def started(self, now: datetime) -> None:
        """Ray has been asked for it."""
        self.start_time, self.update_time, self.message = now, now, "starting"

    def became_ready(self, address: str, context_length: int, now: datetime) -> None:
        """It serves at this address."""
        self.state, self.address, self.context_length = READY, address, context_length
        self.message, self.update_time, self.failures = "", now, 0

    def progressed(self, message: str, now: datetime) -> bool:
        """What it is doing now. Tells whether that is new."""
        if message == self.message:
            return False
        self.message, self.update_time = message, now
        return True

    def lost(self, message: str, now: datetime) -> None:
        """It died or never came up: it is to be started again, later with every time."""
        pause = min(_FIRST_BACKOFF_SECONDS * 2 ** min(self.failures, 16), _MAX_BACKOFF_SECONDS)
        self.state, self.address, self.message = STARTING, "", message
        self.restarts += 1
        self.failures += 1
        self.start_time, self.retry_time = None, now + timedelta(seconds=pause)
        self.update_time = now

    def failed(self, message: str, now: datetime) -> None:
        """It would fail again."""
        self.state, self.address, self.message, self.update_time = FAILED, "", message, now

    def stop(self, message: str, now: datetime) -> None:
        """It is not wanted any more."""
        self.stopping, self.message, self.update_time = True, message, now

    def gone(self, now: datetime) -> None:
        """Nothing is left of it."""
        self.state, self.address, self.update_time = GONE, "", now

    def renew(self, seconds: float, now: datetime) -> None:
        """Prolongs the lease.

        Raises:
            DomainError: NOT_FOUND when it is gone or about to be.
        """
        if self.state == GONE or self.stopping or self.expired(now):
            raise DomainError("NOT_FOUND", f"{self.name} does not exist.", name=self.name)
        self.lease_expire_time = now + timedelta(seconds=seconds)
        self.update_time = now
