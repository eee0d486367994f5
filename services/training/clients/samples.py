"""A sample of the rows of a version, looked at in a process of its own before anything is spent."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.training.clients.child import ask
from services.training.domain.lengths import Lengths
from services.training.domain.row_faults import RowFault
from services.training.domain.spec import TrainingSpec

_CHILD = "services.training.engines.sample_child"
# Enough for a share to be known within two points; some ten thousand tokens a second are counted.
_ROWS = 2000
_SECONDS = 5.0
# With the wait for a place. The process starts in one second, on a busy machine in several.
_MOST_SECONDS = 20.0
# Each takes a core.
_AT_ONCE = 2
# What the process needs of ours; it gets no secret.
_ENVIRONMENT = ("PATH", "HOME", "TMPDIR")


@dataclass(frozen=True)
class Sample:
    """What was seen.

    Attributes:
        rows: that were looked at.
        row_count: that the version has.
        seconds: that it took.
        lengths: of each phase that learns something of these rows.
        faults: rows at fault, those that a run ends at first.
        error: why there is none of this; empty: there is.
        stops: whether a run would end by that error too.
    """

    rows: int = 0
    row_count: int = 0
    seconds: float = 0.0
    lengths: Sequence[Lengths] = ()
    faults: Sequence[RowFault] = ()
    error: str = ""
    stops: bool = False


class Samples:
    """Starts these processes, a few at a time."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def look(
        self, spec: TrainingSpec, versions: Mapping[str, Mapping[str, str]], base: Mapping[str, str] | None
    ) -> Sample:
        """Lengths in tokens and rows at fault.

        Args:
            versions: `grant` and `manifest_digest` of the `dataset_version` and, if there is one, the
                `validation_version`.
            base: the same of the complete model to start from; None: from nothing.
        """
        request = {"spec": spec.to_json(), "versions": versions, "base": base, "rows": _ROWS, "seconds": _SECONDS}
        try:
            # Whoever waits too long for a place is told so: a run looks at its rows itself.
            async with asyncio.timeout(_MOST_SECONDS), self._places:
                found = await _answer(json.dumps(request).encode())
        except TimeoutError:
            return Sample(error=f"The sample was not looked at within {_MOST_SECONDS:g} seconds.")
        if "error" in found:
            return Sample(error=found["error"], stops=found.get("stops", False))
        lengths = [Lengths.from_json(each) for each in found.pop("lengths")]
        faults = [RowFault(**each) for each in found.pop("faults")]
        return Sample(lengths=lengths, faults=faults, **found)


async def _answer(request: bytes) -> dict[str, Any]:
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    try:
        found: dict[str, Any] = json.loads(
            await ask(_CHILD, request, {**environment, "TOKENIZERS_PARALLELISM": "false"})
        )
        return found
    except ValueError:
        return {"error": "The sample could not be looked at: its process ended."}
