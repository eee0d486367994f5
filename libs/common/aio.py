"""Background work that cannot fail in silence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

_log = logging.getLogger(__name__)
_ASK_AGAIN_SECONDS = 2.0


class Background:
    """Runs coroutines beside the body of an `async with`.

    One that raises is logged and takes the others and the body down with it: a process that lost one of its parts must
    not look healthy; its supervisor starts it again. Leaving the body cancels what still runs and waits for it.

    Args:
        name: for the log.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self._owner: asyncio.Task[Any] | None = None
        self._failure: BaseException | None = None
        self._leaving = False
        # Whether the body was cancelled by us, because a part failed.
        self._interrupted = False

    async def __aenter__(self) -> Self:
        self._owner = asyncio.current_task()
        return self

    def start(self, coro: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Starts one coroutine. Raises RuntimeError outside the `async with`."""
        if self._owner is None or self._leaving:
            coro.close()
            raise RuntimeError(f"{self.name} is not running")
        task = asyncio.get_running_loop().create_task(coro, name=f"{self.name}/{name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        _log.error("background work failed: %s", task.get_name(), exc_info=task.exception())
        if self._failure is None:
            self._failure = task.exception()
            for other in self._tasks:
                other.cancel()
            if self._owner is not None and not self._leaving:
                self._interrupted = True
                self._owner.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving = True
        cancelled = kind is asyncio.CancelledError
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            try:
                # Libraries swallow a cancellation now and then (wait_for of Python 3.11 does): ask again.
                await asyncio.wait(list(self._tasks), timeout=_ASK_AGAIN_SECONDS)
            except asyncio.CancelledError:
                cancelled = True
        if self._interrupted and cancelled and self._owner is not None and self._owner.uncancel() > 0:
            # Somebody else wants this task to end too: that goes on.
            return
        if self._failure is not None:
            raise self._failure
        if cancelled and kind is None:
            raise asyncio.CancelledError
