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
            cpus=needs.cpus, gpus=needs.gpus, memory_bytes=needs.memory_bytes, seconds=needs.seconds
        ),
        waiting_for=reservation.waiting_for,
        cpu_hours=reservation.cpu_seconds / 3600,
        gpu_hours=reservation.gpu_seconds / 3600,
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
    # One that expired was not given up by its job, whoever asks for it.
    if not quotas or request.running or asked.state in (State.HELD, State.EXPIRED):
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


async def settle_quota(request: pb.SettleQuotaRequest, call: Call[App]) -> quota_pb2.QuotaReservation:
    ledger, now = Ledger(call.uow, org_of(request.parent)), call.clock.now()
    await ledger.lock()
    known = await ledger.find(request.reservation_id)
    if known is None:
        # Whoever asks for it later comes too late: his task has ended.
        known = Reservation(id=request.reservation_id, org=org_of(request.parent), ask_time=now, renew_time=now)
        known.stop(State.SETTLED, now)
        await ledger.add(known)
    elif known.state is not State.SETTLED:
        until = min(now, request.end_time.ToDatetime(tzinfo=UTC)) if request.HasField("end_time") else now
        await ledger.book(known.scopes, known.stop(State.SETTLED, until), until)
        known.renew_time = now
        await ledger.save(known)
    await ledger.purge(now)
    return message(known)


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
    """All that hold or wait but the one that asks. What nobody asks for any more gives up its room, or its place."""
    living: list[Reservation] = []
    for one in await ledger.live():
        if one.id == asked.id:
            continue
        if not one.lapsed(now):
            living.append(one)
        elif one.state is State.WAITING:
            await ledger.remove(one)
        else:
            seen = one.renew_time
            await ledger.book(one.scopes, one.stop(State.EXPIRED, seen), seen)
            await ledger.save(one)
    return living


async def _room(ledger: Ledger, quotas: list[Quota], queue: list[Reservation], now: datetime) -> Room:
    held = [one for one in queue if one.state is State.HELD]
    return Room(quotas, await ledger.spent(now), held, [one for one in queue if one.state is State.WAITING])


def _needs(given: quota_pb2.QuotaNeeds) -> Needs:
    return Needs(given.cpus, given.gpus, given.memory_bytes, given.seconds)
