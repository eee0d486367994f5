"""Quotas: who may hold how much at once and use how much a month, and who comes next when there is no room."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from libs.common.domain import DomainError, Resource

# What a quota can limit, with the words for it.
UNITS = {
    "cpus": "cores",
    "cpu_hours": "core-hours of this month",
    "gpus": "GPUs",
    "gpu_hours": "GPU-hours of this month",
    "memory_bytes": "GiB of memory",
    "storage_bytes": "GiB of storage",
}
# The service that carries a job says that it runs every minute, and is back after a restart within seconds. One that is
# away for so long has lost its machine; what it held is free then, and counts again as soon as it is back.
HOLD_LEASE = timedelta(minutes=15)
# A task that waits asks every few seconds, up to a minute where the queue is long; who does not ask lets others pass.
WAIT_LEASE = timedelta(minutes=2)
# Sums of fractions of cores.
_TOLERANCE = 1e-9
_NAMED_HOLDERS = 3
# Stands among them for what jobs have left behind.
_KEPT = "what is kept"


@dataclass(frozen=True)
class Needs:
    """What a job holds while it runs: cores, GPUs, bytes; for how many seconds, 0 if nobody knows; what it writes."""

    cpus: float = 0.0
    gpus: float = 0.0
    memory_bytes: int = 0
    seconds: float = 0.0
    storage_bytes: int = 0

    def amount(self, resource: str) -> float:
        """How much of what `UNITS` names."""
        if resource == "cpu_hours":
            return self.cpus * self.seconds / 3600
        if resource == "gpu_hours":
            return self.gpus * self.seconds / 3600
        return float(getattr(self, resource))

    def touches(self, resource: str) -> bool:
        """Whether it needs any; hours also where their number is not known."""
        return self.amount({"cpu_hours": "cpus", "gpu_hours": "gpus"}.get(resource, resource)) > 0


@dataclass(kw_only=True)
class Quota(Resource):
    """The limits of one scope; None does not bind.

    Attributes:
        scope: name of an organization, a department, a user or a service account.
    """

    scope: str = ""
    cpus: float | None = None
    cpu_hours: float | None = None
    gpus: float | None = None
    gpu_hours: float | None = None
    memory_bytes: int | None = None
    storage_bytes: int | None = None

    def limits(self) -> dict[str, float]:
        """Those that bind."""
        return {resource: limit for resource in UNITS if (limit := getattr(self, resource)) is not None}

    def require_limit(self) -> None:
        """Raises INVALID_FIELD when it limits nothing."""
        if not self.limits():
            message = f"quota: set at least one limit of {', '.join(UNITS)}"
            raise DomainError("INVALID_FIELD", message, field="quota")


class State(StrEnum):
    """States of a reservation; see quota.proto."""

    WAITING = "WAITING"
    HELD = "HELD"
    EXPIRED = "EXPIRED"
    SETTLED = "SETTLED"


@dataclass(kw_only=True)
class Reservation:
    """What one job holds, waits for, or has used.

    Attributes:
        number: place in the queue; 0 before it is stored.
        scopes: everything that it counts for, the organization first.
        renew_time: when somebody last asked for it.
        booked_time: until when its use is in the ledger, from its start on; None: it has not started.
        cpu_seconds, gpu_seconds: used, once it was settled or has expired.
        kept_bytes: of storage, that are kept after its end.
    """

    id: str
    org: str
    task: str = ""
    target: str = ""
    subject: str = ""
    scopes: list[str] = field(default_factory=list[str])
    needs: Needs = field(default_factory=Needs)
    state: State = State.WAITING
    waiting_for: str = ""
    number: int = 0
    ask_time: datetime
    renew_time: datetime
    start_time: datetime | None = None
    booked_time: datetime | None = None
    end_time: datetime | None = None
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    kept_bytes: int = 0

    def hold(self, now: datetime) -> None:
        """The job may start, or runs. One that had expired and runs counts as if it had not."""
        if self.state is not State.EXPIRED:
            self.booked_time = now
        self.start_time = self.start_time or now
        self.state, self.waiting_for, self.renew_time = State.HELD, "", now

    def lapsed(self, now: datetime) -> bool:
        """Whether nobody has asked for it for too long."""
        lease = HOLD_LEASE if self.state is State.HELD else WAIT_LEASE
        return self.renew_time < now - lease

    def stop(self, state: State, until: datetime) -> tuple[float, float]:
        """Ends what it holds; the core-seconds and GPU-seconds that are to be booked for it.

        Args:
            state: SETTLED, or EXPIRED.
            until: when the job ended, or was last seen.
        """
        used = (0.0, 0.0)
        if self.state is not State.WAITING and self.booked_time is not None:
            seconds = max(0.0, (until - self.booked_time).total_seconds())
            used = (self.needs.cpus * seconds, self.needs.gpus * seconds)
            self.booked_time = max(until, self.booked_time)
        self.cpu_seconds += used[0]
        self.gpu_seconds += used[1]
        self.state, self.waiting_for = state, ""
        self.end_time = until if state is State.SETTLED else None
        return used


@dataclass(frozen=True)
class Spent:
    """Core-hours and GPU-hours of a scope in a month that are in the ledger."""

    cpu_hours: float = 0.0
    gpu_hours: float = 0.0


@dataclass(frozen=True)
class Shortage:
    """A limit that keeps a job from starting: whose, of what, and how the others stand there."""

    quota: Quota
    resource: str
    needed: float
    used: float
    holders: tuple[str, ...] = ()
    before: str = ""

    def never(self) -> str:
        """Why the job cannot start at all."""
        limit = _figure(self.resource, self.quota.limits()[self.resource])
        needed = _figure(self.resource, self.needed)
        return f"it needs {needed} {UNITS[self.resource]}, and {self.quota.scope} may use {limit}"

    def now(self) -> str:
        """Why it cannot start yet."""
        limit, used = (_figure(self.resource, value) for value in (self.quota.limits()[self.resource], self.used))
        text = f"{used} of {limit} {UNITS[self.resource]} of {self.quota.scope} are used"
        if self.holders:
            more = len(self.holders) - _NAMED_HOLDERS
            text += f" by {', '.join(self.holders[:_NAMED_HOLDERS])}" + (f" and {more} more" if more > 0 else "")
        return text + (f"; {self.before} waits longer" if self.before else "")


def _figure(resource: str, value: float) -> str:
    return f"{value / 2**30 if resource.endswith('_bytes') else value:.4g}"


def impossible(needs: Needs, scopes: Sequence[str], quotas: Sequence[Quota]) -> Shortage | None:
    """The first limit that a job of these needs exceeds although nothing else were there."""
    for quota, resource, limit in _limits(scopes, quotas):
        needed = needs.amount(resource)
        if needed > limit + _TOLERANCE or (needs.touches(resource) and not limit):
            return Shortage(quota, resource, needed, 0.0)
    return None


class Room:
    """What is left for a job, given everything that holds and everything that waits before it.

    First come, first served at each limit: a job that waits at a limit keeps all that came later from it, however
    small they are; what does not touch that limit passes. One that would fit and has not asked again yet has its
    room.

    Args:
        quotas: of the organization.
        spent: by scope, of this month.
        held: reservations that hold.
        waiting: those that wait, in their order, up to the job in question and without it.
        kept: bytes of storage by scope, of jobs that have ended.
    """

    def __init__(
        self,
        quotas: Sequence[Quota],
        spent: Mapping[str, Spent],
        held: Sequence[Reservation],
        waiting: Sequence[Reservation] = (),
        kept: Mapping[str, int] | None = None,
    ) -> None:
        self._quotas = quotas
        self._used: dict[tuple[str, str], float] = defaultdict(float)
        self._holders: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._closed: dict[tuple[str, str], str] = {}
        for scope, hours in spent.items():
            self._used[scope, "cpu_hours"] += hours.cpu_hours
            self._used[scope, "gpu_hours"] += hours.gpu_hours
        for scope, size in (kept or {}).items():
            self._used[scope, "storage_bytes"] += size
            self._holders[scope, "storage_bytes"].append(_KEPT)
        for one in held:
            self._take(one)
        for one in waiting:
            self.admit(one)

    def shortages(self, needs: Needs, scopes: Sequence[str]) -> list[Shortage]:
        """The limits that keep a job with these needs waiting; empty: it fits now."""
        found: list[Shortage] = []
        for quota, resource, limit in _limits(scopes, self._quotas):
            if not needs.touches(resource):
                continue
            place, needed = (quota.scope, resource), needs.amount(resource)
            used = self._used[place]
            full = used + needed > limit + _TOLERANCE or (not needed and used >= limit)
            if full or place in self._closed:
                before = self._closed.get(place, "")
                found.append(Shortage(quota, resource, needed, used, tuple(self._holders[place]), before))
        return found

    def used(self, scope: str, resource: str) -> float:
        """How much of a resource a scope uses."""
        return self._used[scope, resource]

    def admit(self, one: Reservation) -> bool:
        """Whether the next one that waits fits; it takes its room then, or closes the limits that it waits at."""
        # One that no longer can be served at all must not keep the others waiting.
        if impossible(one.needs, one.scopes, self._quotas) is not None:
            return False
        short = self.shortages(one.needs, one.scopes)
        if not short:
            self._take(one)
        for shortage in short:
            self._closed.setdefault((shortage.quota.scope, shortage.resource), one.target or one.task)
        return not short

    def _take(self, one: Reservation) -> None:
        for scope in one.scopes:
            for resource in UNITS:
                if one.needs.touches(resource):
                    self._used[scope, resource] += one.needs.amount(resource)
                    self._holders[scope, resource].append(one.target or one.task)


def _limits(scopes: Sequence[str], quotas: Sequence[Quota]) -> Iterator[tuple[Quota, str, float]]:
    for quota in quotas:
        if quota.scope in scopes:
            for resource, limit in quota.limits().items():
                yield quota, resource, limit


def month_of(moment: datetime) -> str:
    """`2026-01`: the month, in UTC, in whose sums something counts that ended then."""
    return f"{moment:%Y-%m}"
