"""Where in a Ray cluster this code runs, for spans."""

from __future__ import annotations

import sys


def ray_attributes() -> dict[str, str]:
    """`ray.job_id`, `ray.node_id` and, inside an actor, `ray.actor_id`; empty outside Ray."""
    # Code that runs in a Ray worker never has to import it first.
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return {}
    context = ray.get_runtime_context()
    found = {"ray.job_id": context.get_job_id(), "ray.node_id": context.get_node_id()}
    actor = context.get_actor_id()
    return {**found, "ray.actor_id": actor} if actor else found
