"""Who changed what, from the records of the audit interceptor of every service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.aiops.v1 import audit_service_pb2 as pb

from libs.common.rpc.call import Call
from libs.common.rpc.pagination import page_size
from services.aiops.domain.telemetry import LogRecord
from services.aiops.handlers import windows
from services.aiops.store import queries
from services.aiops.store.queries import AuditFilter

if TYPE_CHECKING:
    from services.aiops.app import App


async def list_audit_entries(request: pb.ListAuditEntriesRequest, call: Call[App]) -> pb.ListAuditEntriesResponse:
    wanted = AuditFilter(actor=request.actor, resource=request.resource)
    start, size = windows.position(request), page_size(request.page_size)
    scope, window = windows.scope(request.parent, call), windows.window(request, call)
    found = await queries.audit_entries(call.deps.store, scope, window, wanted, size + 1, start)
    return pb.ListAuditEntriesResponse(
        entries=[_entry(record) for record in found[:size]],
        next_page_token=windows.next_token(request, start, size, len(found)),
    )


def _entry(record: LogRecord) -> pb.AuditEntry:
    said = record.attributes
    return pb.AuditEntry(
        id=f"{record.time:x}-{record.span_id}",
        time=windows.timestamp(record.time),
        actor=said.get("argosy.actor", ""),
        method=said.get("rpc.method", ""),
        resource=said.get("argosy.resource", ""),
        outcome=said.get("argosy.outcome", ""),
        request_id=said.get("argosy.request_id", ""),
        trace_id=record.trace_id,
        service=record.service,
    )
