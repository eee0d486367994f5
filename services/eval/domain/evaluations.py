"""Evaluations: their states, their report, and the gate that they decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from libs.common.domain import DomainError, Resource
from services.eval.domain.statistics import Share

# Kind of the task that carries an evaluation.
TASK_KIND = "eval.run"

QUEUED = "QUEUED"
RUNNING = "RUNNING"
SUCCEEDED = "SUCCEEDED"
FAILED = "FAILED"
CANCELLED = "CANCELLED"

# Share of the test rows that may be in the training data: a few rows that everybody writes alike move no score.
MOST_LEAKED = 0.01

GATE_PENDING = "PENDING"
GATE_RECORDED = "RECORDED"
GATE_REFUSED = "REFUSED"

_ALLOWED = {
    QUEUED: {RUNNING, FAILED, CANCELLED},
    RUNNING: {SUCCEEDED, FAILED, CANCELLED},
    # A task that is tried again begins anew.
    FAILED: {RUNNING},
    CANCELLED: {RUNNING},
    SUCCEEDED: set[str](),
}


@dataclass(kw_only=True)
class Evaluation(Resource):
    """One measurement of a model version on held-out rows. `spec` and `report` are the messages as JSON objects."""

    display_name: str = ""
    model_version: str = ""
    dataset_version: str = ""
    baseline_version: str = ""
    spec: dict[str, Any] = field(default_factory=dict[str, Any])
    task: str = ""
    model_digest: str = ""
    report: dict[str, Any] = field(default_factory=dict[str, Any])
    # SHA-256 of the blob with every sample; empty until it has succeeded.
    samples_digest: str = ""
    # Whether the verdict has reached the model version: empty while there is none.
    gate_state: str = ""
    # W3C trace context of the call that asked for it; the gate is recorded under it.
    traceparent: str = ""

    def succeed(self, report: dict[str, Any], samples_digest: str) -> None:
        """Takes the engine's report; a verdict in it waits to be recorded."""
        self.move_to(SUCCEEDED)
        self.report = report
        self.samples_digest = samples_digest
        self.gate_state = GATE_PENDING if report.get("verdict") else ""

    def figures(self) -> dict[str, float]:
        """The numbers behind the verdict, for the model version."""
        score, majority = self.report["score"], self.report["baselines"]["majority"]
        leaked = [one["leaked_share"] for one in self.report.get("leakage", ()) if not one["problem"]]
        return {
            **({"leaked_share": max(leaked)} if leaked else {}),
            "score": score["value"],
            "lower": score["lower"],
            "upper": score["upper"],
            "rows": float(score["total"]),
            "baseline": majority["value"],
            "margin": self.report["verdict"]["margin"],
        }

    def move_to(self, state: str) -> None:
        """Changes the state. Raises STATE_CONFLICT where the life-cycle has no such step; staying is no step."""
        if state == self.state:
            return
        if state not in _ALLOWED[self.state]:
            message = f"{self.name} is {self.state}; it cannot become {state}."
            raise DomainError("STATE_CONFLICT", message, name=self.name, state=self.state, wanted=state)
        self.state = state


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate decided, and why."""

    gate: str
    open: bool
    rule: str
    reason: str
    margin: float


@dataclass(frozen=True, slots=True)
class Leakage:
    """How much of the test version is in one version that the model was trained on.

    Attributes:
        leaked_share: rows that are in it exactly or nearly, of all test rows.
        problem: why the two could not be compared; empty if they were.
    """

    train_version: str
    test_rows: int = 0
    exact_rows: int = 0
    near_rows: int = 0
    leaked_share: float = 0.0
    problem: str = ""


def decide(gate: str, score: Share, majority: Share, margin: float, leakage: Sequence[Leakage] = ()) -> Verdict:
    """Opens if even the lower bound of the score beats the majority class by more than the margin, and the model was
    not trained on the test rows.

    Args:
        gate: name of the gate.
        score: of the model.
        majority: of the strongest constant answer.
        margin: by which it must be better.
        leakage: one entry for each version that the model is known to be trained on; none: nothing is known.
    """
    needed = majority.value + margin
    opens = score.lower > needed
    rule = f"lower bound of the 95 % interval of exact match > majority class + {margin:.3f}"
    sign = ">" if opens else "<="
    reason = f"{score.lower:.4f} {sign} {majority.value:.4f} + {margin:.3f} = {needed:.4f}"
    if leakage:
        rule += f"; at most {MOST_LEAKED:.0%} of the test rows in any training version"
    for one in leakage:
        opens = opens and not one.problem and one.leaked_share <= MOST_LEAKED
        said = f"not compared: {one.problem}" if one.problem else f"{one.leaked_share:.2%} of the test rows"
        reason += f"; {one.train_version}: {said}"
    return Verdict(gate, opens, rule, reason, margin)
