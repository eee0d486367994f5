"""Quotas in a running identity: exact under concurrency, first come first served, given back whatever happens."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from argosy.common.v1 import options_pb2
from argosy.identity.v1 import identity_pb2, identity_service_pb2, quota_pb2, quota_service_pb2_grpc
from argosy.identity.v1 import quota_service_pb2 as pb
from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy import text

from libs.common.config import CommonSettings
from libs.common.errors import ArgosyError
from libs.common.ids import uuid7
from libs.common.rpc.client import Channels
from services.identity.domain.quotas import HOLD_LEASE, WAIT_LEASE
from tests.integration.identity.conftest import Rig

ORG = "orgs/acme"
GIB = 1 << 30


class Books:
    """The quota service, as administrators and as the training service call it."""

    def __init__(self, rig: Rig) -> None:
        settings = CommonSettings(peers=rig.mesh.peers, pki_dir=rig.mesh.pki)
        self.channels = [Channels(settings, name) for name in ("gateway", "training")]
        self.people, self.jobs = (
            each.stub(quota_service_pb2_grpc.QuotaServiceStub, "identity") for each in self.channels
        )
        self.rig = rig
        self.admin = rig.system

    async def limit(self, scope: str = ORG, **limits: Any) -> quota_pb2.Quota:
        request = pb.CreateQuotaRequest(parent=ORG, quota=quota_pb2.Quota(scope=scope, **limits))
        return await self.people.CreateQuota(request, metadata=self.admin)

    async def use(self, name: str) -> quota_pb2.QuotaUse:
        return (await self.people.GetQuota(pb.GetQuotaRequest(name=name), metadata=self.admin)).use

    async def ask(
        self, reservation: str, cpus: float = 1, subject: str = "users/bob", running: bool = False, **needs: Any
    ) -> pb.ReserveQuotaResponse:
        return await self.jobs.ReserveQuota(
            pb.ReserveQuotaRequest(
                parent=ORG,
                reservation_id=reservation,
                subject=subject,
                target=f"runs/{reservation}",
                needs=quota_pb2.QuotaNeeds(cpus=cpus, **needs),
                running=running,
            )
        )

    async def settle(self, reservation: str, kept: int = 0, subject: str = "") -> quota_pb2.QuotaReservation:
        return (await self.ended(reservation, kept, subject)).quota_reservation

    async def ended(self, reservation: str, kept: int = 0, subject: str = "") -> pb.SettleQuotaResponse:
        request = pb.SettleQuotaRequest(parent=ORG, reservation_id=reservation, kept_bytes=kept, subject=subject)
        return await self.jobs.SettleQuota(request)

    async def listed(self, **fields: Any) -> list[quota_pb2.QuotaReservation]:
        request = pb.ListQuotaReservationsRequest(parent=ORG, **fields)
        return list((await self.people.ListQuotaReservations(request, metadata=self.admin)).quota_reservations)

    async def age(self, reservation: str, span: timedelta) -> None:
        """As if nobody had said anything about a reservation for so long."""
        database = self.rig.service.app.database  # type: ignore[union-attr]
        change = text("UPDATE quota_reservations SET renew_time = renew_time - CAST(:span AS interval) WHERE id = :id")
        async with database.system() as uow:
            await (await uow.connection()).execute(change, {"span": span, "id": reservation})


@pytest.fixture
async def books(rig: Rig) -> Any:
    made = Books(rig)
    yield made
    for each in made.channels:
        await each.close()


async def refused(call: Any) -> ArgosyError:
    with pytest.raises(ArgosyError) as caught:
        await call
    return caught.value


async def test_many_at_once_never_exceed_a_limit_and_never_wait_for_each_other(books: Books) -> None:
    """Without the ledger's lock two see the same room; with locks taken in other orders they would deadlock."""
    quota = await books.limit(cpus=4)
    await books.limit("orgs/acme/users/bob", cpus=3)
    subjects = ("users/bob", "users/ada")
    answers = await asyncio.gather(*(books.ask(f"job-{n}", subject=subjects[n % 2]) for n in range(64)))
    assert sum(answer.granted for answer in answers) == 4
    use = await books.use(quota.name)
    assert (use.cpus, use.held_count, use.waiting_count) == (4, 4, 60)
    seen = 4
    for _ in range(3):
        held = [one.reservation_id for one in await books.listed(page_size=1000) if one.state == 2]
        assert len(held) <= 4
        await asyncio.gather(*(books.settle(one) for one in held))
        again = await asyncio.gather(
            *(books.ask(f"job-{n}", subject=subjects[n % 2]) for n in range(seen, 64)), return_exceptions=True
        )
        assert not [error for error in again if isinstance(error, ArgosyError) and error.reason != "STATE_CONFLICT"]
        assert (await books.use(quota.name)).cpus <= 4


