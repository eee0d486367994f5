"""Long work as it goes: a bar with what it says, its figures and when it will be done. In a pipe, a line every few
seconds.
"""

from __future__ import annotations

import time
from typing import Any

from argosy.client.errors import ApiError
from argosy.client.synchronous import Client
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

# Seconds between two lines where nothing can be drawn over.
_LINE_EVERY = 5.0
# Recording a verdict takes a call to training; longer means that training is away.
_VERDICT_SECONDS = 30.0
_VERDICT_BEAT = 0.2
_ENDED = ("STATE_SUCCEEDED", "STATE_FAILED", "STATE_CANCELLED")


class TaskFailed(Exception):
    """A task ended otherwise than well. `task` is its last state."""

    def __init__(self, task: Any) -> None:
        error = task.error
        super().__init__(f"{task.name} {state_of(task)[6:].lower()}: {error.reason} {error.message}".rstrip(" :"))
        self.task = task


class VerdictLate(Exception):
    """An evaluation has succeeded and its verdict is not on the model version yet."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the verdict of {name} is not on the model version yet: training may be away; look again later"
        )


def state_of(task: Any) -> str:
    """Name of the state of a task."""
    return str(task.DESCRIPTOR.fields_by_name["state"].enum_type.values_by_number[task.state].name)


def watch(client: Client, name: str, console: Console, label: str = "", curve: list[Any] | None = None) -> Any:
    """Follows a task to its end.

    Args:
        name: of the task.
        label: what to call it; else its kind.
        curve: gets every `TaskMetrics` that comes by.
    Returns:
        the task as it ended.
    Raises:
        TaskFailed: it failed or was cancelled.
        ApiError: the platform did not answer for as long as the client waits.
    """
    view = _View(console, label)
    with view:
        task = _follow(client, name, view, curve)
    if state_of(task) != "STATE_SUCCEEDED":
        raise TaskFailed(task)
    return task


def finished_evaluation(client: Client, name: str) -> Any:
    """The evaluation, once its verdict, if it has one, is on the model version; that takes a moment after its task.

    Args:
        name: of an evaluation whose task has succeeded.
    Raises:
        VerdictLate: it has not arrived within half a minute; it will be recorded when training is back.
    """
    end = time.monotonic() + _VERDICT_SECONDS
    while True:
        found = client.eval.get_evaluation(name=name)
        if found.report.verdict.recorded or not found.report.verdict.gate:
            return found
        if time.monotonic() > end:
            raise VerdictLate(name)
        time.sleep(_VERDICT_BEAT)


def _follow(client: Client, name: str, view: _View, curve: list[Any] | None) -> Any:
    task = client.task.get_task(name=name)
    seen = 0
    while state_of(task) not in _ENDED:
        view.show(task)
        try:
            for event in client.task.watch_task(name=name, after_sequence=seen):
                seen = max(seen, event.sequence)
                payload = event.WhichOneof("payload")
                if payload == "task":
                    task = event.task
                    view.show(task)
                elif payload == "metrics":
                    view.measure(event.metrics)
                    if curve is not None:
                        curve.append(event.metrics)
                elif payload == "log" and event.log.severity in ("WARNING", "ERROR"):
                    view.say(f"{event.log.severity.lower()}: {event.log.body}")
        except ApiError as error:
            if error.status not in (0, 502, 503, 504):
                raise
        task = client.task.get_task(name=name)
    view.show(task)
    return task


class _View:
    """Where it is shown."""

    def __init__(self, console: Console, label: str) -> None:
        self._console = console
        self._label = label
        self._figures = ""
        self._printed = 0.0
        self._began = time.monotonic()
        self._bar: Progress | None = None
        self._row: Any = None
        if console.is_terminal:
            columns = (
                TextColumn("  {task.description}"),
                BarColumn(bar_width=30),
                TaskProgressColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self._bar = Progress(*columns, console=console, transient=True)
            self._row = self._bar.add_task(label, total=1.0, text="")

    def __enter__(self) -> _View:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, line: str) -> None:
        self._console.print(f"  {line}", markup=False, highlight=False)

    def measure(self, metrics: Any) -> None:
        """Keeps the newest figures."""
        values = dict(metrics.values)
        shown = [f"{metrics.phase} step {metrics.step}"]
        for name, unit in (("loss", ""), ("heldout_loss", " held out"), ("tokens_per_second", " tokens/s")):
            if name in values:
                number = f"{values[name]:,.0f}" if values[name] >= 100 else f"{values[name]:.3f}"
                shown.append(f"{'loss ' if name == 'loss' else ''}{number}{unit}")
        self._figures = "  ".join(shown)

    def show(self, task: Any) -> None:
        """Draws or prints the newest state."""
        text = "  ".join(part for part in (self._figures or task.message, _left(task)) if part)
        if self._bar:
            self._bar.update(self._row, completed=task.progress, text=text, description=self._label or task.kind)
            return
        now = time.monotonic()
        if now - self._printed >= _LINE_EVERY and now - self._began >= 1.0:
            self._printed = now
            self._console.print(
                f"  {self._label or task.kind} {task.progress:4.0%}  {text}", markup=False, highlight=False
            )


def _left(task: Any) -> str:
    if not task.HasField("eta"):
        return ""
    now = Timestamp()
    now.GetCurrentTime()
    seconds = task.eta.seconds - now.seconds
    return f"{seconds // 60}:{seconds % 60:02d} left" if seconds > 0 else ""
