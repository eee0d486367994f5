"""What an engine sees of Argosy while it runs.

An engine is `def run(ctx: EngineContext) -> dict`: a plain function whose result can be written as JSON. It runs in a
Ray actor (`libs.compute.actor`) or, in unit tests and notebooks, in the calling thread with `LocalContext`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any, Protocol

from libs.common.blobs import BlobStore

Json = dict[str, Any]


class EngineError(Exception):
    """An engine gave up: the task fails at once, without another attempt.

    Args:
        reason: A name of `ErrorReason` without its prefix, such as `CONTENT_INVALID`.
        message: For people; no stack trace, no secret.
        retryable: Whether the same task may work when somebody retries it.
        metadata: What the catalogue says about the reason.
    """

    def __init__(self, reason: str, message: str, *, retryable: bool = False, **metadata: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retryable = retryable
        self.metadata = metadata


class EngineCancelled(Exception):
    """Raised by `EngineContext.stop_if_cancelled`; the task becomes cancelled."""


class EnginePaused(Exception):
    """Raised behind a checkpoint by an engine that was asked to pause; a resumed task goes on from there."""


class EngineInterrupted(Exception):
    """Something below the engine was lost (a worker, a peer): run it again from its checkpoint."""


class Engine(Protocol):
    def __call__(self, ctx: EngineContext) -> Json: ...


class EngineContext(ABC):
    """Input, output and reports of one attempt of one task. Every method may be called from any thread.

    Attributes:
        spec: What the task kind's `load` returned.
        attempt: 1 for the first attempt.
        resume: The newest checkpoint of an earlier attempt, or None.
        trace: W3C trace context of the engine's span, for what the engine starts itself.
    """

    spec: Json
    attempt: int
    resume: Json | None
    trace: dict[str, str]

    def __init__(
        self,
        spec: Json,
        *,
        attempt: int = 1,
        resume: Json | None = None,
        write_grant: str | None = None,
        trace: dict[str, str] | None = None,
    ) -> None:
        self.spec = spec
        self.attempt = attempt
        self.resume = resume
        self.trace = trace or {}
        self._write_grant = write_grant
        self._cancel = threading.Event()
        self._saw_cancel = False
        self._pause = threading.Event()

    @abstractmethod
    def progress(self, fraction: float, message: str = "", **cost: float) -> None:
        """Says how far the work is.

        Args:
            fraction: 0 to 1.
            message: What it is doing now, for people; empty keeps the last one.
            cost: Totals used so far by this attempt: `cpu_seconds`, `gpu_seconds`, `tokens`, `rows`, `bytes`.
        """

    @abstractmethod
    def log(self, body: str, severity: str = "INFO") -> None:
        """Adds a line to the task's log. `severity` is DEBUG, INFO, WARNING or ERROR."""

    @abstractmethod
    def metrics(self, phase: str, step: int, /, **values: float) -> None:
        """Adds one point to the task's curves: `metrics("pretrain", 40, loss=5.1, tokens_per_second=14e3)`."""

    @abstractmethod
    def checkpoint(self, data: Json) -> None:
        """Keeps `data` as the place to resume from. Whatever it points to (blobs) must be durable before the call."""

    def cancelled(self) -> bool:
        """Whether somebody asked the task to stop. An engine that saw True has ten seconds to return or raise."""
        if self._cancel.is_set():
            self._saw_cancel = True
        return self._saw_cancel

    def stop_if_cancelled(self) -> None:
        """Raises `EngineCancelled` when `cancelled()`."""
        if self.cancelled():
            raise EngineCancelled()

    def request_cancel(self) -> None:
        """Makes `cancelled()` true."""
        self._cancel.set()

    def pausing(self) -> bool:
        """Whether somebody asked the task to pause. An engine that has checkpoints asks behind each of them."""
        return self._pause.is_set()

    def pause_if_asked(self) -> None:
        """Raises `EnginePaused` when `pausing()`. Only behind a checkpoint: whatever came after it is done again."""
        if self.pausing():
            raise EnginePaused()

    def request_pause(self) -> None:
        """Makes `pausing()` true."""
        self._pause.set()

    @property
    def saw_cancel(self) -> bool:
        """Whether the engine has been told that it is cancelled; its return then counts as cancelled."""
        return self._saw_cancel

    def blobs_read(self, grant: str) -> BlobStore:
        """A read-only store limited to the blobs of the grant's manifest."""
        return BlobStore.from_grant(grant)

    @cached_property
    def blobs_write(self) -> BlobStore:
        """The store for this task's outputs. It reads back what it wrote and nothing else.

        Raises:
            EngineError: The task was started without a store.
        """
        if self._write_grant is None:
            raise EngineError("GRANT_DENIED", "this task has no store for its outputs")
        return BlobStore.from_grant(self._write_grant)


@dataclass
class Recorded:
    """What an engine reported to a `LocalContext`."""

    progress: list[tuple[float, str]] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)
    logs: list[tuple[str, str]] = field(default_factory=list)
    metrics: list[tuple[str, int, dict[str, float]]] = field(default_factory=list)
    checkpoints: list[Json] = field(default_factory=list)


class LocalContext(EngineContext):
    """Runs an engine without Ray and keeps what it reported in `recorded`.

    Example:
        ctx = LocalContext({"rows": 10}, blobs_write=store)
        result = run(ctx)
    """

    def __init__(
        self,
        spec: Json,
        *,
        attempt: int = 1,
        resume: Json | None = None,
        blobs_write: BlobStore | None = None,
        blobs_read: BlobStore | None = None,
        cancel_when: Callable[[Recorded], bool] | None = None,
        pause_when: Callable[[Recorded], bool] | None = None,
    ) -> None:
        super().__init__(spec, attempt=attempt, resume=resume)
        self.recorded = Recorded()
        self._read = blobs_read
        self._cancel_when = cancel_when
        self._pause_when = pause_when
        if blobs_write is not None:
            self.blobs_write = blobs_write

    def progress(self, fraction: float, message: str = "", **cost: float) -> None:
        self.recorded.progress.append((fraction, message))
        self.recorded.cost.update(cost)

    def log(self, body: str, severity: str = "INFO") -> None:
        self.recorded.logs.append((severity, body))

    def metrics(self, phase: str, step: int, /, **values: float) -> None:
        self.recorded.metrics.append((phase, step, values))

    def checkpoint(self, data: Json) -> None:
        self.recorded.checkpoints.append(data)

    def cancelled(self) -> bool:
        if self._cancel_when is not None and self._cancel_when(self.recorded):
            self.request_cancel()
        return super().cancelled()

    def pausing(self) -> bool:
        if self._pause_when is not None and self._pause_when(self.recorded):
            self.request_pause()
        return super().pausing()

    def blobs_read(self, grant: str) -> BlobStore:
        return self._read if self._read is not None else super().blobs_read(grant)


def load_entrypoint(path: str) -> Engine:
    """The function behind `package.module:function`.

    Raises:
        EngineError: There is no such function.
    """
    module_name, _, function = path.partition(":")
    try:
        return getattr(import_module(module_name), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise EngineError("INTERNAL", f"engine {path} cannot be loaded: {error}") from error
