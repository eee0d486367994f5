"""Curves of runs as TensorBoard's event files, and event files as an outside run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from argosy import event_files
from argosy.cli import session
from argosy.client import Client
from argosy.training.v1 import training_pb2

_RUN = "orgs/*/trainings/*/runs/*"
_PATIENCE = 300.0
# TensorBoard looks for new points every thirty seconds.
_BEAT_SECONDS = 5.0
_PAGE = 25_000
_PART_BYTES = 8 * 1024 * 1024
_ENDED = ("STATE_SUCCEEDED", "STATE_FAILED", "STATE_CANCELLED")


class Writer:
    """Writes what is new of one run behind its event file.

    Args:
        run: its name.
        file: open for writing, empty.
    """

    def __init__(self, client: Client, run: Any, file: IO[bytes]) -> None:
        self._client = client
        self._run = run.name
        self._file = file
        # By metric: how many points were reported, and the first step that is not written yet.
        self._seen: dict[str, tuple[int, int]] = {}
        file.write(event_files.opening(run.create_time.ToMicroseconds()))

    def write(self) -> int:
        """Writes new points; how many there were."""
        methods, count = self._client.training, 0
        for key in self._pages(methods.list_run_metric_keys, "metric_keys", parent=self._run, page_size=1000):
            reported, step = self._seen.get(key.key, (0, 0))
            if key.point_count == reported:
                continue
            for point in self._pages(
                methods.list_run_points, "run_points", parent=self._run, key=key.key, first_step=step, page_size=_PAGE
            ):
                self._file.write(event_files.scalar(key.key, point.step, point.time, point.value))
                step, count = point.step + 1, count + 1
            self._seen[key.key] = (key.point_count, step)
        self._file.flush()
        return count

    def _pages(self, method: Any, field: str, **request: Any) -> Iterator[Any]:
        token = ""
        while True:
            page = method(**request, page_token=token)
            yield from getattr(page, field)
            token = page.next_page_token
            if not token:
                return


def tensorboard(
    runs: Annotated[list[str], typer.Argument(help="TRAINING/RUN, several to see them beside one another.")],
    logdir: Annotated[Path, typer.Option(file_okay=False, help="Folder that `tensorboard --logdir` is given.")],
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Go on until all runs have ended.")] = True,
) -> None:
    """Write the curves of runs as event files that TensorBoard shows, while they run."""
    with session.session(_PATIENCE) as client, ExitStack() as files:
        names = [session.full_name(run, _RUN) for run in runs]
        writers: list[Writer] = []
        for name in names:
            run = client.training.get_training_run(name=name)
            folder = logdir / session.short_name(name)
            folder.mkdir(parents=True, exist_ok=True)
            # One name a run: who starts again writes the same file anew.
            path = folder / f"events.out.tfevents.{run.create_time.seconds}.argosy"
            writers.append(Writer(client, run, files.enter_context(path.open("wb"))))
        session.console.print(f"tensorboard --logdir {logdir}")
        total = 0
        while True:
            # Asked before the points: what ends meanwhile is looked at once more.
            states = [client.training.get_training_run(name=name).state for name in names]
            running = sum(training_pb2.TrainingRun.State.Name(state) not in _ENDED for state in states)
            total += sum(writer.write() for writer in writers)
            session.errors_console.print(f"{total:,} points, {running} of {len(names)} runs go on", end="\r")
            if not running or not follow:
                break
            time.sleep(_BEAT_SECONDS)
        session.console.print(f"{total:,} points written")


def import_events(
    run: Annotated[str, typer.Argument(help="TRAINING/RUN: an outside run.")],
    source: Annotated[Path, typer.Argument(exists=True, help="An event file, or a folder of them.")],
) -> None:
    """Take the scalars of TensorBoard's event files into an outside run. What is taken twice is there once."""
    with session.session(_PATIENCE) as client:
        name = session.full_name(run, _RUN)
        files = [source] if source.is_file() else sorted(source.rglob("*tfevents*"))
        if not files:
            raise session.Misuse(f"there is no file *tfevents* in {source}")
        taken = skipped = faults = 0
        for file in files:
            for answer in _parts(client, name, file):
                taken, skipped, faults = (
                    taken + answer.point_count,
                    skipped + answer.skipped_count,
                    faults + answer.fault_count,
                )
                for fault in answer.faults:
                    session.errors_console.print(f"{file} at byte {fault.offset}: {fault.reason}")
                session.errors_console.print(f"{taken:,} points", end="\r")
        session.console.print(f"{taken:,} points taken, {skipped:,} values are no scalars, {faults:,} faults")


def _parts(client: Client, name: str, path: Path) -> Iterator[Any]:
    """Sends a file part by part."""
    size, offset = path.stat().st_size, 0
    with path.open("rb") as file:
        while offset < size:
            file.seek(offset)
            data = file.read(_PART_BYTES)
            if not data:
                return
            last = offset + len(data) >= size
            answer = client.training.import_event_file(name=name, data=data, offset=offset, last=last)
            yield answer
            offset = answer.next_offset
