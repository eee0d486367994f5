"""What commands along the main job share: their options, and how they name versions, upload files and follow tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from argosy.cli import session
from argosy.cli.live import watch
from argosy.client import Client
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
WatchOption = Annotated[bool, typer.Option("--watch/--no-watch", "-w", help="Follow the work to its end.")]

# A task may outlive restarts of every service; its watcher waits as long.
PATIENCE = 300.0
DATASET = "orgs/*/datasets/*"
_VERSION = "orgs/*/datasets/*/versions/*"


def follow_task(client: Client, started: Any, follow: bool, as_json: bool) -> Any:
    """Shows a task, at once or when it has ended."""
    if follow:
        started = watch(client, started.name, session.errors_console if as_json else session.console)
    session.show(started, as_json)
    return started


def upload_file(client: Client, file: Path) -> str:
    """Uploads with a bar, or goes on where an upload of this file broke; the name of the upload."""
    if not file.stat().st_size:
        raise session.Misuse(f"{file} is empty")
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=session.errors_console, transient=True) as bar:
        row = bar.add_task("upload", total=file.stat().st_size)
        state = client.upload(
            session.organization(), file, progress=lambda done, _total: bar.update(row, completed=done)
        )
    return str(state.name)


def newest(client: Client, given: str) -> str:
    """A version's name; of a dataset alone, its newest version."""
    if "/versions/" in given or (not given.startswith("orgs/") and "/" in given):
        return session.full_name(given, _VERSION)
    found = client.dataset.get_dataset(name=session.full_name(given, DATASET)).latest_version
    if not found:
        raise session.Misuse(f"{given} has no version yet: `argosy dataset import` makes one")
    return str(found)
