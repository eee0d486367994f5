"""Reports of datasets for people: what an import or a recipe did, and how sure it is about near-duplicates."""

from __future__ import annotations

from typing import Any

from argosy.cli import session
from argosy.cli.options import follow_task
from argosy.client import Client
from google.protobuf.json_format import MessageToDict
from rich.markup import escape
from rich.table import Table


def follow_to_report(client: Client, started: Any, follow: bool, as_json: bool) -> None:
    """Shows a task, and when it has ended the report of the version that it made, whatever others made since."""
    done = follow_task(client, started, follow, as_json)
    if follow and not as_json:
        made = client.dataset.get_dataset_version(name=MessageToDict(done.result)["version"])
        show_report(session.short_name(made.name), made.report)


def show_report(title: str, report: Any) -> None:
    """What an import or a cleaning did."""
    table = Table(title=f"{title}: {report.rows_in:,} rows in, {report.rows_out:,} out")
    for column in ("rule", "dropped", "changed", "an example"):
        table.add_column(column)
    for rule in report.rules:
        name = f"{rule.rule}\n[dim]sha256 {rule.code_digest[:12]}[/]" if rule.code_digest else rule.rule
        table.add_row(name, f"{rule.dropped:,}", f"{rule.changed:,}", escape(_example(rule)))
    if report.line_error_count:
        lines = ", ".join(str(error.line) for error in report.line_errors[:5])
        first = report.line_errors[0].error
        table.add_row("cannot be read", f"{report.line_error_count:,}", "", escape(f"line {lines}; {first}"))
    session.console.print(table)
    for rule in report.rules:
        for fitted in rule.fitted:
            figures = ", ".join(f"{name} {value:.6g}" for name, value in sorted(fitted.figures.items()))
            mode = f"mode {fitted.mode}, " if fitted.mode else ""
            session.console.print(
                f"{rule.rule}, {escape(fitted.column)}: {fitted.values:,} values, {fitted.missing:,} missing; "
                f"{escape(mode)}{figures}"
            )
    show_recall(report.near_duplicates)


def show_recall(near: Any) -> None:
    """How sure it is that near-duplicates were found, where that was measured."""
    if near.planted_pairs:
        found, planted = near.found_pairs, near.planted_pairs
        curve = "  ".join(f"{at.similarity:g}: {at.probability:.3f}" for at in near.curve if 0.5 <= at.similarity < 1)
        session.console.print(
            f"near-duplicates from {near.threshold:g}: {found} of {planted} planted copies found "
            f"({near.expected_recall:.4f} expected); by similarity {curve}"
        )


def _example(rule: Any) -> str:
    """The first row that a rule dropped, with its reason, or changed."""
    if rule.examples:
        return f"{' '.join(rule.examples[0].text.split())[:50]!r}: {rule.examples[0].reason}"
    if rule.changed_examples:
        change = rule.changed_examples[0]
        return f"{change.before[:40]!r} became {change.after[:40]!r}"
    return ""
