"""What runs inside Ray: the carrier of one attempt of one task, and the host of any other named actor."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import math
import os
import threading
import time
from collections import deque
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from libs.common.domain import DomainError
from libs.compute.context import (
    EngineCancelled,
    EngineContext,
    EngineError,
    EngineInterrupted,
    EnginePaused,
    Json,
    load_entrypoint,
)

# Events wait here while no service polls. Beyond that the oldest go: curves and logs may have a hole, results never.
_MOST_EVENTS = 20_000
_EVENTS_A_POLL = 500
_FLUSH_SECONDS = 2.0

_log = logging.getLogger("argosy.engine")


class CarrierContext(EngineContext):
    """Keeps what the engine reports until the service has fetched it."""

    def __init__(self, job: Json) -> None:
        super().__init__(
            job["spec"],
            attempt=job["attempt"],
            resume=job["resume"],
            write_grant=job["write_grant"],
            trace={"traceparent": job["traceparent"]} if job["traceparent"] else None,
        )
        self._lock = threading.Lock()
        self._events: deque[Json] = deque()
        self._cursor = 0
        self._progress: Json | None = None
        self._checkpoint: Json | None = None

    def progress(self, fraction: float, message: str = "", **cost: float) -> None:
        with self._lock:
            before = self._progress or {"message": "", "cost": {}}
            self._progress = {
                "fraction": min(1.0, max(0.0, float(fraction))),
                "message": message or before["message"],
                "cost": {**before["cost"], **_finite(cost)},
            }

    def log(self, body: str, severity: str = "INFO") -> None:
        _log.log(getattr(logging, severity, logging.INFO), "%s", body)
        self._add({"kind": "log", "severity": severity, "body": body})

    def metrics(self, phase: str, step: int, /, **values: float) -> None:
        self._add(
            {"kind": "metrics", "phase": phase, "step": int(step), "values": {k: float(v) for k, v in values.items()}}
        )

    def checkpoint(self, data: Json) -> None:
        _require_json(data)
        with self._lock:
            self._checkpoint = data

    def report(self, cursor: int) -> tuple[Json, bool]:
        """What is new after `cursor`, and whether that is everything."""
        with self._lock:
            while self._events and self._events[0]["cursor"] <= cursor:
                self._events.popleft()
            events = [event for event, _ in zip(self._events, range(_EVENTS_A_POLL), strict=False)]
            report = {"events": events, "progress": self._progress, "checkpoint": self._checkpoint}
            return report, len(events) == len(self._events)

    def _add(self, event: Json) -> None:
        with self._lock:
            self._cursor += 1
            self._events.append({**event, "cursor": self._cursor, "time": datetime.now(UTC).isoformat()})
            while len(self._events) > _MOST_EVENTS:
                self._events.popleft()


class TaskCarrier:
    """Runs one engine in a thread and answers for it. Detached: it outlives the driver and the service.

    Args:
        job: `entrypoint`, `kind`, `spec`, `attempt`, `resume`, `write_grant`, `traceparent`.
    """

    def __init__(self, job: Json) -> None:
        self._job = job
        self._context = CarrierContext(job)
        self._started = time.process_time()
        self._outcome: Json | None = None
        threading.Thread(target=self._work, name="engine", daemon=True).start()

    def poll(self, cursor: int) -> Json:
        """What happened after event `cursor`; the end is told together with the last event."""
        outcome = self._outcome  # read before the events: whatever the engine reported came before its end
        report, complete = self._context.report(cursor)
        report["cpu_seconds"] = time.process_time() - self._started
        return {**report, **(outcome if outcome is not None and complete else {"state": "running"})}

    def cancel(self) -> None:
        """Asks the engine to stop."""
        self._context.request_cancel()

    def pause(self) -> None:
        """Asks the engine to stop at its next checkpoint."""
        self._context.request_pause()

    def _work(self) -> None:
        telemetry = _telemetry()
        outcome = self._traced()
        _flush(telemetry)
        self._outcome = outcome

    def _traced(self) -> Json:
        from opentelemetry.trace import Status, StatusCode

        from libs.common.obs import extract, inject, tracer
        from libs.compute.where import ray_attributes

        kind = self._job["kind"]
        attributes = {"argosy.task": self._job["name"], "argosy.attempt": self._job["attempt"], **ray_attributes()}
        with tracer().start_as_current_span(
            f"engine {kind}", context=extract(self._context.trace), attributes=attributes
        ) as span:
            carrier = inject()
            if carrier:
                self._context.trace = carrier
            outcome = self._run()
            if outcome["state"] in ("failed", "interrupted"):
                span.set_status(Status(StatusCode.ERROR, outcome["error"]["reason"]))
        return outcome

    def _run(self) -> Json:
        context = self._context
        try:
            result = load_entrypoint(self._job["entrypoint"])(context)
            if context.saw_cancel:
                return {"state": "cancelled"}
            _require_json(result)
            return {"state": "succeeded", "result": result}
        except EngineCancelled:
            return {"state": "cancelled"}
        except EnginePaused:
            return {"state": "paused"}
        except EngineInterrupted as error:
            return _failed("interrupted", "COMPUTE_UNAVAILABLE", str(error), True)
        except EngineError as error:
            return _failed("failed", error.reason, error.message, error.retryable, error.metadata)
        except DomainError as error:
            state = "interrupted" if error.reason in PASSING else "failed"
            return _failed(state, error.reason, error.message, True, error.metadata)
        except Exception as error:  # the engine is foreign code to the carrier: whatever it raises is the task's end
            _log.exception("engine %s failed", self._job["kind"])
            if _lost_a_worker(error):
                return _failed("interrupted", "COMPUTE_UNAVAILABLE", "a worker of the engine was lost", True)
            context.log(f"{type(error).__name__}: {error}", "ERROR")
            return _failed("failed", "INTERNAL", f"the engine failed with {type(error).__name__}; see the log", True)


# What goes away by itself: another attempt, from the checkpoint, may work.
PASSING = frozenset(
    {
        "STORAGE_FULL",
        "STORAGE_UNAVAILABLE",
        "COMPUTE_UNAVAILABLE",
        "PEER_UNAVAILABLE",
        "DATABASE_UNAVAILABLE",
        "OVERLOADED",
    }
)


class ActorHost:
    """Holds an object of any class in a named actor; its methods, coroutines too, take JSON and answer JSON.

    Args:
        class_path: `package.module:Class`.
        kwargs: Arguments of its constructor. What needs a running event loop belongs in a coroutine method.
    """

    def __init__(self, class_path: str, kwargs: Json) -> None:
        module_name, _, name = class_path.partition(":")
        held = getattr(import_module(module_name), name)
        # A class that is a service of its own (a replica) says so, and sends telemetry under its own name.
        self._telemetry = None if getattr(held, "own_telemetry", False) else _telemetry()
        self._object = held(**kwargs)

    async def call(self, method: str, kwargs: Json) -> Json:
        """Gives `{"ok": answer}` or `{"error": ...}`: foreign exceptions would not survive Ray's pickling."""
        try:
            function = getattr(self._object, method)
            if inspect.iscoroutinefunction(function):
                return {"ok": await function(**kwargs)}
            return {"ok": await asyncio.to_thread(function, **kwargs)}
        except (EngineError, DomainError) as error:
            retryable = getattr(error, "retryable", False)
            return _failed("failed", error.reason, error.message, retryable, error.metadata)
        except Exception as error:  # the object is foreign code to the host: it must go on answering
            _log.exception("%s of %s failed", method, type(self._object).__name__)
            return _failed("failed", "INTERNAL", f"{method} failed with {type(error).__name__}", True)


