"""What a run of AutoML found, in the terminal or as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from argosy.cli import session
from argosy.cli.options import JsonOption
from rich.table import Table

_RUN = "orgs/*/trainings/*/runs/*"


def leaderboard(
    run: Annotated[str, typer.Argument(help="TRAINING/RUN.")],
    svg: Annotated[Path | None, typer.Option(help="Write a picture here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the models that a run of AutoML tried, the best first."""
    with session.session() as client:
        name = session.full_name(run, _RUN)
        if svg is not None:
            svg.write_text(client.training.render_leaderboard(name=name).svg, encoding="utf-8")
            session.console.print(f"the picture is in {svg}")
            return
        board = client.training.get_leaderboard(name=name)
        if as_json:
            session.show(board, True)
            return
        session.console.print(f"{board.task}, because {board.task_reason}")
        for column in board.columns:
            if column.dropped:
                session.console.print(f"left out: {column.column!r} {column.dropped}")
        for warning in board.warnings:
            session.console.print(f"look at this: {warning}")
        table = Table(box=None, pad_edge=False)
        for title in ("", "model", board.metric, "95 %", "seconds", "bytes", "share"):
            table.add_column(title)
        for entry in board.entries:
            score, place = f"{entry.score:.4g}", f"{entry.low:.4g} to {entry.high:.4g}"
            if not entry.rank:
                score, place = "", entry.message
            share = f"{entry.weight:.0%}" if entry.weight else ""
            row = (f"{entry.fit_seconds:.2g}", f"{entry.size_bytes:,}", share)
            table.add_row(str(entry.rank or ""), f"{entry.family} ({entry.number})", score, place, *row)
        session.console.print(table)
        for figure in board.figures:
            session.console.print(
                f"held-out {figure.name} {figure.value:.4g}; best model alone {figure.best_single.value:.4g}, "
                f"trivial baseline {figure.baseline.value:.4g}"
            )
