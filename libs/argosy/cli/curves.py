"""Curves of runs, in the terminal or as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from argosy.cli import session
from argosy.cli.options import JsonOption
from rich.table import Table

_RUN = "orgs/*/trainings/*/runs/*"
_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 60


def line(values: Sequence[float]) -> str:
    """Values as a line of blocks; a cross where one is not finite."""
    finite = [value for value in values if math.isfinite(value)]
    low = min(finite, default=0.0)
    scale = (len(_BLOCKS) - 1) / ((max(finite, default=0.0) - low) or 1.0)
    return "".join(_BLOCKS[round((value - low) * scale)] if math.isfinite(value) else "×" for value in values)


def curves(
    runs: Annotated[list[str], typer.Argument(help="TRAINING/RUN, several to see them beside one another.")],
    keys: Annotated[list[str] | None, typer.Option("--key", "-k", help="Metric; else every loss.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write a picture here.")] = None,
    by_time: Annotated[bool, typer.Option("--time", help="Over time instead of steps.")] = False,
    logarithmic: Annotated[bool, typer.Option("--log", help="Values of the picture on a logarithmic scale.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the curves of runs."""
    with session.session() as client:
        names = [session.full_name(run, _RUN) for run in runs]
        axis = "CURVE_AXIS_TIME" if by_time else "CURVE_AXIS_STEP"
        parent = session.organization()
        if not keys:
            listed = client.training.list_run_metric_keys(parent=names[0], page_size=1000).metric_keys
            keys = [found.key for found in listed if found.key.rsplit(".", 1)[-1] == "loss"]
            if not keys:
                raise session.Misuse(f"{runs[0]} has no loss yet; name a metric with --key")
        if svg is not None:
            drawn = client.training.render_run_curves(
                parent=parent, runs=names, keys=keys, axis=axis, logarithmic=logarithmic
            )
            svg.write_text(drawn.svg, encoding="utf-8")
            session.console.print(f"the picture is in {svg}")
            return
        points = _WIDTH if not as_json else 1000
        found = client.training.get_run_curves(parent=parent, runs=names, keys=keys, axis=axis, max_points=points)
        if as_json:
            session.show(found, True)
            return
        table = Table(box=None, pad_edge=False)
        for column in ("metric", "run", "first", "", "last"):
            table.add_column(column)
        for curve in found.curves:
            first, last = curve.values[0], curve.values[-1]
            table.add_row(curve.key, session.short_name(curve.run), f"{first:.4g}", line(curve.values), f"{last:.4g}")
        session.console.print(table)
