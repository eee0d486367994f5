"""The pre-flight of a training, with the lengths of its rows as a picture."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from argosy.cli import session
from argosy.cli.options import JsonOption
from rich.markup import escape
from rich.table import Table

_TRAINING = "orgs/*/trainings/*"
_WIDTH = 40


def bars(counts: list[int]) -> list[str]:
    """A bar for each count, the longest for the most rows; what is not empty shows."""
    most = max(counts, default=0) or 1
    return ["█" * max(round(_WIDTH * count / most), count > 0) for count in counts]


def preflight(
    training: Annotated[str, typer.Argument(help="TRAINING.")],
    as_json: JsonOption = False,
) -> None:
    """Look at what a run would do, need and refuse, before anything is spent."""
    with session.session() as client:
        found: Any = client.training.preflight_training(name=session.full_name(training, _TRAINING))
    if as_json:
        session.show(found, True)
        return
    console = session.console
    for finding in found.findings:
        mark = "[red]stops it[/]" if finding.blocking else "[yellow]warning[/]"
        console.print(f"{mark} {finding.check}: {escape(finding.message)}")
    if not found.findings:
        console.print("nothing found")
    about = f", about {found.seconds:,.0f} s" if found.seconds else ""
    trained, every = found.trained_parameter_count, found.parameter_count
    parameters = f", {trained:,} of {every:,} parameters learn" if every else ""
    console.print(f"{found.memory_bytes / 2**30:.2f} GiB of memory{about}{parameters}")
    sample = found.sample
    for lengths in sample.lengths:
        guess = ", guessed from characters" if lengths.estimated else ""
        console.print(f"\n{lengths.phase}: tokens of {sample.rows:,} of {sample.row_count:,} rows{guess}")
        table = Table(box=None, pad_edge=False, show_header=False)
        counts = [bucket.row_count for bucket in lengths.buckets]
        for bucket, bar in zip(lengths.buckets, bars(counts), strict=True):
            table.add_row(f"to {bucket.most_tokens:,}", bar, f"{bucket.row_count:,}")
        console.print(table)
        console.print(
            f"mean {lengths.mean:.0f}, 95 % up to {lengths.p95:,}, longest {lengths.longest:,}; "
            f"{lengths.cut_share:.1%} are cut at {lengths.context_length:,}"
        )
    for fault in sample.faults:
        version = f" of the {fault.version}" if fault.version == "validation_version" else ""
        console.print(f"row {fault.row}{version}, {escape(fault.column)}: {escape(fault.problem)} ({fault.phase})")
