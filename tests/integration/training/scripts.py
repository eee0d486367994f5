"""Scripts in their sandbox: how tests run one and hear what it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest

from libs.compute import script_sandbox
from libs.compute.process_usage import Usage
from libs.compute.script_sandbox import CODE, ScriptFailed, ScriptLimits, run_script

MIB = 1 << 20
LIMITS = ScriptLimits(seconds=20, memory=600 * MIB, disk=64 * MIB, threads=1)


class Heard:
    """What a script printed and said."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.messages: list[dict[str, Any]] = []
        self.usage: list[Usage] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def message(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    def used(self, usage: Usage) -> None:
        self.usage.append(usage)


def run(folder: Path, source: str, limits: ScriptLimits = LIMITS) -> Heard:
    """Runs a script; afterwards none of its processes is left."""
    (folder / CODE / "main.py").write_text(source)
    heard = Heard()
    try:
        run_script(folder, "main.py", limits, 7, 0, heard)
    finally:
        assert not left()
    return heard


def left() -> list[psutil.Process]:
    """Scripts that are still running, and what they started."""
    name = script_sandbox.CHILD.name
    children = psutil.Process().children(recursive=True)
    return [child for child in children if any(part.endswith(name) for part in child.cmdline())]


def failure(folder: Path, source: str, limits: ScriptLimits = LIMITS) -> str:
    """How a script fails."""
    with pytest.raises(ScriptFailed) as caught:
        run(folder, source, limits)
    return str(caught.value)
