"""Token buckets: what a key may spend a minute.

A bucket holds at most one minute's allowance and refills evenly, so a caller that was idle may burst for one minute's
worth and then goes on at its rate. Time comes from the caller as seconds of a clock that never goes back.
"""

from __future__ import annotations

from dataclasses import dataclass

SECONDS = 60.0


class Bucket:
    """One allowance.

    Args:
        per_minute: units that come in each minute, and the most that the bucket holds.
        now: seconds.
    """

    __slots__ = ("_level", "_rate", "_updated", "limit")

    def __init__(self, per_minute: int, now: float) -> None:
        if per_minute <= 0:
            raise ValueError("an allowance must be positive")
        self.limit = per_minute
        self._rate = per_minute / SECONDS
        self._level = float(per_minute)
        self._updated = now

    def level(self, now: float) -> float:
        """Units that may be spent now; negative while more was spent than came in."""
        if now > self._updated:
            self._level = min(float(self.limit), self._level + (now - self._updated) * self._rate)
            self._updated = now
        return self._level

    def take(self, amount: float, now: float) -> float:
        """Spends `amount` and gives 0; or spends nothing and gives the seconds until it could be spent.

        More than the bucket ever holds is asked for as if it were all that it holds: else such a request could never
        pass.
        """
        wanted = min(amount, float(self.limit))
        level = self.level(now)
        if level >= wanted:
            self._level = level - amount
            return 0.0
        return (wanted - level) / self._rate

    def settle(self, difference: float, now: float) -> None:
        """Spends more (or gives back, when negative) after the fact; may leave less than nothing."""
        self._level = min(float(self.limit), self.level(now) - difference)

    def remaining(self, now: float) -> int:
        """Whole units that may be spent now."""
        return max(0, int(self.level(now)))

    def reset(self, now: float) -> float:
        """Seconds until the bucket is full."""
        return max(0.0, (self.limit - self.level(now)) / self._rate)

    def resize(self, per_minute: int, now: float) -> None:
        """Changes the allowance; what was spent stays spent."""
        if per_minute != self.limit:
            spent = self.limit - self.level(now)
            self.limit = per_minute
            self._rate = per_minute / SECONDS
            self._level = per_minute - spent


@dataclass(slots=True)
class Budget:
    """The two allowances of a key: requests and tokens of language models."""

    requests: Bucket
    tokens: Bucket
