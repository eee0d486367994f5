"""A Python function of the user's as a step of a recipe."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any, Literal

from services.dataset.domain.operators import PROVENANCE
from services.dataset.engines.rows import Row, RowError, canonical
from services.dataset.engines.sandbox import Limits, Sandbox, SandboxUnavailable, Stopped
from services.dataset.engines.texts import StoppedAt, Texts

_LONGEST_REASON = 200


class UserFunction:
    """Calls the function for every row of a batch. Each shard of rows has a sandbox of its own, so that what a function
    keeps in memory does not depend on the number of workers.

    Args:
        source: With `def row(row)`.
        on_error: What an exception does: `fail` the task, or `drop` the row.
        max_seconds: For one row.
        max_memory_mb: Of the sandbox.
    """

    def __init__(self, source: str, on_error: Literal["fail", "drop"], max_seconds: float, max_memory_mb: int) -> None:
        self._source = source
        self._on_error = on_error
        self._limits = Limits(max_seconds, max_memory_mb * 1024 * 1024)
        self._sandbox: Sandbox | None = None

    def __enter__(self) -> UserFunction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None

    def __call__(self, texts: Texts) -> None:
        """Applies the function. Raises `StoppedAt` where it cannot go on."""
        left = texts.left
        if not left:
            return
        answered = 0
        try:
            if self._sandbox is None:
                self._sandbox = Sandbox(self._source, self._limits)
            rows = [json.dumps(texts.row(at), separators=(",", ":")).encode() for at in left]
            for at, answer in zip(left, self._sandbox.call(rows), strict=True):
                self._take(texts, at, answer)
                answered += 1
        except SandboxUnavailable as error:
            raise StoppedAt(left[0], texts.operator, str(error), is_setup=True) from None
        except Stopped as error:
            raise StoppedAt(left[answered], texts.operator, _printable(str(error))) from None

    def _take(self, texts: Texts, at: int, answer: bytes) -> None:
        try:
            verdict = _read(answer)
        except (ValueError, RecursionError, RowError) as error:
            reason = _printable(str(error))
            if self._on_error == "fail":
                raise StoppedAt(at, texts.operator, reason) from None
            texts.drop(at, reason)
            return
        if isinstance(verdict, str):
            texts.drop(at, verdict)
        else:
            texts.replace_row(at, verdict)


def _printable(text: str) -> str:
    """Without what the database of the service cannot keep: half characters and U+0000."""
    return text.encode(errors="replace").decode().replace("\x00", "\ufffd")[:_LONGEST_REASON]


def _read(answer: bytes) -> Row | str:
    """The row that a function gives back, or why the row goes. Raises for an error of the function."""
    given: Any = json.loads(answer)
    match given:
        case {"row": dict(row)}:
            kept: Row = row
            taken = next((name for name in PROVENANCE if name in kept), None)
            if taken is not None:
                raise RowError(f"{taken} says where a row comes from; a function cannot set it")
            return canonical(kept)[0]
        case {"dropped": str(what)}:
            return f"the function gave {what}"
        case {"error": str(error)}:
            raise RowError(error)
        case _:
            raise RowError("the function wrote into the channel of its answers")