async def test_without_limits_everything_starts_and_is_counted(books: Books) -> None:
    assert (await books.ask("a", 500)).granted
    quota = await books.limit(cpus=2)
    assert (await books.use(quota.name)).cpus == 500
    assert not (await books.ask("b")).granted


async def test_the_same_id_is_the_same_room(books: Books) -> None:
    quota = await books.limit(cpus=1)
    assert all(answer.granted for answer in await asyncio.gather(*(books.ask("a") for _ in range(8))))
    assert (await books.use(quota.name)).cpus == 1
    settled = await asyncio.gather(*(books.settle("a") for _ in range(8)))
    assert len({one.cpu_hours for one in settled}) == 1
    assert (await books.use(quota.name)).cpus == 0
    assert (await refused(books.ask("a"))).reason == "STATE_CONFLICT"


async def test_who_is_settled_before_he_asks_comes_too_late(books: Books) -> None:
    """A worker that was slow must not take room for a task that another one has ended."""
    await books.settle("late")
    assert (await refused(books.ask("late"))).reason == "STATE_CONFLICT"


async def test_first_come_first_served_and_the_small_do_not_starve_the_big(books: Books) -> None:
    await books.limit(cpus=4)
    assert (await books.ask("a", 2)).granted
    big = await books.ask("big", 4)
    assert not big.granted
    assert big.waiting_for == "2 of 4 cores of orgs/acme are used by runs/a"
    assert big.retry_seconds == pytest.approx(5)
    small = await books.ask("small", 1)
    assert not small.granted
    assert "runs/big waits longer" in small.waiting_for
    await books.settle("a")
    assert not (await books.ask("small", 1)).granted, "the room is kept for the big one"
    assert (await books.ask("big", 4)).granted
    await books.settle("big")
    assert (await books.ask("small", 1)).granted


async def test_departments_bind_all_below_them(books: Books) -> None:
    people, system = books.rig.people, books.admin
    for name, above in (("lab", ""), ("team", f"{ORG}/departments/lab")):
        request = identity_service_pb2.CreateDepartmentRequest(
            parent=ORG, department_id=name, department=identity_pb2.Department(parent_department=above)
        )
        await people.CreateDepartment(request, metadata=system)
    await books.rig.user("carl", options_pb2.ROLE_EDITOR, department=f"{ORG}/departments/team")
    await books.limit(f"{ORG}/departments/lab", cpus=1)
    assert (await books.ask("a", subject="users/carl")).granted
    answer = await books.ask("b", subject="users/carl")
    assert "departments/lab" in answer.waiting_for
    assert (await books.ask("c", subject="users/bob")).granted
    (one,) = await books.listed(scope=f"{ORG}/departments/team", page_size=1)
    assert one.scopes == [ORG, f"{ORG}/departments/lab", f"{ORG}/departments/team", f"{ORG}/users/carl"]


async def test_jobs_of_somebody_who_has_left_a_dissolved_department_start(books: Books) -> None:
    people, system = books.rig.people, books.admin
    lab = f"{ORG}/departments/lab"
    await people.CreateDepartment(
        identity_service_pb2.CreateDepartmentRequest(
            parent=ORG, department_id="lab", department=identity_pb2.Department()
        ),
        metadata=system,
    )
    await books.rig.user("carl", options_pb2.ROLE_EDITOR, department=lab)
    await people.DeleteUser(identity_service_pb2.DeleteUserRequest(name=f"{ORG}/users/carl"), metadata=system)
    await people.DeleteDepartment(identity_service_pb2.DeleteDepartmentRequest(name=lab), metadata=system)
    assert (await books.ask("a", subject="users/carl")).granted


async def test_what_can_never_start_is_refused_by_name(books: Books) -> None:
    await books.limit(cpus=2)
    error = await refused(books.ask("a", 3))
    assert error.reason == "QUOTA_EXCEEDED"
    assert "needs 3 cores, and orgs/acme may use 2" in error.message
    request = pb.CheckQuotaRequest(parent=ORG, subject="users/bob", needs=quota_pb2.QuotaNeeds(cpus=3))
    assert "needs 3 cores" in (await books.jobs.CheckQuota(request)).impossible
    await books.ask("b", 2)
    request.needs.cpus = 1
    assert (await books.jobs.CheckQuota(request)).waiting_for == "2 of 2 cores of orgs/acme are used by runs/b"
    assert len(await books.listed()) == 1, "to ask is not to reserve"


