"""What the platform saw of the main job: traces, log lines and figures, read back from aiops."""

from __future__ import annotations

import time
from typing import Any

from argosy.cli.talk import table_of, tree_of
from argosy.client import Client, NotFound

from deploy.demo.access import ORG
from deploy.demo.screen import Screen

# Exporters send in batches every few seconds.
_PATIENCE = 40.0
_LINES_PATIENCE = 10.0


def trace(
    client: Client, screen: Screen, name: str, trace_id: str, services: set[str], speakers: set[str]
) -> dict[str, Any]:
    """Waits for a trace until all services are in it, shows it and its log lines.

    Args:
        name: for people.
        services: that must appear.
        speakers: whose log lines are waited for.
    Returns:
        what the summary keeps; `missing` holds services that did not appear in time.
    """
    found = _wait(client, trace_id, services)
    logs = _lines(client, trace_id, speakers)
    spans = list(found.spans) if found else []
    missing = sorted(services - set(found.services)) if found else sorted(services)
    screen.say(f"the trace of the {name.replace('_', ' ')}, with {len(logs)} log lines:")
    if found:
        screen.console.print(tree_of(found, limit=16))
    for line in logs[:4]:
        screen.tell(f"  {line.service:<10} {line.severity:<8} {line.body[:90]}")
    return {
        "trace_id": trace_id,
        "spans": len(spans),
        "services": list(found.services) if found else [],
        "missing": missing,
        "ray_actors": sorted({span.attributes["ray.actor_id"] for span in spans if "ray.actor_id" in span.attributes}),
        "log_lines": len(logs),
        "duration_seconds": found.duration_seconds if found else 0.0,
    }


def _wait(client: Client, trace_id: str, services: set[str]) -> Any:
    deadline = time.monotonic() + _PATIENCE
    found = None
    while time.monotonic() < deadline:
        try:
            found = client.aiops.get_trace(name=f"{ORG}/traces/{trace_id}")
        except NotFound:
            found = None
        if found and services <= set(found.services):
            return found
        time.sleep(1.0)
    return found


def _lines(client: Client, trace_id: str, speakers: set[str]) -> list[Any]:
    deadline = time.monotonic() + _LINES_PATIENCE
    while True:
        logs = list(client.aiops.list_logs(parent=ORG, trace_id=trace_id, page_size=100).logs)
        if speakers <= {line.service for line in logs} or time.monotonic() > deadline:
            return logs
        time.sleep(0.5)


def services(admin: Client, screen: Screen) -> dict[str, dict[str, float]]:
    """QPS, error rate, P50 and P99 of every service, over all organizations."""
    found = admin.aiops.list_service_stats(parent="orgs/system", page_size=100).services
    screen.console.print(table_of(found))
    return {
        item.service: {
            "requests": item.requests,
            "qps": item.queries_per_second,
            "error_rate": item.error_rate,
            "p50_seconds": item.p50_seconds,
            "p99_seconds": item.p99_seconds,
        }
        for item in found
    }
