"""What a run of AutoML may spend."""

from __future__ import annotations

import time


class Budget:
    """Models and seconds, over all attempts.

    Args:
        trials: models at most.
        seconds: for everything behind the reading of the rows.
        spent: seconds of earlier attempts.
    """

    def __init__(self, trials: int, seconds: float, spent: float) -> None:
        self.trials = trials
        self.seconds = seconds
        self._began = time.perf_counter() - spent

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._began

    def left(self, share: float = 1.0) -> float:
        """Seconds until a share of them is over, 0 afterwards."""
        return max(0.0, share * self.seconds - self.spent)
