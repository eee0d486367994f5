"""The usage ledger."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from argosy.identity.v1 import usage_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from libs.common.db.mapping import timestamp
from libs.common.ids import org_of
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import PageToken, page_size
from services.identity.domain.usage import UsageEntry
from services.identity.store.repositories import UsageLedger

if TYPE_CHECKING:
    from services.identity.app import App

# What both sides call the same.
_SAME = (
    "id",
    "subject",
    "api_key",
    "model",
    "model_version",
    "prompt_tokens",
    "completion_tokens",
    "request_id",
    "outcome",
    "duration_seconds",
    "time_to_first_token_seconds",
)


def _entry(entry: pb.UsageEntry, now: datetime) -> UsageEntry:
    time = entry.time.ToDatetime(tzinfo=UTC) if entry.HasField("time") else now
    return UsageEntry(org=org_of(entry.org), time=time, **{field: getattr(entry, field) for field in _SAME})


def _message(entry: UsageEntry) -> pb.UsageEntry:
    same = {field: getattr(entry, field) for field in _SAME}
    return pb.UsageEntry(org=f"orgs/{entry.org}", time=timestamp(entry.time), **same)


def _moment(time: Timestamp, given: bool) -> datetime | None:
    return time.ToDatetime(tzinfo=UTC) if given else None


async def record_usage(request: pb.RecordUsageRequest, call: Call[App]) -> pb.RecordUsageResponse:
    now = call.clock.now()
    written = await UsageLedger(call.uow).write([_entry(entry, now) for entry in request.entries])
    return pb.RecordUsageResponse(written=written, known=len(request.entries) - written)


async def list_usage(request: pb.ListUsageRequest, call: Call[App]) -> pb.ListUsageResponse:
    start, size = int(PageToken.decode(request) or 0), page_size(request.page_size)
    found = await UsageLedger(call.uow).page(
        org_of(request.parent),
        _moment(request.start_time, request.HasField("start_time")),
        _moment(request.end_time, request.HasField("end_time")),
        size + 1,
        start,
    )
    more = str(start + size) if len(found) > size else ""
    return pb.ListUsageResponse(
        usage=[_message(entry) for entry in found[:size]], next_page_token=PageToken.encode(request, more)
    )


async def summarize_usage(request: pb.SummarizeUsageRequest, call: Call[App]) -> pb.SummarizeUsageResponse:
    sums = await UsageLedger(call.uow).sums(
        org_of(request.parent),
        _moment(request.start_time, request.HasField("start_time")),
        _moment(request.end_time, request.HasField("end_time")),
        request.group_by or "model",
    )
    return pb.SummarizeUsageResponse(
        sums=[
            pb.UsageSum(
                key=s.key,
                requests=s.requests,
                prompt_tokens=s.prompt_tokens,
                completion_tokens=s.completion_tokens,
                errors=s.errors,
            )
            for s in sums
        ]
    )