async def test_what_a_vanished_service_held_is_free_until_it_is_back(books: Books) -> None:
    quota = await books.limit(cpus=1, cpu_hours=100)
    await books.ask("a")
    await books.age("a", HOLD_LEASE / 2)
    assert not (await books.ask("b")).granted, "a service that restarts loses nothing"
    await books.age("a", HOLD_LEASE)
    assert (await books.ask("b")).granted
    # Back: the job ran all the time, and counts again although there is no room for it.
    assert (await books.ask("a", running=True)).granted
    assert (await books.use(quota.name)).cpus == 2
    assert not (await books.ask("c")).granted


async def test_a_job_that_had_not_begun_when_its_room_lapsed_queues_again(books: Books) -> None:
    """Unlike one that runs; else two would start where there is room for one."""
    quota = await books.limit(cpus=1)
    await books.ask("a")
    await books.age("a", HOLD_LEASE * 2)
    assert (await books.ask("b")).granted
    assert not (await books.ask("a")).granted
    assert (await books.use(quota.name)).cpus == 1
    await books.settle("b")
    assert (await books.ask("a")).granted


async def test_who_was_away_has_his_place_again(books: Books) -> None:
    """He lets others pass meanwhile, and waits no longer than those who came after him."""
    await books.limit(cpus=4)
    await books.ask("a", 2)
    assert not (await books.ask("big", 4)).granted
    await books.age("big", WAIT_LEASE * 2)
    assert (await books.ask("small", 1)).granted
    assert not (await books.ask("next", 2)).granted
    await books.ask("big", 4)
    assert "runs/big waits longer" in (await books.ask("next", 2)).waiting_for
    await books.settle("a")
    assert not (await books.ask("next", 2)).granted


async def test_an_end_names_those_that_fit_now(books: Books) -> None:
    """In the order of the queue, as far as there is room, and nobody else."""
    await books.limit(cpus=2)
    await books.ask("a", 1)
    await books.ask("other", 1)
    for name in ("b", "c", "d"):
        await books.ask(name, 1)
    assert (await books.ended("a")).may_start == ["b"]
    assert (await books.ended("other")).may_start == ["b", "c"]
    # Of two that end one after the other, each fits for itself; who asks first is the first of the queue.
    assert not (await books.ask("d", 1)).granted


async def test_storage_is_used_until_it_is_deleted(books: Books) -> None:
    quota = await books.limit("orgs/acme/users/bob", storage_bytes=10 * GIB)
    assert (await books.ask("a", storage_bytes=6 * GIB)).granted
    short = await books.ask("b", storage_bytes=6 * GIB)
    assert short.waiting_for == "6 of 10 GiB of storage of orgs/acme/users/bob are used by runs/a"
    assert (await books.ask("c", subject="users/ada", storage_bytes=6 * GIB)).granted
    # It wrote more than it had reserved: what is kept counts.
    settled = await books.settle("a", 7 * GIB)
    assert settled.kept_bytes == 7 * GIB
    use = await books.use(quota.name)
    assert (use.storage_bytes, use.cpus, use.held_count) == (7 * GIB, 0, 0)
    short = await books.ask("b", storage_bytes=6 * GIB)
    assert short.waiting_for == "7 of 10 GiB of storage of orgs/acme/users/bob are used by what is kept"
    # Deleted; and a teller who is late changes nothing.
    assert (await books.ended("a")).may_start == ["b"]
    await books.settle("a", 7 * GIB)
    assert (await books.use(quota.name)).storage_bytes == 0
    assert (await books.ask("b", storage_bytes=6 * GIB)).granted
    never = await refused(books.ask("d", storage_bytes=11 * GIB))
    assert "needs 11 GiB of storage, and orgs/acme/users/bob may use 10" in never.message


async def test_what_is_undeleted_counts_again(books: Books) -> None:
    """Under an id that nobody has asked for, whether there is room or not."""
    quota = await books.limit("orgs/acme/users/bob", storage_bytes=GIB)
    await books.settle("back", 3 * GIB, "users/bob")
    assert (await books.use(quota.name)).storage_bytes == 3 * GIB
    assert not (await books.ask("a", storage_bytes=1)).granted
    await books.settle("back")
    assert (await books.ask("a", storage_bytes=1)).granted


async def test_what_is_kept_is_not_forgotten(books: Books) -> None:
    """Settled reservations go after thirty days; those that keep storage stay, and can be given back."""
    quota = await books.limit(storage_bytes=GIB)
    await books.ask("a", storage_bytes=5)
    await books.ask("b")
    await books.settle("a", 5)
    await books.settle("b")
    for name in ("a", "b"):
        await books.age(name, timedelta(days=31))
    await books.settle("c")
    assert [one.reservation_id for one in await books.listed(show_settled=True)] == ["c", "a"]
    await books.settle("a")
    assert (await books.use(quota.name)).storage_bytes == 0


