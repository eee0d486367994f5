"""One trial of a search: the training with other values, which may end at a rung."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from libs.common.blobs import BlobStore
from libs.compute.context import EngineCancelled, EngineContext, EngineError
from services.training.domain.halving import goes_on
from services.training.domain.searches import TrialState
from services.training.engines.reports import Json, Reports
from services.training.engines.train import run

# What torch and its like raise for values that do not go together; what passes by itself, as a storage that is away, is
# none of these.
_OF_THE_VALUES = (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
_MOST_CHARACTERS = 500


class TrialContext(EngineContext):
    """What the engine of a run sees when its run is a trial.

    Args:
        job: `number`, `run` for the engine, `objective`, and `rungs` (see `_judge`) or None.
        store: for its outputs; has the prepared data.
        reports: of the search.
        read: a store by its grant, where the search has another way than the grant itself.
    """

    def __init__(
        self, job: Json, store: BlobStore, reports: Reports, read: Callable[[str], BlobStore] | None = None
    ) -> None:
        super().__init__(job["run"])
        self._read = read
        self.blobs_write = store
        self.rungs: list[float] = []
        self.tokens = 0
        self.pruned = ""
        # Manifests of checkpoints, which nobody goes on from.
        self.written: list[str] = []
        self._job = job
        self._reports = reports

    def blobs_read(self, grant: str) -> BlobStore:
        return super().blobs_read(grant) if self._read is None else self._read(grant)

    def progress(self, fraction: float, message: str = "", **cost: float) -> None:
        self.tokens = int(cost.get("tokens", self.tokens))
        self._reports.progress(fraction, str(self._job["number"]), {})

    def log(self, body: str, severity: str = "INFO") -> None:
        self._reports.log(f"trial {self._job['number']}: {body}", severity)

    def metrics(self, phase: str, step: int, /, **values: float) -> None:
        self._reports.metrics(f"trial/{self._job['number']}/{phase}", step, values)
        judge = self._job["rungs"]
        if judge is not None and phase == judge["phase"] and judge["metric"] in values:
            self._judge(judge, step, values[judge["metric"]])

    def checkpoint(self, data: Json) -> None:
        """A trial that is cut off begins again."""
        if "manifest_digest" in data:
            self.written.append(data["manifest_digest"])

    def cancelled(self) -> bool:
        return bool(self.pruned) or self._reports.cancelled()

    def pausing(self) -> bool:
        """A search stops between trials only."""
        return False

    def _judge(self, judge: Json, step: int, value: float) -> None:
        """Ends the trial at a rung where it is not among the best.

        Args:
            judge: `phase` and `metric` of the objective, `steps` at which the rungs are, `others`: what other trials
                had at each, `reduction_factor`, `maximize`.
        """
        while not self.pruned and len(self.rungs) < len(judge["steps"]) and step >= judge["steps"][len(self.rungs)]:
            others = judge["others"][len(self.rungs)]
            if not math.isfinite(value):
                self.pruned = f"after {step} steps its {judge['metric']} was not finite"
                return
            self.rungs.append(value)
            if not goes_on(value, others, judge["reduction_factor"], judge["maximize"]):
                best = max(1, (len(others) + 1) // judge["reduction_factor"])
                self.pruned = (
                    f"after {step} steps its {judge['metric']} was {value:.4g}, not among the best {best} of "
                    f"{len(others) + 1} there"
                )


def run_trial(job: Json, store: BlobStore, reports: Reports, read: Callable[[str], BlobStore] | None = None) -> Json:
    """Runs a trial to its end, wherever that is; see `TrialContext`.

    Returns:
        `state`, `rungs`, `tokens`, `seconds`, `written` (manifests that nobody needs any more); `value` and `result`
        (of the engine) of a finished trial; `reason`, `message` and `metadata` of another one.
    """
    ctx, began = TrialContext(job, store, reports, read), time.perf_counter()
    outcome = _outcome(ctx, job["objective"])
    seconds = time.perf_counter() - began
    return {"rungs": ctx.rungs, "tokens": ctx.tokens, "seconds": seconds, "written": ctx.written, **outcome}


def _outcome(ctx: TrialContext, objective: str) -> Json:
    try:
        result = run(ctx)
    except EngineCancelled:
        return {"state": TrialState.PRUNED if ctx.pruned else TrialState.STOPPED, "message": ctx.pruned}
    except EngineError as error:
        return _failed(error.reason, error.message, error.metadata)
    except _OF_THE_VALUES as error:
        # Too much memory, say: other values may need less.
        return _failed("INTERNAL", f"{type(error).__name__}: {error}"[:_MOST_CHARACTERS], {})
    results = {name: value for name, value in result["results"].items() if math.isfinite(value)}
    if objective in result["results"] and objective not in results:
        return _failed("TRAINING_DIVERGED", f"{objective} is not finite.", {"detail": objective})
    if objective not in results:
        have = ", ".join(sorted(results))
        return _failed("CONTENT_INVALID", f"The run has no figure {objective}; it has {have}.", {"detail": objective})
    finished = {**result, "results": results}
    return {
        "state": TrialState.FINISHED,
        "value": results[objective],
        "tokens": int(result.get("tokens", 0)),
        "result": finished,
    }


def _failed(reason: str, message: str, metadata: dict[str, str]) -> Json:
    return {"state": TrialState.FAILED, "reason": reason, "message": message, "metadata": metadata}
