"""Runs that Argosy did not start: what their senders may say of them, and within which limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from libs.common.domain import DomainError, invalid
from services.training.domain.runs import RunState
from services.training.domain.trainings import Training, TrainingRun

# Parameters, and tags. They lie in one row, which every change writes anew; and a run is one message with all of them,
# the parameters twice, and with its metrics: 9 MB at most, where gRPC takes 9 MiB.
MOST_ENTRIES, MOST_BYTES = 2_000, 1_000_000
# A file system allows no longer ones, and the whole path is part of a key of the database.
_MOST_PATH_BYTES, _MOST_PART_BYTES = 1_000, 255
ENDED = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})


@dataclass
class RunRecord:
    """What an outside run has beside a run of ours.

    Attributes:
        display_name: as its sender calls it.
        tags: texts of its sender by name.
        start_time, end_time: by the sender's clock; no end while it runs.
    """

    run_uid: str
    org: str
    display_name: str
    start_time: datetime
    tags: dict[str, str] = field(default_factory=dict[str, str])
    end_time: datetime | None = None

    def tag(self, given: Mapping[str, str], removed: list[str]) -> None:
        """Takes tags in; of each name the last text counts. Raises INVALID_FIELD above the limits."""
        tags = {**self.tags, **given}
        for name in removed:
            tags.pop(name, None)
        _require_room("tags", tags)
        self.tags = tags


def require_outside(training: Training) -> None:
    """Raises STATE_CONFLICT if the runs of a training are started by Argosy."""
    if not training.outside:
        message = f"The runs of {training.name} are started by Argosy; report to a training with `outside` set."
        raise DomainError("STATE_CONFLICT", message, name=training.name, state="started here", wanted="outside")


def require_outside_run(run: TrainingRun) -> None:
    """Raises STATE_CONFLICT if Argosy started a run: what it did is told by nobody else."""
    if not run.outside:
        message = f"{run.name} was started by Argosy and can only be read here."
        raise DomainError("STATE_CONFLICT", message, name=run.name, state="started by Argosy", wanted="outside")


def give_parameters(run: TrainingRun, given: Mapping[str, str]) -> None:
    """Takes parameters of an outside run in. Raises INVALID_FIELD for one that has another value already, or above the
    limits.
    """
    for name, value in given.items():
        known = run.parameters.get(name, value)
        if known != value:
            shown, wanted = known[:100], value[:100]
            raise invalid(f"parameters.{name}", f"is {shown!r} and cannot become {wanted!r}; parameters do not change")
    parameters = {**run.parameters, **given}
    _require_room("parameters", parameters)
    run.parameters = parameters


def _require_room(what: str, texts: Mapping[str, str]) -> None:
    if len(texts) > MOST_ENTRIES:
        raise invalid(what, f"a run has at most {MOST_ENTRIES:,}")
    size = sum(len(name.encode()) + len(text.encode()) for name, text in texts.items())
    if size > MOST_BYTES:
        raise invalid(what, f"those of the run have {size:,} bytes together; at most {MOST_BYTES:,}")


def check_path(path: str) -> None:
    """Raises INVALID_FIELD unless a path is relative and stays below where it begins."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise invalid("path", f"{path[:200]!r} is not relative, or has an empty part, `.` or `..`")
    if "\\" in path or not path.isprintable():
        raise invalid("path", f"{path[:200]!r} has a backslash or a character that cannot be printed")
    if len(path.encode()) > _MOST_PATH_BYTES or any(len(part.encode()) > _MOST_PART_BYTES for part in parts):
        raise invalid("path", f"has more than {_MOST_PATH_BYTES} bytes, or a part of more than {_MOST_PART_BYTES}")
