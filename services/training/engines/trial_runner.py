"""Where the trials of a search run: one after the other in this process, or several at a time on Ray."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol

from libs.common.blobs import BlobStore
from libs.common.domain import DomainError
from libs.compute.context import EngineContext, EngineInterrupted
from services.training.domain.searches import TrialState
from services.training.engines.reports import Json
from services.training.engines.trial import run_trial

_WAIT_SECONDS = 0.2
# A worker that dies takes its trial along, which then begins again; more often than this, something else is wrong.
_MAX_RETRIES = 3


class SearchReports:
    """What trials report, on its way to the task of the search.

    Args:
        ctx: of the search.
        out_of_time: whether the trials are to stop.
        told: takes the number of a trial and how much of it is done, 0 to 1.
    """

    def __init__(self, ctx: EngineContext, out_of_time: Callable[[], bool], told: Callable[[int, float], None]) -> None:
        self._ctx = ctx
        self._out_of_time = out_of_time
        self._told = told

    def progress(self, fraction: float, message: str, cost: dict[str, float]) -> None:
        self._told(int(message), fraction)

    def metrics(self, phase: str, step: int, values: dict[str, float]) -> None:
        self._ctx.metrics(phase, step, **values)

    def log(self, body: str, severity: str = "INFO") -> None:
        self._ctx.log(body, severity)

    def checkpoint(self, data: Json) -> None:
        """Trials have none."""

    def cancelled(self) -> bool:
        return self._ctx.cancelled() or self._out_of_time()

    def pausing(self) -> bool:
        """A search stops between trials only."""
        return False


class TrialRunner(Protocol):
    """Takes trials and says how they ended."""

    def start(self, job: Json, cpus: int) -> None:
        """Takes a trial; see `TrialContext` for its job.

        Args:
            cpus: that it books where several run at a time.
        """

    def wait(self) -> list[tuple[int, Json]]:
        """Number and outcome of trials that have ended, possibly none yet."""
        ...

    def close(self) -> None:
        """Ends what still runs."""


def trial_runner(ctx: EngineContext, reports: SearchReports, parallel: int) -> TrialRunner:
    """On Ray for several trials at a time; one at a time needs no process of its own, and without Ray there is none."""
    ray = sys.modules.get("ray")
    inside = ray is not None and bool(ray.is_initialized())
    return _OnRay(ctx.blobs_write, reports) if inside and parallel > 1 else _Here(ctx, reports)


class _Here:
    def __init__(self, ctx: EngineContext, reports: SearchReports) -> None:
        self._ctx = ctx
        self._reports = reports
        self._waiting: list[Json] = []

    def start(self, job: Json, cpus: int) -> None:
        self._waiting.append(job)

    def wait(self) -> list[tuple[int, Json]]:
        job = self._waiting.pop(0)
        return [(job["number"], run_trial(job, self._ctx.blobs_write, self._reports, self._ctx.blobs_read))]

    def close(self) -> None:
        self._waiting.clear()


class _OnRay:
    def __init__(self, store: BlobStore, reports: SearchReports) -> None:
        from services.training.engines.relay import start_relay

        self._store = store
        self._reports = reports
        self._relay = start_relay(None)
        self._running: dict[Any, int] = {}

    def start(self, job: Json, cpus: int) -> None:
        import ray

        remote = ray.remote(num_cpus=cpus, max_retries=_MAX_RETRIES)(_trial)
        self._running[remote.remote(job, self._store, self._relay)] = job["number"]

    def wait(self) -> list[tuple[int, Json]]:
        import ray

        from services.training.engines.relay import deliver

        ready, _ = ray.wait(list(self._running), timeout=_WAIT_SECONDS)
        deliver(self._relay, self._reports)
        ended = [(self._running.pop(each), ray.get(each)) for each in ready]
        for _, outcome in ended:
            if "interrupted" in outcome:
                raise EngineInterrupted(outcome["interrupted"])
        if self._reports.cancelled():
            ended += [(number, _STOPPED) for number in sorted(self._running.values())]
            self.close()
        return ended

    def close(self) -> None:
        import ray

        for each in self._running:
            ray.cancel(each, force=True)
        self._running.clear()


_STOPPED: Json = {"state": TrialState.STOPPED, "message": "", "rungs": [], "tokens": 0, "seconds": 0.0}


def _trial(job: Json, store: BlobStore, relay: Any) -> Json:
    """What Ray calls in a worker process."""
    from services.training.engines.relay import RelayReports

    try:
        return run_trial(job, store, RelayReports(relay))
    except DomainError as error:
        # Storage that is away, say: the search goes on from its checkpoint. Such an error does not survive pickling.
        return {"interrupted": error.message}
