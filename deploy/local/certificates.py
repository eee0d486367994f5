"""Certificates of the mesh, renewed long before their 24 hours are over."""

from __future__ import annotations

from deploy.local.layout import SERVICES, Home
from libs.common.clock import SystemClock
from libs.common.pki import OPERATOR, LocalCa

# Who gets a certificate beside the services: replicas serve inference, Ray's processes send telemetry, the operator
# looks in.
NAMES = (*SERVICES, "replica", "ray", OPERATOR)


def renew(home: Home) -> list[str]:
    """Issues what is missing or has less than a third of its life left. Processes follow the files without a restart.

    Returns:
        the names that got a new one.
    """
    authority = LocalCa(home.pki, now=SystemClock().now)
    authority.create()
    return [name for name in NAMES if authority.renew(name)]
