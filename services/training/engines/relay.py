"""Reports of Ray Train workers on their way to the task: a small actor between them and the carrier.

The workers may be on other machines, and the carrier is busy inside `fit`; so workers push, the carrier drains.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from services.training.engines.reports import Json, Reports

_NAMES = ("progress", "metrics", "log", "checkpoint", "outcome")


class RelayState:
    """What the actor holds: reports not yet drained, the newest checkpoint, what was asked of the workers."""

    def __init__(self, checkpoint: Json | None) -> None:
        self._reports: list[tuple[str, tuple[Any, ...]]] = []
        self._checkpoint = checkpoint
        self._cancelled = False
        self._pausing = False

    def push(self, kind: str, arguments: tuple[Any, ...]) -> None:
        """Takes a report from a worker."""
        if kind == "checkpoint":
            self._checkpoint = arguments[0]
        self._reports.append((kind, arguments))

    def drain(self) -> list[tuple[str, tuple[Any, ...]]]:
        """Hands over what came since the last call."""
        reports, self._reports = self._reports, []
        return reports

    def newest_checkpoint(self) -> Json | None:
        """Where restarted workers go on."""
        return self._checkpoint

    def cancel(self) -> None:
        """From now on `cancelled` is true."""
        self._cancelled = True

    def cancelled(self) -> bool:
        """Whether the workers are to stop."""
        return self._cancelled

    def pause(self) -> None:
        """From now on `pausing` is true."""
        self._pausing = True

    def pausing(self) -> bool:
        """Whether the workers are to stop at their next checkpoint."""
        return self._pausing


def start_relay(checkpoint: Json | None) -> Any:
    """Starts the actor. It takes no CPU from the workers and goes when its owner goes, and with no other node than
    its owner's."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(RelayState)
    return actor.options(scheduling_strategy=here).remote(checkpoint)


class RelayReports:
    """The task as seen by a worker: sends and goes on; only `cancelled` and `pausing` wait for an answer."""

    def __init__(self, relay: Any) -> None:
        self._relay = relay

    def progress(self, fraction: float, message: str, cost: dict[str, float]) -> None:
        self._relay.push.remote("progress", (fraction, message, cost))

    def metrics(self, phase: str, step: int, values: dict[str, float]) -> None:
        self._relay.push.remote("metrics", (phase, step, values))

    def log(self, body: str, severity: str = "INFO") -> None:
        self._relay.push.remote("log", (body, severity))

    def checkpoint(self, data: Json) -> None:
        # Waits: a checkpoint that was only on its way when this worker died would be computed again.
        ray.get(self._relay.push.remote("checkpoint", (data,)))

    def cancelled(self) -> bool:
        return bool(ray.get(self._relay.cancelled.remote()))

    def pausing(self) -> bool:
        return bool(ray.get(self._relay.pausing.remote()))

    def outcome(self, outcome: Json) -> None:
        """How the workers ended: `{"result": ...}`, `{"error": ...}`, `{"cancelled": True}` or `{"paused": True}`."""
        ray.get(self._relay.push.remote("outcome", (outcome,)))


def deliver(relay: Any, reports: Reports) -> Json | None:
    """Drains the actor into the task.

    Returns:
        The outcome, once a worker has reported it.
    """
    outcome: Json | None = None
    for kind, arguments in ray.get(relay.drain.remote()):
        if kind == "outcome":
            outcome = arguments[0]
        elif kind in _NAMES:
            getattr(reports, kind)(*arguments)
    return outcome
