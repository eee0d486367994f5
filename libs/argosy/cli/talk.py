"""Asking a model, and asking the platform what happened: `argosy chat`, `argosy trace show`, `argosy stats`."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import httpx
import typer
from argosy.cli import session
from argosy.client import contract
from argosy.client.errors import from_answer, no_answer
from argosy.client.settings import headers
from rich.table import Table
from rich.tree import Tree

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

trace = typer.Typer(help="Traces.", no_args_is_help=True)


def chat(
    text: Annotated[str, typer.Argument(help="What to ask.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Deployment, or app:ID[@version].")],
    max_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Ask a deployment or an application, and print the answer as it comes."""
    with session.session() as client:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        answer, usage, first, request_id = "", dict[str, int](), 0.0, ""
        began = time.monotonic()
        try:
            with httpx.stream(
                "POST",
                f"{client.url}/v1/chat/completions",
                json=body,
                headers=headers(client.api_key),
                timeout=120,
                trust_env=False,
            ) as response:
                request_id = response.headers.get("x-request-id", "")
                if not response.is_success:
                    raise from_answer(response.status_code, response.read(), request_id)
                for line in response.iter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    piece = json.loads(line[6:])
                    if "error" in piece:
                        raise from_answer(502, line[6:].encode(), request_id)
                    usage = piece.get("usage") or usage
                    for choice in piece.get("choices", []):
                        part = choice.get("delta", {}).get("content") or ""
                        first = first or (time.monotonic() - began if part else 0.0)
                        answer += part
                        if not as_json:
                            print(part, end="", flush=True)
        except httpx.HTTPError as error:
            raise no_answer(client.url, error) from error
        if as_json:
            session.show({"answer": answer, "usage": usage, "first_token_seconds": first, "trace": request_id}, True)
        else:
            print()
            session.errors_console.print(f"[dim]first token after {first:.3f} s, trace {request_id}[/dim]")


@trace.command("show")
def show_trace(
    trace_id: Annotated[str, typer.Argument(help="32 hexadecimal digits.")], as_json: JsonOption = False
) -> None:
    """Show a trace across the services as a tree."""
    with session.session() as client:
        found = client.aiops.get_trace(name=f"{session.organization()}/traces/{trace_id}")
        if as_json:
            session.show(found, True)
        else:
            session.console.print(tree_of(found))


@trace.command("list")
def list_traces(
    service: Annotated[str, typer.Option()] = "",
    errors: Annotated[bool, typer.Option("--errors", help="Only traces with an error.")] = False,
    limit: Annotated[int, typer.Option(min=1)] = 20,
    as_json: JsonOption = False,
) -> None:
    """List traces, newest first."""
    with session.session() as client:
        method = contract.areas()["aiops"]["list_traces"]
        wanted = {
            "parent": session.organization(),
            "service": service,
            "errors_only": errors,
            "page_size": min(limit, 1000),
        }
        columns = ("trace_id", "root_service", "root_operation", "start_time", "duration_seconds", "span_count")
        session.show_list(client.pages(method, wanted, limit), as_json, columns)


def tree_of(found: Any, limit: int = 60) -> Tree:
    """A trace as a tree of spans, each with its service and milliseconds.

    Args:
        limit: of spans that are drawn.
    """
    root = Tree(
        f"[bold]trace[/bold] {len(found.spans)} spans, {', '.join(found.services)}, {found.duration_seconds:.3f} s"
    )
    known = {span.span_id for span in found.spans}
    branches: dict[str, Tree] = {}
    waiting = list(found.spans)[:limit]
    while waiting:
        late: list[Any] = []
        for span in waiting:
            parent = span.parent_span_id
            if parent in branches or parent not in known or not parent:
                colour = "red" if span.status == "ERROR" else "cyan"
                text = (
                    f"[{colour}]{span.service}[/{colour}] {span.name} [dim]{span.duration_seconds * 1000:.1f} ms[/dim]"
                )
                actor = span.attributes.get("ray.actor_id")
                text += f" [dim]in Ray actor {actor[:8]}[/dim]" if actor else ""
                branches[span.span_id] = branches.get(parent, root).add(text)
            else:
                late.append(span)
        if len(late) == len(waiting):
            break
        waiting = late
    return root


def query_logs(
    text: Annotated[str, typer.Argument(help="Part of the line; else all.")] = "",
    service: Annotated[str, typer.Option()] = "",
    trace_id: Annotated[str, typer.Option("--trace")] = "",
    severity: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING, ERROR: this and worse.")] = "",
    limit: Annotated[int, typer.Option(min=1)] = 50,
    as_json: JsonOption = False,
) -> None:
    """Search the log lines of all services, newest first."""
    with session.session() as client:
        wanted = {
            "parent": session.organization(),
            "text": text,
            "service": service,
            "trace_id": trace_id,
            "min_severity": severity.upper(),
            "page_size": min(limit, 1000),
        }
        method = contract.areas()["aiops"]["list_logs"]
        found = client.pages(method, wanted, limit)
        session.show_list(found, as_json, ("time", "service", "severity", "body", "trace_id"))


def stats(as_json: JsonOption = False) -> None:
    """Show calls, errors and latency of every service in the last hour."""
    with session.session() as client:
        found = client.aiops.list_service_stats(parent=session.organization()).services
        if as_json:
            session.show_list(found, True)
        else:
            session.console.print(table_of(found))


def table_of(found: Any) -> Table:
    """Service statistics as a table."""
    table = Table("service", "calls", "QPS", "errors", "P50 ms", "P99 ms")
    for service in found:
        table.add_row(
            service.service,
            f"{service.requests:,}",
            f"{service.queries_per_second:.2f}",
            f"{service.error_rate:.1%}",
            f"{service.p50_seconds * 1000:.1f}",
            f"{service.p99_seconds * 1000:.1f}",
        )
    return table


def mount(app: typer.Typer) -> dict[str, typer.Typer]:
    """Adds the commands; gives them by noun."""
    app.command(rich_help_panel="The main job")(chat)
    app.add_typer(trace, name="trace", rich_help_panel="What happened")
    app.command(rich_help_panel="What happened")(stats)
    return {"trace": trace}
