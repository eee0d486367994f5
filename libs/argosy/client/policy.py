"""How long to wait and how often to try again: the same for the synchronous and the asynchronous client."""

from __future__ import annotations

import random
from dataclasses import dataclass

from argosy.client.errors import ApiError, TooManyRequests, Unavailable

_FIRST_WAIT, _LONGEST_WAIT = 0.2, 5.0
# Reasons of RESOURCE_EXHAUSTED that pass by themselves, unlike a quota.
_PASSING = {"OVERLOADED", "RATE_LIMITED", "STORAGE_FULL"}


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits of one client.

    Attributes:
        timeout: seconds for one answer.
        patience: seconds for which a call that may be repeated is repeated while the platform is away or busy.
    """

    timeout: float = 30.0
    patience: float = 20.0

    def wait(self, error: ApiError, attempt: int, elapsed: float, repeatable: bool) -> float | None:
        """Seconds to wait before the next attempt; None: there is none.

        Args:
            attempt: that failed, counted from 0.
            elapsed: seconds since the first one began.
            repeatable: whether the call may be sent twice.
        """
        passing = isinstance(error, Unavailable) or (isinstance(error, TooManyRequests) and error.reason in _PASSING)
        conflict = error.reason == "CONFLICT"
        if not repeatable or not (passing or conflict):
            return None
        # Full jitter, so that callers that failed together do not come back together.
        wait = random.uniform(0.5, 1.0) * min(_LONGEST_WAIT, _FIRST_WAIT * 2.0**attempt)  # noqa: S311 (no secret)
        wait = max(wait, error.retry_after or 0.0)
        return wait if elapsed + wait <= self.patience else None
