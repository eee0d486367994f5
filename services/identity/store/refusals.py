"""Identity obeys its own revocations: other services hear of them by WatchRevocations, this one reads its table."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from libs.common.auth.tokens import LEEWAY_SECONDS, TOKEN_SECONDS, TokenVerifier
from libs.common.clock import Clock
from libs.common.db.uow import Database
from libs.common.domain import DomainError
from services.identity.store.announcements import Announcements
from services.identity.store.repositories import Revocations

log = logging.getLogger(__name__)
# Tokens issued longer ago have expired by themselves.
_WINDOW = TOKEN_SECONDS + LEEWAY_SECONDS
# Without a ring: only to forget those that are too old to matter.
_LOOK_SECONDS = 60.0


async def refuse_revoked(database: Database, revoked: Announcements, verifier: TokenVerifier, clock: Clock) -> None:
    """Tells the verifier of this process what was revoked, at the start and at each ring. Runs until cancelled."""
    last = 0
    while True:
        ring = revoked.next_ring
        oldest = clock.now().timestamp() - _WINDOW
        verifier.forget_revocations_before(oldest)
        try:
            async with database.system(read_only=True) as uow:
                found = await Revocations(uow).since(datetime.fromtimestamp(oldest, UTC), last)
        except DomainError as error:
            log.warning("revocations cannot be read: %s", error.message)
            found = []
        for number, name, time in found:
            last = number
            verifier.revoke(name, time.timestamp())
        await revoked.wait(ring, _LOOK_SECONDS)
