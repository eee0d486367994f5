"""The room of a task in identity's ledger: taken before it is handed to its carrier, given back when it has ended."""

from __future__ import annotations

from dataclasses import dataclass

from argosy.identity.v1 import quota_pb2, quota_service_pb2, quota_service_pb2_grpc

from libs.common.db.mapping import timestamp
from libs.common.domain import Needs
from libs.common.rpc.client import Channels
from libs.common.tasks.left_rooms import LeftRoom

# Thirty years: whoever guesses more needs no better number.
_MOST_SECONDS = 1e9


@dataclass(frozen=True)
class NoRoom:
    """Why a task cannot start yet, for people, and when to ask again."""

    why: str
    retry_seconds: float


class QuotaLedger:
    """Identity's ledger.

    Args:
        channels: ways to other services.
    """

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    def _stub(self) -> quota_service_pb2_grpc.QuotaServiceStub:
        return self._channels.stub(quota_service_pb2_grpc.QuotaServiceStub, "identity")

    async def check(self, org: str, subject: str, needs: Needs) -> tuple[str, str]:
        """Why a task of these needs could never start, and why not now; empty where it could."""
        request = quota_service_pb2.CheckQuotaRequest(parent=f"orgs/{org}", subject=subject, needs=_message(needs))
        answer = await self._stub().CheckQuota(request)
        return answer.impossible, answer.waiting_for

    async def reserve(
        self,
        org: str,
        reservation: str,
        subject: str,
        task: str,
        target: str,
        needs: Needs,
        *,
        running: bool = False,
    ) -> NoRoom | None:
        """Takes the room of a task, or keeps what it has.

        Args:
            reservation: id; the same one gives the same room.
            subject: who asked for the task.
            running: the task runs, so that what it holds counts, whether there is room or not.

        Returns:
            None: the task may start; otherwise what it waits for.

        Raises:
            ArgosyError: QUOTA_EXCEEDED when it needs more than a limit; STATE_CONFLICT when it was settled;
                PEER_UNAVAILABLE.
        """
        request = quota_service_pb2.ReserveQuotaRequest(
            parent=f"orgs/{org}",
            reservation_id=reservation,
            subject=subject,
            task=task,
            target=target,
            needs=_message(needs),
            running=running,
        )
        answer = await self._stub().ReserveQuota(request)
        return None if answer.granted else NoRoom(answer.waiting_for, answer.retry_seconds)

    async def settle(self, room: LeftRoom) -> list[str]:
        """Gives a room back and books what was used. May be repeated.

        Returns:
            Reservations that waited and fit now.
        """
        request = quota_service_pb2.SettleQuotaRequest(
            parent=f"orgs/{room.org}",
            reservation_id=room.reservation,
            end_time=timestamp(room.end_time),
            kept_bytes=room.kept_bytes,
            subject=room.subject,
            target=room.holder,
        )
        return list((await self._stub().SettleQuota(request)).may_start)


def _message(needs: Needs) -> quota_pb2.QuotaNeeds:
    seconds = min(needs.seconds, _MOST_SECONDS)
    return quota_pb2.QuotaNeeds(
        cpus=needs.cpus,
        gpus=needs.gpus,
        memory_bytes=needs.memory_bytes,
        seconds=seconds,
        storage_bytes=needs.storage_bytes,
    )
