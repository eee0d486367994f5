"""Agreement and reliability in a project of human work."""

from __future__ import annotations

import json
from typing import Any

from libs.compute.context import EngineContext
from services.dataset.engines.agreement import summarise
from services.dataset.engines.answers import BOXES
from services.dataset.engines.detection.acceptance import report_proposals

Json = dict[str, Any]


def run(ctx: EngineContext) -> Json:
    """Judges the answers of one project.

    The spec names the blob `given` (JSON with `answers`, as `WorkAssignments.answers` gives them, and `proposed`, as
    `WorkItems.proposed` does) and its `grant`, the `fields` of the form, `price_micros` and `wanted_precision`. Gives
    `figures`, the fields of `argosy.dataset.v1.WorkReport`.
    """
    spec = ctx.spec
    given = json.loads(ctx.blobs_read(spec["grant"]).read_sync(spec["given"]))
    answers = given["answers"]
    ctx.progress(0.1, f"{len(answers):,} answers", rows=len(answers))
    found = summarise(spec["fields"], answers, consensus=False)
    for worker in found["workers"]:
        worker["cost_micros"] = worker["answers"] * spec["price_micros"]
    proposals = [
        {"field": field["name"], **report_proposals(field["name"], given["proposed"], spec["wanted_precision"])}
        for field in spec["fields"]
        if field["kind"] == BOXES and given["proposed"]
    ]
    figures = {"fields": found["fields"], "workers": found["workers"], "proposals": proposals}
    return {"figures": _without_nones(figures), "answers": len(answers)}


def _without_nones(value: Any) -> Any:
    """JSON without its nulls: an undefined figure is a field that is not there."""
    if isinstance(value, dict):
        return {key: _without_nones(inner) for key, inner in value.items() if inner is not None}
    return [_without_nones(inner) for inner in value] if isinstance(value, list) else value
