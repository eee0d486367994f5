"""Rows into a stream, from a file or from whatever writes lines of JSON into a pipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from argosy.cli import json_lines, session

_STREAM = "orgs/*/datasets/*/streams/*"
_PATIENCE = 300.0

stream = typer.Typer(help="Rows that keep coming, into versions of a dataset.", no_args_is_help=True)


@stream.command()
def send(
    name: Annotated[str, typer.Argument(help="DATASET/STREAM.")],
    file: Annotated[Path, typer.Argument(dir_okay=False, help="JSONL: a row a line; `-` reads standard input.")],
    batch: Annotated[int, typer.Option(min=1, max=json_lines.BATCH_ROWS, help="Rows of a call.")] = 1000,
) -> None:
    """Send rows. A call that breaks off is repeated, and its rows are taken once."""
    full, sent = session.full_name(name, _STREAM), 0
    with session.session(_PATIENCE) as client:
        for rows in json_lines.batches(json_lines.read(file), batch):
            client.dataset.append_stream_rows(name=full, rows=rows)
            sent += len(rows)
            session.errors_console.print(f"{sent:,} rows sent", end="\r")
    session.console.print(f"{sent:,} rows sent")


def mount(app: typer.Typer) -> dict[str, typer.Typer]:
    """Adds the commands; gives them by noun."""
    app.add_typer(stream, name="dataset-stream", rich_help_panel="The main job")
    return {"dataset-stream": stream}
