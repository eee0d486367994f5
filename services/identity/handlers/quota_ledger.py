"""What jobs reserve before they start, hold while they run, and have used in the end."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from argosy.identity.v1 import quota_pb2
from argosy.identity.v1 import quota_service_pb2 as pb

from libs.common.db.mapping import timestamp
from libs.common.domain import DomainError
from libs.common.ids import org_of
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import PageToken, page_size
from services.identity.domain.quotas import Needs, Quota, Reservation, Room, Shortage, State, impossible
from services.identity.store.quotas import Ledger, Quotas

if TYPE_CHECKING:
    from services.identity.app import App

# Who waits asks again after the first, and later the further back in the queue.
_RETRY_SECONDS, _RETRY_STEP, _MOST_RETRY_SECONDS = 5.0, 0.2, 60.0


def message(reservation: Reservation) -> quota_pb2.QuotaReservation:
    needs = reservation.needs
    shown = quota_pb2.QuotaReservation(
        reservation_id=reservation.id,
        state=f"STATE_{reservation.state}",
        task=reservation.task,
        target=reservation.target,
        subject=reservation.subject,
        scopes=reservation.scopes,
        needs=quota_pb2.QuotaNeeds(
            cpus=needs.cpus,
            gpus=needs.gpus,
            memory_bytes=needs.memory_bytes,
            seconds=needs.seconds,
            storage_bytes=needs.storage_bytes,
        ),
        waiting_for=reservation.waiting_for,
        cpu_hours=reservation.cpu_seconds / 3600,
        gpu_hours=reservation.gpu_seconds / 3600,
        kept_bytes=reservation.kept_bytes,
    )
    for name in ("ask_time", "start_time", "end_time"):
        moment: datetime | None = getattr(reservation, name)
        if moment is not None:
            getattr(shown, name).CopyFrom(timestamp(moment))
    return shown


async def list_quota_reservations(
    request: pb.ListQuotaReservationsRequest, call: Call[App]
) -> pb.ListQuotaReservationsResponse:
    size, before = page_size(request.page_size), PageToken.decode(request)
    if before and not (before.isascii() and before.isdigit()):
        raise DomainError("PAGE_TOKEN_INVALID", "page_token: is not one that this list gave", field="page_token")
    ledger = Ledger(call.uow, org_of(request.parent))
    found = await ledger.page(request.scope, request.show_settled, size + 1, int(before or 0))
    more = str(found[size - 1].number) if len(found) > size else ""
    return pb.ListQuotaReservationsResponse(
        quota_reservations=[message(one) for one in found[:size]], next_page_token=PageToken.encode(request, more)
    )


async def check_quota(request: pb.CheckQuotaRequest, call: Call[App]) -> pb.CheckQuotaResponse:
    quotas = await Quotas(call.uow).binding()
    if not quotas:
        return pb.CheckQuotaResponse()
    ledger, now, needs = Ledger(call.uow, org_of(request.parent)), call.clock.now(), _needs(request.needs)
    scopes = await ledger.scopes_of(request.subject)
    if (never := impossible(needs, scopes, quotas)) is not None:
        return pb.CheckQuotaResponse(impossible=never.never())
    live = [one for one in await ledger.live() if not one.lapsed(now)]
    short = (await _room(ledger, quotas, live, now)).shortages(needs, scopes)
    return pb.CheckQuotaResponse(waiting_for=short[0].now() if short else "")


async def reserve_quota(request: pb.ReserveQuotaRequest, call: Call[App]) -> pb.ReserveQuotaResponse:
    ledger, now = Ledger(call.uow, org_of(request.parent)), call.clock.now()
    quotas = await Quotas(call.uow).binding()
    if quotas:
        # Without limits there is nothing to decide, and nobody to wait for.
        await ledger.lock()
    known = await ledger.find(request.reservation_id)
    if known is not None and known.state is State.SETTLED:
        name = known.id
        raise DomainError("STATE_CONFLICT", f"{name} was settled.", name=name, state=known.state, wanted=State.HELD)
    asked = known or await _new(request, ledger, now)
    if asked.state is State.EXPIRED and not request.running:
        # Its job has not begun, and others may have the room: it waits as they do.
        asked.state = State.WAITING
    if not quotas or request.running or asked.state is State.HELD:
        return await _hold(asked, known, ledger, now)
    never = impossible(asked.needs, asked.scopes, quotas)
    if never is not None:
        limit = str(never.quota.limits()[never.resource])
        text = f"There is no quota for this: {never.never()}."
        raise DomainError("QUOTA_EXCEEDED", text, resource=never.resource, limit=limit)
    queue = await _living(ledger, now, asked)
    ahead = [one for one in queue if one.state is State.HELD or not asked.number or one.number < asked.number]
    short = (await _room(ledger, quotas, ahead, now)).shortages(asked.needs, asked.scopes)
    if not short:
        return await _hold(asked, known, ledger, now)
    return await _wait(asked, known, short[0], sum(one.state is State.WAITING for one in ahead), ledger, now)


async def settle_quota(request: pb.SettleQuotaRequest, call: Call[App]) -> pb.SettleQuotaResponse:
    ledger, now = Ledger(call.uow, org_of(request.parent)), call.clock.now()
    await ledger.lock()
    known = await ledger.find(request.reservation_id)
    if known is None:
        known = await _late(request, ledger, now)
    elif known.state is not State.SETTLED:
        until = min(now, request.end_time.ToDatetime(tzinfo=UTC)) if request.HasField("end_time") else now
        await ledger.book(known.scopes, known.stop(State.SETTLED, until), until)
        await _keep(known, request.kept_bytes, ledger, now)
    elif request.kept_bytes < known.kept_bytes:
        await _keep(known, request.kept_bytes, ledger, now)
    await ledger.purge(now)
    return pb.SettleQuotaResponse(quota_reservation=message(known), may_start=await _may_start(known, ledger, call))


async def _late(request: pb.SettleQuotaRequest, ledger: Ledger, now: datetime) -> Reservation:
    """One that nobody has asked for: whoever does later comes too late, as his task has ended."""
    late = Reservation(
        id=request.reservation_id,
        org=org_of(request.parent),
        target=request.target,
        subject=request.subject,
        scopes=await ledger.scopes_of(request.subject) if request.kept_bytes else [],
        ask_time=now,
        renew_time=now,
    )
    late.stop(State.SETTLED, now)
    await ledger.add(late)
    await _keep(late, request.kept_bytes, ledger, now)
    return late


async def _keep(reservation: Reservation, kept_bytes: int, ledger: Ledger, now: datetime) -> None:
    await ledger.keep(reservation.scopes, kept_bytes - reservation.kept_bytes)
    reservation.kept_bytes, reservation.renew_time = kept_bytes, now
    await ledger.save(reservation)


async def _may_start(ended: Reservation, ledger: Ledger, call: Call[App]) -> list[str]:
    """Those that wait and fit now: whoever else waited would ask in vain."""
    quotas, now = await Quotas(call.uow).binding(), call.clock.now()
    if not quotas:
        return []
    queue = await _living(ledger, now, ended)
    room = await _room(ledger, quotas, [one for one in queue if one.state is State.HELD], now)
    return [one.id for one in queue if one.state is State.WAITING and room.admit(one)]


async def _new(request: pb.ReserveQuotaRequest, ledger: Ledger, now: datetime) -> Reservation:
    return Reservation(
        id=request.reservation_id,
        org=org_of(request.parent),
        task=request.task,
        target=request.target,
        subject=request.subject,
        scopes=await ledger.scopes_of(request.subject),
        needs=_needs(request.needs),
        ask_time=now,
        renew_time=now,
    )


async def _hold(
    asked: Reservation, known: Reservation | None, ledger: Ledger, now: datetime
) -> pb.ReserveQuotaResponse:
    if asked.state is State.HELD:
        asked.renew_time = now
    else:
        asked.hold(now)
    await (ledger.save(asked) if known else ledger.add(asked))
    return pb.ReserveQuotaResponse(granted=True)


async def _wait(
    asked: Reservation, known: Reservation | None, shortage: Shortage, place: int, ledger: Ledger, now: datetime
) -> pb.ReserveQuotaResponse:
    asked.renew_time, asked.waiting_for = now, shortage.now()
    await (ledger.save(asked) if known else ledger.add(asked))
    seconds = min(_RETRY_SECONDS + _RETRY_STEP * place, _MOST_RETRY_SECONDS)
    return pb.ReserveQuotaResponse(waiting_for=asked.waiting_for, retry_seconds=seconds)


async def _living(ledger: Ledger, now: datetime, asked: Reservation) -> list[Reservation]:
    """All that hold or wait but the one that asks. What nobody asks for any more gives up its room; one that waits lets
    others pass, and has its place again as soon as it asks."""
    living: list[Reservation] = []
    for one in await ledger.live():
        if one.id == asked.id:
            continue
        if not one.lapsed(now):
            living.append(one)
        elif one.state is State.HELD:
            seen = one.renew_time
            await ledger.book(one.scopes, one.stop(State.EXPIRED, seen), seen)
            await ledger.save(one)
    return living


async def _room(ledger: Ledger, quotas: list[Quota], queue: list[Reservation], now: datetime) -> Room:
    held = [one for one in queue if one.state is State.HELD]
    waiting = [one for one in queue if one.state is State.WAITING]
    return Room(quotas, await ledger.spent(now), held, waiting, await ledger.kept())


def _needs(given: quota_pb2.QuotaNeeds) -> Needs:
    return Needs(given.cpus, given.gpus, given.memory_bytes, given.seconds, given.storage_bytes)
