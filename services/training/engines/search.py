"""The engine of `training.search`: trials of a training until the budget is spent; the best one is the result."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace

from libs.common.domain import DomainError
from libs.compute.context import EngineContext, EngineError, EngineInterrupted
from services.training.domain.halving import rung_shares, rung_step
from services.training.domain.search_space import Point
from services.training.domain.searches import (
    ATTEMPT_SECONDS,
    SearchPlan,
    Trial,
    TrialState,
    best_of,
    lasting,
    trial_parameters,
    trial_spec,
)
from services.training.domain.spec import TrainingSpec
from services.training.domain.spec_paths import with_values
from services.training.engines.model import llama_config
from services.training.engines.prepared import config_of
from services.training.engines.proposals import propose
from services.training.engines.reports import Json
from services.training.engines.study import importances
from services.training.engines.train import prepare
from services.training.engines.trial_runner import SearchReports, TrialRunner, trial_runner

# Errors of the data, where the first trial has them: no other values of the training would help.
_OF_THE_DATA = frozenset({"CONTENT_INVALID", "PREFLIGHT_FAILED"})
# A checkpoint tells so many of the last ones again: the service does not see each checkpoint.
_MOST_REPLACED = 64
# Values that decide how much is read: it is encoded for the largest of them.
_AMOUNTS = frozenset({"steps", "batch_size"})
# Values that tokenizer and encoded rows do not depend on.
_NOT_ENCODED = _AMOUNTS | {
    "learning_rate",
    "warmup_fraction",
    "weight_decay",
    "hidden_size",
    "intermediate_size",
    "layers",
    "heads",
    "key_value_heads",
    "threads_per_worker",
    "gpus_per_worker",
    "rank",
    "alpha",
    "dropout",
    "beta",
    "temperature",
    "group_size",
    "updates",
    "clip",
    "weight",
}


def run(ctx: EngineContext) -> Json:
    """Searches.

    Args:
        ctx: its `spec` has what the engine of a run takes, and `search` (`SearchPlan.to_json`).

    Returns:
        `trials` (`Trial.to_json`), `best_trial` (its number), `best` (what the engine of a run returned for it) and
        `importances`.

    Raises:
        EngineError: CONTENT_INVALID, PREFLIGHT_FAILED: the data are no good for any trial. QUOTA_EXCEEDED: no trial
            finished within the budget. Otherwise, when every trial failed, the reason of the last one.
        EngineCancelled: The task was cancelled.
    """
    return Search(ctx).run()


class Search:
    """The trials of one search, in this attempt and those before it."""

    def __init__(self, ctx: EngineContext) -> None:
        self._ctx = ctx
        self._plan = SearchPlan.from_json(ctx.spec["search"])
        # Of an algorithm of the catalogue there is no specification, but parameters.
        self._algorithm: Json | None = ctx.spec.get("algorithm")
        parameters = {"parameters": self._algorithm["parameters"]} if self._algorithm else {}
        self._document: Json = parameters or ctx.spec["spec"]
        before = ctx.resume or {}
        self._trials = {trial.number: trial for trial in lasting(map(Trial.from_json, before.get("trials", ())))}
        self._prepared: dict[str, Json] = dict(before.get("prepared", {}))
        self._best: Json | None = before.get("best")
        self._replaced: list[str] = list(before.get("replaced", ()))
        self._seconds_before: float = before.get("seconds", 0.0)
        self._began = time.perf_counter()
        self._fractions: dict[int, float] = {}
        # Whether a trial is left to another attempt.
        self._left = False

    def run(self) -> Json:
        """All trials that are not done yet."""
        if self._trials:
            self._ctx.log(f"goes on behind {len(self._trials)} trials")
        reports = SearchReports(self._ctx, self._out_of_time, self._told)
        runner = trial_runner(self._ctx, reports, self._plan.max_parallel)
        try:
            self._start(runner)
            while self._running():
                for number, outcome in runner.wait():
                    self._end(number, outcome)
                self._ctx.stop_if_cancelled()
                self._start(runner)
            if self._left:
                raise EngineInterrupted("its rights to read and write are about to end")
        finally:
            runner.close()
        return self._result()

    def _running(self) -> list[int]:
        return [number for number, trial in self._trials.items() if trial.state is TrialState.RUNNING]

    def _start(self, runner: TrialRunner) -> None:
        """Starts trials until as many run as may, or none can be proposed yet or any more."""
        while len(self._running()) < self._plan.max_parallel and not self._out_of_time():
            number = next(number for number in itertools.count() if number not in self._trials)
            newest_known = number - self._plan.max_parallel
            if number >= self._plan.max_trials or any(running <= newest_known for running in self._running()):
                return
            self._left = time.perf_counter() - self._began >= ATTEMPT_SECONDS
            if self._left:
                return
            known = [trial for trial in lasting(self._trials.values()) if trial.number <= newest_known]
            if self._plan.max_tokens and sum(trial.tokens for trial in known) >= self._plan.max_tokens:
                return
            earlier = [self._trials[each].parameters for each in range(number)]
            point = propose(self._plan, self._document, number, known, earlier)
            if point is None:
                return
            self._begin(runner, number, point, known)

    def _begin(self, runner: TrialRunner, number: int, point: Point, known: list[Trial]) -> None:
        if self._algorithm is not None:
            given = {name: value for name, value in self._ctx.spec.items() if name != "search"}
            parameters = trial_parameters(self._algorithm["parameters"], point)
            run = {**given, "algorithm": {**self._algorithm, "parameters": parameters}}
            self._go(runner, number, point, {"run": run, "rungs": None}, int(given["threads"]))
            return
        try:
            spec = trial_spec(TrainingSpec.from_json(self._document), point, "base" in self._ctx.spec)
        except DomainError as error:
            self._fail(number, point, error)
            return
        rungs = self._rungs(spec, known)
        stopping = self._plan.early_stopping
        shares = rung_shares(stopping.first_rung, stopping.reduction_factor) if stopping else []
        # One worker takes the same steps as several, without the start of a group.
        spec = replace(spec, workers=1, checkpoint_every=spec.steps + 1, probe=False, heldout_at=tuple(shares))
        try:
            plan = self._prepared_for(spec, point)
        except EngineError as error:
            self._fail(number, point, error)
            return
        # With GPUs the trial only waits for the worker that it starts, which books them.
        cpus = 0 if spec.gpus_per_worker else max(1, spec.threads_per_worker)
        self._go(runner, number, point, {"run": {"spec": spec.to_json(), "plan": plan}, "rungs": rungs}, cpus)

    def _go(self, runner: TrialRunner, number: int, point: Point, job: Json, cpus: int) -> None:
        self._trials[number] = Trial(number, point)
        self._keep()
        runner.start({**job, "number": number, "objective": self._plan.objective.result}, cpus)

    def _fail(self, number: int, point: Point, error: DomainError | EngineError) -> None:
        """A trial that could not begin."""
        outcome = {
            "state": TrialState.FAILED,
            "reason": error.reason,
            "message": error.message,
            "metadata": error.metadata,
        }
        self._trials[number] = Trial(number, point)
        self._end(number, outcome)

    def _rungs(self, spec: TrainingSpec, known: list[Trial]) -> Json | None:
        """What a trial is judged by; see `TrialContext`."""
        objective, stopping = self._plan.objective, self._plan.early_stopping
        if stopping is None:
            return None
        shares = rung_shares(stopping.first_rung, stopping.reduction_factor)
        steps = spec.phases[spec.phase_names.index(objective.phase)].steps
        return {
            "phase": objective.phase,
            "metric": objective.metric,
            "steps": [rung_step(share, steps) for share in shares],
            "others": [
                [trial.rungs[rung] for trial in known if len(trial.rungs) > rung] for rung in range(len(shares))
            ],
            "reduction_factor": stopping.reduction_factor,
            "maximize": objective.maximize,
        }

    def _prepared_for(self, spec: TrainingSpec, point: Point) -> Json:
        """The plan of a trial. Rows are read and encoded once for all trials with the same tokenizer and templates."""
        named = {path: value for path, value in point.items() if _last_name(path) not in _NOT_ENCODED}
        key = json.dumps(named, sort_keys=True)
        if key not in self._prepared:
            largest = {
                dimension.path: max(dimension.ends)
                for dimension in self._plan.space.dimensions
                if _last_name(dimension.path) in _AMOUNTS
            }
            widest = TrainingSpec.from_json(with_values(spec.to_json(), largest))
            self._prepared[key] = prepare(self._ctx, widest)
        plan = self._prepared[key]
        if "base" in self._ctx.spec:
            return plan
        vocabulary = config_of(plan).vocab_size
        return {**plan, "config": llama_config(spec.architecture, vocabulary).to_diff_dict()}

    def _end(self, number: int, outcome: Json) -> None:
        state = outcome["state"]
        if state == TrialState.STOPPED:
            self._ctx.stop_if_cancelled()
            outcome = {**outcome, "message": f"the search may work for {self._plan.max_seconds:g} seconds"}
        if state == TrialState.FAILED and outcome["reason"] in _OF_THE_DATA and number == 0:
            raise EngineError(outcome["reason"], outcome["message"], **outcome["metadata"])
        result: Json | None = outcome.get("result")
        trial = Trial(
            number,
            self._trials[number].parameters,
            TrialState(state),
            value=outcome.get("value"),
            rungs=tuple(outcome.get("rungs", ())),
            results=result["results"] if result else {},
            reason=outcome.get("reason", ""),
            message=outcome.get("message", ""),
            tokens=outcome.get("tokens", 0),
            seconds=round(outcome.get("seconds", 0.0), 3),
            end_seconds=round(self._seconds(), 3),
        )
        self._trials[number] = trial
        self._fractions.pop(number, None)
        best = best_of(self._trials.values(), self._plan.objective)
        loser, self._best = (self._best, result) if best is trial else (result, self._best)
        self._replaced += [*outcome.get("written", ()), *([loser["manifest_digest"]] if loser else [])]
        self._ctx.log(f"trial {number}: {state.lower()}{_told_of(trial)}")
        if trial.value is not None and best is not None and best.value is not None:
            ended = len(lasting(self._trials.values()))
            self._ctx.metrics("search", ended, trial=float(number), value=trial.value, best=best.value)
        self._keep()
        self._tell()

    def _keep(self) -> None:
        """The checkpoint: all that another attempt needs, the manifests that must not be swept away until then, and
        those of the last trials that may be."""
        manifests = [plan["prepared"] for plan in self._prepared.values()]
        manifests += [self._best["manifest_digest"]] if self._best else []
        self._ctx.checkpoint(
            {
                "trials": [self._trials[number].to_json() for number in sorted(self._trials)],
                "prepared": self._prepared,
                "best": self._best,
                "seconds": self._seconds(),
                "manifests": manifests,
                "replaced": self._replaced[-_MOST_REPLACED:],
                "bytes": sum(file["size"] for file in self._best["files"]) if self._best else 0,
                # A trial that ends its process each time it is begun must not be begun for ever.
                "advance": len(lasting(self._trials.values())),
            }
        )

    def _told(self, number: int, fraction: float) -> None:
        self._fractions[number] = fraction
        self._tell()

    def _tell(self) -> None:
        """Progress: of whichever limit is nearest."""
        plan, ended = self._plan, lasting(self._trials.values())
        tokens = sum(trial.tokens for trial in ended)
        running = sum(self._fractions.get(number, 0.0) for number in self._running())
        fraction = (len(ended) + running) / plan.max_trials
        fraction = max(fraction, self._seconds() / plan.max_seconds if plan.max_seconds else 0.0)
        fraction = max(fraction, tokens / plan.max_tokens if plan.max_tokens else 0.0)
        best = best_of(ended, plan.objective)
        message = f"{len(ended)} of {plan.max_trials} trials"
        if best is not None and best.value is not None:
            message += f", best {plan.objective.result} {best.value:.4g} (trial {best.number})"
        self._ctx.progress(min(1.0, fraction), message, tokens=float(tokens))

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._began

    def _out_of_time(self) -> bool:
        return bool(self._plan.max_seconds) and self._seconds() >= self._plan.max_seconds

    def _result(self) -> Json:
        trials = lasting(self._trials.values())
        best = best_of(trials, self._plan.objective)
        if best is None or self._best is None:
            raise _nothing_finished(trials)
        self._ctx.progress(1.0, f"trial {best.number} is the best of {len(trials)}")
        return {
            "trials": [trial.to_json() for trial in trials],
            "best_trial": best.number,
            "best": self._best,
            "importances": importances(self._plan, trials),
        }


def _nothing_finished(trials: list[Trial]) -> EngineError:
    failed = [trial for trial in trials if trial.state is TrialState.FAILED]
    if failed:
        last = failed[-1]
        return EngineError(last.reason, f"No trial finished. Trial {last.number}: {last.message}")
    message = "No trial finished within the budget of the search."
    return EngineError("QUOTA_EXCEEDED", message, resource="search", limit="budget")


def _told_of(trial: Trial) -> str:
    if trial.value is not None:
        return f" with {trial.value:.4g}"
    return f", {trial.message}" if trial.message else ""


def _last_name(path: str) -> str:
    return path.rpartition(".")[2].partition("[")[0]
