"""Models from outside: their files go up, and a task makes a version of them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from argosy.cli import session
from argosy.cli.options import PATIENCE, JsonOption, WatchOption, follow_task, upload_file
from argosy.client.errors import Conflict

_PROJECT = "orgs/*/modelProjects/*"
# What a model in the layout of Hugging Face is made of; weights in other formats are not taken and stay here.
_ENDINGS = (".safetensors", ".json", ".jinja", ".model", ".txt", ".md")
_NAMES = ("LICENSE", "NOTICE")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def import_model(
    source: Annotated[str, typer.Argument(help="A folder, or an archive (zip, tar); else --folder or --hub.")] = "",
    project: Annotated[str, typer.Option("--project", "-p", help="Model project; made if there is none.")] = "",
    folder: Annotated[str, typer.Option(help="A folder on the platform's machines that its operator opened.")] = "",
    hub: Annotated[str, typer.Option(help="A model of the hub that the operator turned on: Qwen/Qwen2.5-0.5B")] = "",
    revision: Annotated[str, typer.Option(help="Of the hub's model: branch, tag or commit.")] = "",
    follow: WatchOption = True,
    as_json: JsonOption = False,
) -> None:
    """Take a model from outside into a new version: safetensors in the layout of Hugging Face, checked, nothing run."""
    with session.session(PATIENCE) as client:
        if sum(map(bool, (source, folder, hub))) != 1:
            raise session.Misuse("give a folder or a file, or --folder, or --hub")
        if not project:
            raise session.Misuse("give --project")
        files = _files(Path(source)) if source else []
        full = session.full_name(project, _PROJECT)
        with suppress(Conflict):
            client.training.create_model_project(
                parent=session.organization(), model_project_id=full.split("/")[-1], model_project={}
            )
        given: dict[str, Any] = {"folder": folder} if folder else {"hub": {"id": hub, "revision": revision}}
        if files:
            given = {"uploads": [upload_file(client, file) for file in files]}
        started = client.training.import_model(parent=full, **given)
        follow_task(client, started, follow, as_json)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise session.Misuse(f"there is no file or folder {source}")
    found = sorted(path for path in source.iterdir() if path.name.endswith(_ENDINGS) or path.name in _NAMES)
    if "config.json" not in [path.name for path in found]:
        raise session.Misuse(f"{source} is no model: it has no config.json")
    if not any(path.name.endswith(".safetensors") for path in found):
        pickled = next((path.name for path in sorted(source.iterdir()) if path.name.endswith(_PICKLES)), "")
        why = f": {pickled} can run code when it is read, and is not taken" if pickled else ""
        raise session.Misuse(
            f"{source} has no weights as safetensors{why}; save_pretrained of transformers writes them so"
        )
    return [path for path in found if path.is_file()]
