"""Trainings as YAML files, and own code from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from argosy.cli import session
from argosy.cli.live import watch
from argosy.cli.options import PATIENCE, JsonOption
from argosy.client import Client

_TRAINING = "orgs/*/trainings/*"
_ALGORITHM = "orgs/*/algorithms/*"
_LEFT_OUT = ("__pycache__",)


def apply(
    file: Annotated[Path, typer.Option("--file", "-f", exists=True, dir_okay=False, help="YAML of a training.")],
    run: Annotated[bool, typer.Option("--run", help="Start a run, or the search that the file describes.")] = False,
    follow: Annotated[bool, typer.Option("--watch/--no-watch", "-w", help="Follow it to its end.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Make a training what a YAML file says; the same file again changes nothing."""
    with session.session(PATIENCE) as client:
        done = client.training.apply_training(parent=session.organization(), yaml=file.read_text(encoding="utf-8"))
        name = session.short_name(done.training.name)
        what = "created" if done.created else f"changed {', '.join(done.changed_fields) or 'nothing'}"
        session.errors_console.print(f"{name}: {what}")
        session.show(_started(client, done, follow, as_json) if run else done.training, as_json)


def _started(client: Client, done: Any, follow: bool, as_json: bool) -> Any:
    console = session.errors_console if as_json else session.console
    if done.HasField("search"):
        search = client.training.create_search(parent=session.organization(), search=done.search)
        if follow:
            watch(client, search.task, console, "search")
        return client.training.get_search(name=search.name)
    started = client.training.run_training(name=done.training.name)
    if follow:
        watch(client, started.task, console, "training")
    return client.training.get_training_run(name=started.name)


def export(name: Annotated[str, typer.Argument(help="Training.")]) -> None:
    """Print a training as YAML that `argosy training apply` takes."""
    with session.session() as client:
        print(client.training.export_training(name=session.full_name(name, _TRAINING)).yaml, end="")


def push(
    name: Annotated[str, typer.Argument(help="Algorithm.")],
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Files of a script or package.")],
    publish: Annotated[bool, typer.Option("--publish", help="Make it the next version.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make the draft of an algorithm what a folder holds. Refused where somebody else changes it meanwhile."""
    with session.session() as client:
        files = _texts(folder)
        draft_name = session.full_name(name, _ALGORITHM) + "/draft"
        draft = client.training.get_algorithm_draft(name=draft_name)
        for gone in sorted({file.path for file in draft.files} - files.keys()):
            draft = client.training.delete_algorithm_draft_file(name=draft_name, path=gone, etag=draft.etag)
        for path, content in files.items():
            draft = client.training.put_algorithm_draft_file(
                name=draft_name, path=path, content=content, etag=draft.etag
            )
        if publish:
            session.show(client.training.publish_algorithm_draft(name=draft_name, etag=draft.etag), as_json)
        else:
            session.show(draft, as_json)


def _texts(folder: Path) -> dict[str, str]:
    """Path to content of the files in a folder, but for what editors and interpreters leave there."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if not path.is_file() or any(part in _LEFT_OUT or part.startswith(".") for part in place.parts):
            continue
        try:
            found[place.as_posix()] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise session.Misuse(f"{place} is no text in UTF-8") from None
    return found
