"""What the main job shows while it works: a line a stage as it ends, and what it found."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

_LINE_EVERY = 5.0


class Screen:
    """Prints stages.

    Args:
        stages: how many there will be.
    """

    def __init__(self, stages: int) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.seconds: dict[str, float] = {}
        self._stages = stages
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    @contextmanager
    def stage(self, title: str) -> Generator[None]:
        """One stage: its number and title, and how long it took."""
        number = len(self.seconds) + 1
        self.console.print(f"[bold]{number:>2}/{self._stages}[/bold] {title} [dim]({self.elapsed:.0f} s)[/dim]")
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[title] = round(time.monotonic() - began, 2)

    def say(self, text: str) -> None:
        """A line below the stage."""
        self.console.print(f"      {text}")

    def tell(self, text: str) -> None:
        """A line below the stage that holds somebody else's text."""
        self.console.print(f"      {text}", markup=False)

    @contextmanager
    def bar(self, label: str, total: float) -> Generator[Callable[[float, float], None]]:
        """A bar with the time left; in a pipe, a line every few seconds. Call it with what is done, and all."""
        if not self.console.is_terminal:
            yield _lines(self.console, label)
            return
        columns = (TextColumn(f"      {label}"), BarColumn(bar_width=30), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            row = progress.add_task(label, total=total)
            yield lambda done, all_of_it: progress.update(row, completed=done, total=all_of_it)

    def table(self, title: str, rows: list[tuple[str, Any]]) -> None:
        """Two columns."""
        table = Table(title=title, show_header=False)
        for name, value in rows:
            table.add_row(name, str(value).replace("[", r"\["))
        self.console.print(table)


def _lines(console: Console, label: str) -> Callable[[float, float], None]:
    began = printed = time.monotonic()

    def show(done: float, total: float) -> None:
        nonlocal printed
        now = time.monotonic()
        if now - printed < _LINE_EVERY or not done:
            return
        printed = now
        left = (now - began) * (total - done) / done
        console.print(f"      {label} {done / total:.0%}, {left:.0f} s left")

    return show
