"""The main job as a process that is watched, and disturbed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.injuries import Injury, NobodyThere
from tests.chaos.plan import Plan
from tests.mesh import Mesh

_STAGE = re.compile(r"^\s*(\d+)/10 ")


@dataclass
class Outcome:
    """How a run went.

    Attributes:
        summary: what the job wrote.
        seconds: that each stage took.
        done: injuries and what they did.
        missed: injuries that found nobody to harm, or whose moment did not come.
    """

    summary: dict[str, Any]
    seconds: list[float]
    done: dict[str, str] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)


class _Watched:
    """The process of a job; says which stage it is in since when."""

    def __init__(self, mesh: Mesh, folder: Path, short: bool) -> None:
        command = [sys.executable, "-m", "deploy.demo", "--home", str(mesh.home.root), "--folder", str(folder)]
        self.process = subprocess.Popen(
            [*command, "--short"] if short else command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.lines: list[str] = []
        self.began: dict[int, float] = {}
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = _STAGE.match(line)
            with self._changed:
                self.lines.append(line.rstrip())
                if found:
                    self.began[int(found[1])] = time.monotonic()
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, stage: int) -> bool:
        """Waits until a stage has begun; false: the job ended before."""
        with self._changed:
            self._changed.wait_for(lambda: stage in self.began or not self._reader.is_alive(), timeout=None)
            return stage in self.began

    def stage(self) -> int:
        """The one it is in; 0 before the first."""
        with self._changed:
            return max(self.began, default=0)

    def ended(self, seconds: float) -> bool:
        """Waits at most so long for its end."""
        self._reader.join(seconds)
        return not self._reader.is_alive()


def run(mesh: Mesh, folder: Path, *, short: bool, plan: Plan, undisturbed: Sequence[float], limit: float) -> Outcome:
    """Runs the main job to its end and does to the mesh what the plan says.

    Args:
        mesh: on which it runs.
        folder: for its corpus and summary.
        short: whether it is the short job.
        plan: what to do when.
        undisturbed: seconds of each stage when nobody disturbs it.
        limit: seconds in which the job must end.
    Raises:
        AssertionError: it failed, or did not end in time.
    """
    began = time.monotonic()
    watched = _Watched(mesh, folder, short)
    done: dict[str, str] = {}
    missed: list[str] = []

    def in_time(injury: Injury) -> Callable[[], bool]:
        return lambda: (
            watched.stage() <= injury.stages[1] and not watched.ended(0.0) and time.monotonic() - began < limit
        )

    try:
        for moment, injury in plan:
            if not watched.wait_for(moment.stage):
                missed.append(injury.name)
                continue
            at = watched.began[moment.stage] + moment.share * undisturbed[moment.stage - 1]
            if watched.ended(max(0.0, at - time.monotonic())):
                missed.append(injury.name)
                continue
            try:
                what = done[injury.name] = injury.harm(mesh, in_time(injury))
            except NobodyThere:
                missed.append(injury.name)
                what = "nobody there"
            print(f"{time.monotonic() - began:6.1f} s, stage {watched.stage()}: {injury.name}: {what}", flush=True)
        assert watched.ended(max(0.0, limit - (time.monotonic() - began))), _said(watched, f"not done in {limit:.0f} s")
        assert watched.process.wait(30) == 0, _said(watched, "it failed")
    finally:
        watched.process.kill()
        watched.process.wait()
    print(f"the job took {time.monotonic() - began:.0f} s", flush=True)
    summary = json.loads((folder / "summary.json").read_text())
    seconds = [value for name, value in summary["seconds"].items() if name != "all"]
    return Outcome(summary, seconds, done, missed)


def _said(watched: _Watched, what: str) -> str:
    return f"{what}:\n" + "\n".join(watched.lines[-60:])