async def test_storage_is_exact_when_many_end_at_once(books: Books) -> None:
    quota = await books.limit(storage_bytes=100)
    await asyncio.gather(*(books.ask(f"job-{n}", storage_bytes=1) for n in range(24)))
    await asyncio.gather(*(books.settle(f"job-{n}", n) for n in range(24)))
    assert (await books.use(quota.name)).storage_bytes == sum(range(24))
    await asyncio.gather(*(books.settle(f"job-{n}") for n in range(24)))
    assert (await books.use(quota.name)).storage_bytes == 0


async def test_hours_of_the_month_are_settled(books: Books) -> None:
    quota = await books.limit(cpu_hours=1)
    assert (await books.ask("a", 2, seconds=1800)).granted
    assert "core-hours of this month" in (await books.ask("b", 1, seconds=60)).waiting_for
    assert (await books.use(quota.name)).cpu_hours == pytest.approx(1)
    await asyncio.sleep(0.05)
    settled = await books.settle("a")
    assert 0 < settled.cpu_hours < 0.01
    assert (await books.use(quota.name)).cpu_hours == pytest.approx(settled.cpu_hours)
    assert (await books.ask("b", 1, seconds=60)).granted


async def test_quotas_are_set_changed_and_lifted(books: Books) -> None:
    quota = await books.limit(cpus=1, gpus=0)
    assert (await refused(books.limit(cpus=3))).reason == "ALREADY_EXISTS"
    assert (await refused(books.limit("orgs/acme/users/nobody", cpus=1))).reason == "NOT_FOUND"
    for scope in ("orgs/rival", "orgs/acme/datasets/d", "orgs/acme/users/bob/x"):
        assert (await refused(books.limit(scope, cpus=1))).reason == "INVALID_FIELD"
    assert (await refused(books.limit("orgs/acme/users/bob"))).reason == "INVALID_FIELD"
    await books.ask("a", 1)
    assert (await refused(books.ask("g", 1, gpus=1))).reason == "QUOTA_EXCEEDED"
    change = pb.UpdateQuotaRequest(
        quota=quota_pb2.Quota(name=quota.name, cpus=2), update_mask=FieldMask(paths=["cpus", "gpus"])
    )
    changed = await books.people.UpdateQuota(change, metadata=books.admin)
    assert changed.cpus == 2
    assert not changed.HasField("gpus")
    assert (await books.ask("b", 1)).granted
    await books.people.DeleteQuota(pb.DeleteQuotaRequest(name=quota.name), metadata=books.admin)
    assert (await books.ask("c", 99)).granted
    other = await books.limit(cpus=5)
    undelete = pb.UndeleteQuotaRequest(name=quota.name)
    assert (await refused(books.people.UndeleteQuota(undelete, metadata=books.admin))).reason == "ALREADY_EXISTS"
    await books.people.DeleteQuota(pb.DeleteQuotaRequest(name=other.name), metadata=books.admin)
    assert (await books.people.UndeleteQuota(undelete, metadata=books.admin)).cpus == 2


async def test_another_organization_neither_sees_nor_counts(books: Books) -> None:
    await books.rig.organization("rival")
    await books.limit(cpus=1)
    await books.ask("a")
    request = pb.ReserveQuotaRequest(
        parent="orgs/rival", reservation_id="a", subject="users/eve", needs=quota_pb2.QuotaNeeds(cpus=7)
    )
    assert (await books.jobs.ReserveQuota(request)).granted
    assert [one.needs.cpus for one in await books.listed()] == [1]


async def test_reservations_come_in_pages(books: Books) -> None:
    for number in range(5):
        await books.ask(f"job-{number}")
    await books.settle("job-1")
    request = pb.ListQuotaReservationsRequest(parent=ORG, page_size=2)
    found: list[str] = []
    while True:
        page = await books.people.ListQuotaReservations(request, metadata=books.admin)
        found += [one.reservation_id for one in page.quota_reservations]
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert found == ["job-4", "job-3", "job-2", "job-0"]
    assert len(await books.listed(show_settled=True)) == 5


async def test_a_repeated_call_is_answered_once(books: Books) -> None:
    request = pb.ReserveQuotaRequest(
        parent=ORG, reservation_id="a", subject="users/bob", needs=quota_pb2.QuotaNeeds(cpus=1), request_id=uuid7()
    )
    first = await books.jobs.ReserveQuota(request)
    assert await books.jobs.ReserveQuota(request) == first
