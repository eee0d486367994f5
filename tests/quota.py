"""Identity's ledger for tests in which quotas are not the question: there is room for everything."""

from __future__ import annotations

from typing import Any

from argosy.identity.v1 import quota_pb2, quota_service_pb2_grpc
from argosy.identity.v1 import quota_service_pb2 as pb

from libs.common.errors import ArgosyError
from tests.integration.app.stubs import fail


class RoomForAll(quota_service_pb2_grpc.QuotaServiceServicer):
    """Grants what is asked, and remembers it: `held` by reservation, and the ids that were `settled`, with the bytes
    that are `kept` of each.

    Attributes:
        impossible, waiting_for: what the pre-flight is told.
        asked: what it said that is needed.
        away: whether it is told nothing.
    """

    def __init__(self) -> None:
        self.held: dict[str, pb.ReserveQuotaRequest] = {}
        self.settled: list[str] = []
        self.kept: dict[str, int] = {}
        self.impossible = self.waiting_for = ""
        self.asked: list[quota_pb2.QuotaNeeds] = []
        self.away = False

    async def CheckQuota(self, request: Any, context: Any) -> pb.CheckQuotaResponse:
        self.asked.append(request.needs)
        if self.away:
            await fail(context, ArgosyError("PEER_UNAVAILABLE", "identity does not answer."))
        return pb.CheckQuotaResponse(impossible=self.impossible, waiting_for=self.waiting_for)

    async def ReserveQuota(self, request: Any, context: Any) -> pb.ReserveQuotaResponse:
        self.held[request.reservation_id] = request
        return pb.ReserveQuotaResponse(granted=True)

    async def SettleQuota(self, request: Any, context: Any) -> pb.SettleQuotaResponse:
        self.settled.append(request.reservation_id)
        self.kept[request.reservation_id] = request.kept_bytes
        return pb.SettleQuotaResponse()
