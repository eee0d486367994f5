"""Where deployments are reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from libs.common.domain import Secrecy
from services.deploy.domain.deployment import Deployment
from services.deploy.domain.replica import Replica


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One deployment as a router sees it. Without addresses it is known and has no replica that answers."""

    deployment: str
    model_version: str
    model_digest: str
    audience: str
    addresses: tuple[str, ...]
    context_length: int
    max_concurrency: int
    secrecy: Secrecy
    live_time: datetime | None


@dataclass(frozen=True)
class EndpointSet:
    """All endpoints of all organizations. `revision` rises with each change."""

    revision: int = 0
    endpoints: tuple[Endpoint, ...] = ()


def endpoints(deployments: Sequence[Deployment], replicas: Sequence[Replica]) -> tuple[Endpoint, ...]:
    """The endpoints of the deployments that serve.

    Args:
        deployments: those that serve.
        replicas: ready ones; only those of a deployment's current revision are routed to.
    """
    found: list[Endpoint] = []
    for deployment in deployments:
        current = deployment.current
        if current is None or not deployment.serving:
            continue
        own = [r for r in replicas if r.deployment == deployment.name and r.work_order == current.work_order]
        found.append(
            Endpoint(
                deployment=deployment.name,
                model_version=current.model_version,
                model_digest=current.model_digest,
                audience=deployment.name,
                addresses=tuple(replica.address for replica in own),
                context_length=min((replica.context_length for replica in own), default=current.spec.max_model_length),
                max_concurrency=current.spec.max_concurrency,
                secrecy=deployment.secrecy,
                live_time=deployment.live_time,
            )
        )
    return tuple(found)
