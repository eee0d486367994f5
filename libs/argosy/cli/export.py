"""Files that come to this machine: exports of versions, and the files of single rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from argosy.cli import session
from argosy.cli.live import watch
from argosy.cli.options import PATIENCE, JsonOption, newest
from argosy.client import Client, contract
from google.protobuf.json_format import MessageToDict
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

_ROW = re.compile("[0-9a-f]{64}")


def export_version(
    version: Annotated[str, typer.Argument(help="DATASET/VERSION, or DATASET for its newest one.")],
    format: Annotated[
        str,
        typer.Option(
            help="jsonl, json, csv, tsv, parquet, xlsx, text, datasets (a folder for load_dataset), openai, alpaca, "
            "sharegpt, dpo, dpo-conversational, coco, label-studio, yolo, voc."
        ),
    ] = "jsonl",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File, or folder if there are several; else named for you.")
    ] = None,
    compression: Annotated[str, typer.Option(help="gzip or zstd.")] = "",
    text_column: Annotated[str, typer.Option(help="Of the format text.")] = "",
    source: Annotated[bool, typer.Option("--source", help="Add where each row came from.")] = False,
    split: Annotated[
        list[str] | None,
        typer.Option(help="Of the format datasets: NAME=DATASET/VERSION, a further split; can be given again."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a version to files on this machine. What broke goes on where it stood when the command is given again."""
    with session.session(PATIENCE) as client:
        _require_free(output, force)
        console = session.errors_console if as_json else session.console
        name = newest(client, version)
        others = [dict(zip(("split", "version"), _split(client, given), strict=True)) for given in split or []]
        started = client.dataset.export_version(
            name=name,
            format=format,
            compression=compression,
            text_column=text_column,
            with_source=source,
            other_splits=others,
        )
        done = watch(client, started.name, console)
        made = client.dataset.get_version_export(name=MessageToDict(done.result)["export"])
        targets = _targets(made, output)
        for target in targets.values():
            _require_free(target, force)
        _fetch(client, made, targets)
        if as_json:
            session.show(made, as_json)
            return
        _losses(made.report)
        for target in targets.values():
            session.console.print(f"{target}", soft_wrap=True)


def fetch_media(
    version: Annotated[str, typer.Argument(help="DATASET/VERSION, or DATASET for its newest one.")],
    row: Annotated[str, typer.Argument(help="Id of the row: 64 digits, as in lists of rows and in subjects of work.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File.")],
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Fetch the image, the sound or the film of a row. What broke goes on when the command is given again."""
    with session.session(PATIENCE) as client:
        _require_free(output, force)
        if not _ROW.fullmatch(row):
            raise session.Misuse(f"{row!r} is no id of a row: those have 64 digits of 0-9 and a-f")
        asked = {"name": f"{newest(client, version)}/rows/{row}"}
        # Of one byte, for what the first part says about the file.
        about = next(client.dataset.download_row_media(**asked, length=1))
        method = contract.areas()["dataset"]["download_row_media"]
        with _bar() as bar:
            shown = bar.add_task("download", total=about.size)
            client.download(
                method,
                asked,
                output,
                size=about.size,
                sha256=about.sha256,
                progress=lambda done, _total: bar.update(shown, completed=done),
            )
        session.console.print(f"{output}: {about.content_type or 'a file'}, {about.size:,} bytes", soft_wrap=True)


def _bar() -> Progress:
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=session.errors_console, transient=True)


def _split(client: Client, given: str) -> tuple[str, str]:
    name, sign, version = given.partition("=")
    if not sign:
        raise session.Misuse(f"--split {given}: write NAME=DATASET/VERSION")
    return name, newest(client, version)


def _require_free(target: Path | None, force: bool) -> None:
    if target is not None and target.is_file() and not force:
        raise session.Misuse(f"{target} is there already; --force writes over it")


def _targets(made: Any, output: Path | None) -> dict[str, Path]:
    """Where each file of an export goes. Paths come from the platform, and stay below the folder all the same."""
    if len(made.files) == 1:
        path = made.files[0].path
        whole = output is not None and not output.is_dir()
        return {path: output if whole and output is not None else (output or Path()) / Path(path).name}
    folder = output or Path("-".join(made.name.split("/")[3:6:2]))
    targets = {file.path: folder / file.path for file in made.files}
    for target in targets.values():
        if not target.resolve().is_relative_to(folder.resolve()):
            raise session.Misuse(f"{target} would lie outside {folder}")
    return targets


def _fetch(client: Client, made: Any, targets: dict[str, Path]) -> None:
    """Downloads the files of an export under one bar."""
    method = contract.areas()["dataset"]["download_version_export"]
    with _bar() as bar:
        row = bar.add_task("download", total=sum(file.size for file in made.files))
        before = 0
        for file in made.files:
            client.download(
                method,
                {"name": made.name, "path": file.path},
                targets[file.path],
                size=file.size,
                sha256=file.sha256,
                progress=lambda done, _total, before=before: bar.update(row, completed=before + done),
            )
            before += file.size


def _losses(report: Any) -> None:
    """What a format could not say."""
    session.console.print(f"{report.rows_out:,} of {report.rows_in:,} rows")
    for note in report.notes:
        session.console.print(f"  {escape(note)}")
    for loss in report.losses:
        what = [
            f"{count:,} {word}" for count, word in ((loss.left_out, "left out"), (loss.changed, "changed")) if count
        ]
        session.console.print(f"  {', '.join(what)}: {escape(loss.reason)} (row {loss.row_ids[0][:12]}, ...)")
