"""Who may start, who waits, and for whom: the rules of quotas, without a database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from libs.common.domain import DomainError
from services.identity.domain.quotas import (
    HOLD_LEASE,
    WAIT_LEASE,
    Needs,
    Quota,
    Reservation,
    Room,
    Spent,
    State,
    impossible,
)

NOW = datetime(2026, 1, 31, 23, tzinfo=UTC)
ORG, LAB, TEAM, ADA = "orgs/acme", "orgs/acme/departments/lab", "orgs/acme/departments/team", "orgs/acme/users/ada"


def quota(scope: str, **limits: Any) -> Quota:
    return Quota(uid="u", name=f"{ORG}/quotas/q", create_time=NOW, update_time=NOW, scope=scope, **limits)


def job(
    name: str, number: int, cpus: float = 1, scopes: tuple[str, ...] = (ORG, LAB, ADA), **fields: Any
) -> Reservation:
    needs = fields.pop("needs", Needs(cpus=cpus))
    return Reservation(
        id=name, org="acme", target=name, number=number, scopes=list(scopes), needs=needs, ask_time=NOW, renew_time=NOW
    )


def test_a_limit_of_any_scope_binds() -> None:
    room = Room([quota(ORG, cpus=4), quota(LAB, cpus=2)], {}, [job("a", 1, 1.5)])
    assert room.shortages(Needs(cpus=0.5), [ORG, LAB]) == []
    assert [found.quota.scope for found in room.shortages(Needs(cpus=1), [ORG, LAB])] == [LAB]
    assert room.shortages(Needs(cpus=2.5), [ORG, TEAM]) == []
    (short,) = room.shortages(Needs(cpus=1), [ORG, LAB])
    assert short.now() == f"1.5 of 2 cores of {LAB} are used by a"


def test_fractions_of_cores_add_up() -> None:
    held = [job(str(number), number, 0.1) for number in range(9)]
    assert Room([quota(ORG, cpus=1)], {}, held).shortages(Needs(cpus=0.1), [ORG]) == []


def test_small_jobs_do_not_overtake_a_big_one_at_its_limit() -> None:
    limits = [quota(LAB, cpus=4)]
    held, big = [job("a", 1, 3)], job("big", 2, 4)
    (short,) = Room(limits, {}, held, [big]).shortages(Needs(cpus=1), [ORG, LAB, ADA])
    assert short.before == "big"
    assert "big waits longer" in short.now()
    # Whoever does not use what the big one waits for passes.
    assert Room(limits, {}, held, [big]).shortages(Needs(cpus=1), [ORG, TEAM]) == []


def test_a_job_that_would_fit_keeps_its_room() -> None:
    """It asks again within seconds; who comes in between must not take it."""
    waiting = [job("first", 1, 4)]
    assert Room([quota(LAB, cpus=4)], {}, [], waiting).shortages(Needs(cpus=1), [ORG, LAB])


def test_a_job_that_waits_for_something_else_keeps_nothing() -> None:
    limits = [quota(ORG, cpus=8), quota(LAB, cpus=2)]
    waiting = [job("lab", 2, 2)]
    room = Room(limits, {}, [job("a", 1, 2)], waiting)
    assert room.shortages(Needs(cpus=6), [ORG, TEAM]) == []


def test_a_job_that_can_never_start_keeps_nobody_waiting() -> None:
    limits = [quota(LAB, cpus=2)]
    assert Room(limits, {}, [], [job("huge", 1, 3)]).shortages(Needs(cpus=2), [ORG, LAB]) == []


@pytest.mark.parametrize(
    ("limits", "needs", "words"),
    [
        ({"cpus": 4}, Needs(cpus=5), "needs 5 cores, and orgs/acme may use 4"),
        ({"gpus": 0}, Needs(cpus=1, gpus=1), "needs 1 GPUs, and orgs/acme may use 0"),
        ({"memory_bytes": 1 << 30}, Needs(memory_bytes=3 << 29), "needs 1.5 GiB of memory, and orgs/acme may use 1"),
        ({"cpu_hours": 1}, Needs(cpus=2, seconds=3600), "needs 2 core-hours of this month"),
        ({"cpu_hours": 0}, Needs(cpus=1), "may use 0"),
    ],
)
def test_what_exceeds_a_limit_by_itself_is_impossible(limits: dict[str, Any], needs: Needs, words: str) -> None:
    short = impossible(needs, [ORG], [quota(ORG, **limits)])
    assert short is not None
    assert words in short.never()
    assert impossible(needs, [ORG], [quota(LAB, **limits)]) is None


def test_what_is_kept_fills_the_storage() -> None:
    limits, kept = [quota(LAB, storage_bytes=4 << 30)], {LAB: 3 << 30, ORG: 3 << 30}
    room = Room(limits, {}, [], kept=kept)
    assert room.shortages(Needs(storage_bytes=1 << 30), [ORG, LAB]) == []
    (short,) = room.shortages(Needs(storage_bytes=2 << 30), [ORG, LAB])
    assert short.now() == f"3 of 4 GiB of storage of {LAB} are used by what is kept"
    assert room.shortages(Needs(cpus=1), [ORG, LAB]) == [], "who writes nothing passes"


def test_those_that_fit_are_admitted_in_their_order() -> None:
    room = Room([quota(LAB, cpus=2)], {}, [])
    assert [room.admit(job(str(number), number, 1)) for number in range(1, 5)] == [True, True, False, False]


def test_hours_of_a_month_are_counted_before_they_are_used() -> None:
    limits, spent = [quota(ORG, cpu_hours=10)], {ORG: Spent(cpu_hours=6)}
    running = job("a", 1, needs=Needs(cpus=1, seconds=3 * 3600))
    assert Room(limits, spent, [running]).shortages(Needs(cpus=1, seconds=3600), [ORG]) == []
    assert Room(limits, spent, [running]).shortages(Needs(cpus=1, seconds=3601), [ORG])
    # Of a job whose time nobody knows: until there is nothing left.
    assert Room(limits, spent, [running]).shortages(Needs(cpus=1), [ORG]) == []
    assert Room(limits, {ORG: Spent(cpu_hours=10)}, []).shortages(Needs(cpus=1), [ORG])


def test_use_is_booked_once_for_each_part_of_the_time() -> None:
    one = job("a", 1, needs=Needs(cpus=2, gpus=1))
    assert one.stop(State.SETTLED, NOW) == (0, 0), "it never started"
    one = job("a", 1, needs=Needs(cpus=2, gpus=1))
    one.hold(NOW)
    assert not one.lapsed(NOW + HOLD_LEASE)
    assert one.lapsed(NOW + HOLD_LEASE + timedelta(seconds=1))
    assert one.stop(State.EXPIRED, NOW + timedelta(seconds=10)) == (20, 10)
    # Its service is back: the job ran all the time.
    one.hold(NOW + timedelta(seconds=100))
    assert one.stop(State.SETTLED, NOW + timedelta(seconds=110)) == (200, 100)
    assert (one.cpu_seconds, one.gpu_seconds) == (220, 110)


def test_an_expired_one_is_settled_for_what_was_not_booked() -> None:
    one = job("a", 1, 2)
    one.hold(NOW)
    one.stop(State.EXPIRED, NOW + timedelta(seconds=10))
    assert one.stop(State.SETTLED, NOW + timedelta(seconds=15)) == (10, 0)


def test_a_place_is_kept_for_two_minutes() -> None:
    one = job("a", 1)
    assert not one.lapsed(NOW + WAIT_LEASE)
    assert one.lapsed(NOW + WAIT_LEASE + timedelta(seconds=1))


def test_a_quota_limits_something() -> None:
    with pytest.raises(DomainError, match="at least one limit"):
        quota(ORG).require_limit()