def _require_json(document: Json) -> None:
    """Raises here, in the engine, what would otherwise fail in the service: PostgreSQL's JSON has no NaN either."""
    json.dumps(document, allow_nan=False)


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _failed(state: str, reason: str, message: str, retryable: bool, metadata: dict[str, str] | None = None) -> Json:
    error = {"reason": reason, "message": message, "metadata": metadata or {}, "retryable": retryable}
    return {"state": state, "error": error}


def _lost_a_worker(error: BaseException | None) -> bool:
    """Whether Ray took something away from the engine, anywhere in the chain of causes."""
    from ray import exceptions

    gone = (
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.ObjectLostError,
        exceptions.NodeDiedError,
        exceptions.OutOfMemoryError,
        exceptions.LocalRayletDiedError,
    )
    for _ in range(10):
        if error is None:
            return False
        if isinstance(error, gone):
            return True
        error = error.__cause__ or error.__context__
    return False


def _telemetry() -> Any:
    from libs.common.obs import setup_telemetry

    pki = os.environ.get("ARGOSY_PKI_DIR", "")
    return setup_telemetry(
        "ray",
        role="engine",
        endpoint=os.environ.get("ARGOSY_OTLP", ""),
        pki_dir=Path(pki) if pki else None,
        identity=os.environ.get("ARGOSY_SERVICE") or None,
    )


def _flush(telemetry: Any) -> None:
    """Sends the span before anybody can kill this actor, but does not wait long for a receiver that is away."""
    sender = threading.Thread(target=telemetry.flush, daemon=True)
    sender.start()
    sender.join(_FLUSH_SECONDS)
