"""Whether this principal, through this peer, may do this to that resource."""

from __future__ import annotations

from dataclasses import replace

from argosy.common.v1 import options_pb2

from libs.common.errors import ArgosyError, not_found
from libs.common.rpc.call import ANY_ORG
from libs.common.rpc.interceptors import audit
from libs.common.rpc.method import Exchange, Host, Method, Step

_ROLE_NAMES = {value.number: value.name for value in options_pb2.Role.DESCRIPTOR.values}


def wrap(method: Method, host: Host, step: Step) -> Step:
    """Checks role and peer from the method's policy, and that every name lies in the caller's organization."""
    policy = method.policy
    needs_role = policy.access == options_pb2.ACCESS_ROLE

    def check(exchange: Exchange) -> None:
        if policy.peers and exchange.peer not in policy.peers:
            message = "This service may not call the method."
            raise ArgosyError("PEER_NOT_ALLOWED", message, metadata={"peer": exchange.peer})
        if needs_role and exchange.call.principal.role < policy.role:
            role = _ROLE_NAMES[policy.role]
            raise ArgosyError("ROLE_MISSING", f"This needs {role}.", metadata={"required_role": role})
        assert exchange.request is not None
        enter_organization(exchange, method.names(exchange.request), policy.sharable)

    async def authorise(exchange: Exchange) -> bytes | None:
        try:
            check(exchange)
        except ArgosyError as refusal:
            if not policy.reads:
                audit.record(host, exchange, refusal.reason)
            raise
        return await step(exchange)

    return authorise


def enter_organization(exchange: Exchange, names: list[tuple[str, str]], sharable: bool = False) -> None:
    """Sets `call.org`. A name in another organization is NOT_FOUND, so that nobody learns what others have.

    System administrators, and services that carry no token, work in the organization that the request names, or in all.
    A method that reads what may be shared works there too: its handler looks at the principal's organization itself.
    """
    call = exchange.call
    principal = call.principal
    crosses = sharable or not principal.org or principal.role == options_pb2.ROLE_SYSTEM
    own = "" if crosses else principal.org
    for _, name in names:
        org = _org(name)
        if org and own and org != own:
            raise not_found(name)
        own = own or org
    call.org = own or ANY_ORG
    if own and not principal.org:
        call.principal = replace(principal, org=own)


def _org(name: str) -> str:
    """`acme` of `orgs/acme/datasets/d`; empty for what is not a name inside an organization."""
    parts = name.split("/", 2)
    return parts[1] if len(parts) > 1 and parts[0] == "orgs" else ""
