"""Quotas: the limits that administrators set, with what is used of them now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from argosy.identity.v1 import quota_pb2
from argosy.identity.v1 import quota_service_pb2 as pb

from libs.common.db.mapping import from_proto, to_proto
from libs.common.domain import DomainError
from libs.common.ids import org_of, resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.masks import fields_to_change
from libs.common.rpc.pagination import PageToken, page_size
from services.identity.domain.people import require_same_org
from services.identity.domain.quotas import UNITS, Quota, Room, State
from services.identity.store.quotas import Ledger, Quotas
from services.identity.store.repositories import Departments, Organizations, ServiceAccounts, Users

if TYPE_CHECKING:
    from services.identity.app import App

_MUTABLE = frozenset({*UNITS, "labels"})
_SCOPES = {"departments": Departments, "users": Users, "serviceAccounts": ServiceAccounts}


def message(quota: Quota, use: quota_pb2.QuotaUse | None = None) -> quota_pb2.Quota:
    return to_proto(quota, quota_pb2.Quota(scope=quota.scope, use=use, **quota.limits()))  # type: ignore[arg-type]


async def _used(org: str, call: Call[App]) -> tuple[Room, list[str]]:
    """What every scope uses now, and the scopes of all that hold or wait, once for each."""
    ledger, now = Ledger(call.uow, org), call.clock.now()
    live = [one for one in await ledger.live() if not one.lapsed(now)]
    held = [one for one in live if one.state is State.HELD]
    marks = [f"{one.state}/{scope}" for one in live for scope in one.scopes]
    return Room([], await ledger.spent(now), held, kept=await ledger.kept()), marks


def _use(scope: str, room: Room, marks: list[str]) -> quota_pb2.QuotaUse:
    return quota_pb2.QuotaUse(
        cpus=room.used(scope, "cpus"),
        cpu_hours=room.used(scope, "cpu_hours"),
        gpus=room.used(scope, "gpus"),
        gpu_hours=room.used(scope, "gpu_hours"),
        memory_bytes=round(room.used(scope, "memory_bytes")),
        storage_bytes=round(room.used(scope, "storage_bytes")),
        held_count=marks.count(f"{State.HELD}/{scope}"),
        waiting_count=marks.count(f"{State.WAITING}/{scope}"),
    )


async def _require_scope(quota: Quota, call: Call[App]) -> None:
    """The scope must be there, in the organization of the quota."""
    parts = quota.scope.split("/")
    if parts[:2] != quota.name.split("/")[:2] or len(parts) not in (2, 4):
        require_same_org(quota.name, quota.scope, "quota.scope")
        message = "quota.scope: must be an organization, a department, a user or a service account"
        raise DomainError("INVALID_FIELD", message, field="quota.scope")
    if len(parts) == 2:
        await Organizations(call.uow).get(quota.scope)
        return
    repository = _SCOPES.get(parts[2])
    if repository is None:
        message = f"quota.scope: must be one of {', '.join(sorted(_SCOPES))} of the organization, or itself"
        raise DomainError("INVALID_FIELD", message, field="quota.scope")
    await repository(call.uow).get(quota.scope)


async def _require_free(quota: Quota, call: Call[App]) -> None:
    # Two quotas of one scope must not be made at once.
    await Ledger(call.uow, quota.org).lock()
    await Quotas(call.uow).require_free(quota.scope)


async def get_quota(request: pb.GetQuotaRequest, call: Call[App]) -> quota_pb2.Quota:
    quota = await Quotas(call.uow).get(request.name)
    room, marks = await _used(quota.org, call)
    return message(quota, _use(quota.scope, room, marks))


async def list_quotas(request: pb.ListQuotasRequest, call: Call[App]) -> pb.ListQuotasResponse:
    found, position = await Quotas(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request), request.show_deleted
    )
    room, marks = await _used(org_of(request.parent), call)
    return pb.ListQuotasResponse(
        quotas=[message(quota, _use(quota.scope, room, marks)) for quota in found],
        next_page_token=PageToken.encode(request, position),
    )


async def create_quota(request: pb.CreateQuotaRequest, call: Call[App]) -> quota_pb2.Quota:
    now = call.clock.now()
    quota = Quota(
        uid=uuid7(),
        name=f"{request.parent}/quotas/{request.quota_id or resource_id('quota')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        scope=request.quota.scope or request.parent,
        **_limits(request.quota),
        **from_proto(request.quota),
    )
    quota.require_limit()
    await _require_scope(quota, call)
    await _require_free(quota, call)
    await Quotas(call.uow).insert(quota)
    call.uow.emit("identity.quota.created", quota)
    return message(quota)


async def update_quota(request: pb.UpdateQuotaRequest, call: Call[App]) -> quota_pb2.Quota:
    repository = Quotas(call.uow)
    quota = await repository.get(request.quota.name, for_update=True)
    quota.require_etag(request.quota.etag)
    for field in fields_to_change(request.quota, request.update_mask, _MUTABLE):
        if field == "labels":
            quota.labels = dict(request.quota.labels)
        else:
            setattr(quota, field, _limits(request.quota).get(field))
    quota.require_limit()
    quota.update_time = call.clock.now()
    await repository.save(quota)
    call.uow.emit("identity.quota.updated", quota)
    return message(quota)


async def delete_quota(request: pb.DeleteQuotaRequest, call: Call[App]) -> quota_pb2.Quota:
    repository = Quotas(call.uow)
    quota = await repository.get(request.name)
    quota.require_etag(request.etag)
    await repository.soft_delete(quota, call.clock.now())
    call.uow.emit("identity.quota.deleted", quota)
    return message(quota)


async def undelete_quota(request: pb.UndeleteQuotaRequest, call: Call[App]) -> quota_pb2.Quota:
    repository = Quotas(call.uow)
    quota = await repository.get(request.name, deleted=True)
    quota.require_etag(request.etag)
    if quota.delete_time is not None:
        await _require_free(quota, call)
    await repository.undelete(quota, call.clock.now())
    call.uow.emit("identity.quota.undeleted", quota)
    return message(quota)


def _limits(given: quota_pb2.Quota) -> dict[str, Any]:
    # ListFields has those of the optional fields that are set, zero or not.
    return {field.name: value for field, value in given.ListFields() if field.name in UNITS}
