"""Every RPC of every service, times everybody who may not call it. Only the allowed cells pass.

The RPCs come from the descriptors, so that a new one is in the matrix without a line here. Each test is one column;
a fault names the RPC, and what it answered instead of refusing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
import pytest_asyncio
from argosy.common.v1 import options_pb2
from argosy.identity.v1 import identity_service_pb2, identity_service_pb2_grpc

from libs.common.auth.tokens import SigningKey
from libs.common.pki import OPERATOR
from libs.common.rpc.interceptors import CHAIN
from libs.common.testing.mesh import SERVICES, Mesh
from tests.contract import protos
from tests.security.messages import minimal
from tests.security.world import REPLICA, REPLICA_AUDIENCE, Metadata, Rpc, World, bearer

ROLE, PEER, PUBLIC = options_pb2.ACCESS_ROLE, options_pb2.ACCESS_PEER, options_pb2.ACCESS_PUBLIC
UNAUTHENTICATED = {"TOKEN_MISSING", "TOKEN_INVALID", "TOKEN_EXPIRED", "TOKEN_REVOKED", "TOKEN_AUDIENCE"}
REFUSED = UNAUTHENTICATED | {"ROLE_MISSING", "PEER_NOT_ALLOWED"}
# What nobody may get, whatever he sends.
BROKEN = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED}
# Requests that name no organization. Whoever adds one here says what keeps the tenants apart instead.
NAMELESS = {
    "ListOrganizations": "only system administrators",
    "CreateOrganization": "only system administrators",
    "Bootstrap": "the one-time token",
    "ExchangeKey": "the key",
    "GetJwks": "public keys",
    "DescribeCleaning": "the same for everybody",
    "DescribeAugmentation": "the same for everybody",
    "DescribeWorkTemplates": "the same for everybody",
    "WatchRevocations": "only services",
    "RecordUsage": "only services that meter",
    "WatchEndpoints": "only services that ask replicas",
    "ListEvents": "only services",
    "Generate": "the audience of the token, tested below",
    "Complete": "the audience of the token, tested below",
    "GetReplicaStatus": "only services that ask replicas",
}
# An organization of which identity knows nothing: what is let in finds nothing there to delete.
UNKNOWN = "lab"
_AT_ONCE = 16

Attempt = tuple[str | None, Metadata, str]


def caller(rpc: Rpc) -> str:
    """A certificate with which the RPC may be called."""
    return sorted(rpc.policy.peers)[0] if rpc.policy.peers else OPERATOR


def strangers(rpc: Rpc) -> list[str]:
    """Certificates with which it may not."""
    return [name for name in (*SERVICES, REPLICA, OPERATOR) if name not in rpc.policy.peers]


def good(world: World, rpc: Rpc, **claims: Any) -> Metadata:
    """A token that is right but for `claims`."""
    if "now" in claims:
        claims["now"] = world.mesh.clock.now().timestamp() + claims["now"]
    role = rpc.policy.role or options_pb2.ROLE_EDITOR
    usual: dict[str, Any] = {"role": role, "audience": [rpc.audience]}
    return bearer(world.mesh.token(**usual | claims))


async def faults(
    world: World,
    rpcs: Iterable[Rpc],
    attempts: Callable[[Rpc], Iterable[Attempt]],
    allowed: Callable[[str, grpc.StatusCode], bool],
) -> list[str]:
    """Makes all attempts of all RPCs; those that did not end as `allowed` says, and how they did."""
    gate, found, made = asyncio.Semaphore(_AT_ONCE), list[str](), 0

    async def make(rpc: Rpc, identity: str | None, metadata: Metadata, org: str) -> None:
        async with gate:
            reason, code = await world.ask(rpc, identity, metadata, minimal(rpc.descriptor, org))
        if not allowed(reason, code) or code in BROKEN:
            found.append(f"{rpc} by {identity} in {org}: {code.name} {reason}")

    async with asyncio.TaskGroup() as group:
        for rpc in rpcs:
            for attempt in attempts(rpc):
                made += 1
                group.create_task(make(rpc, *attempt))
    assert made > 0
    return sorted(found)


def is_(reason: str) -> Callable[[str, grpc.StatusCode], bool]:
    codes = {
        "ROLE_MISSING": grpc.StatusCode.PERMISSION_DENIED,
        "PEER_NOT_ALLOWED": grpc.StatusCode.PERMISSION_DENIED,
        "NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    }
    return lambda found, code: found == reason and code is codes.get(reason, grpc.StatusCode.UNAUTHENTICATED)


def with_access(world: World, *access: int) -> list[Rpc]:
    return [rpc for rpc in world.rpcs if rpc.policy.access in access]


def test_the_matrix_has_every_rpc(world: World) -> None:
    walked = {rpc.descriptor.full_name for rpc in world.rpcs}
    assert walked == {method.full_name for method in protos.methods()}
    assert {rpc.service for rpc in world.rpcs} == {*SERVICES, REPLICA} - {"gateway"}
    # The shared services are walked where they are mounted, not once.
    assert len([rpc for rpc in world.rpcs if rpc.descriptor.name == "CancelTask"]) == 4
    assert [name for name, _ in CHAIN if name.startswith("auth")] == ["authenticate", "authorise"]


def test_every_request_names_its_organization_or_is_known_not_to(world: World) -> None:
    nameless = {r.descriptor.name for r in world.rpcs if not r.method.names(minimal(r.descriptor, "acme"))}
    assert nameless == set(NAMELESS)
    for rpc in world.rpcs:
        for _, name in rpc.method.names(minimal(rpc.descriptor, "rival")):
            assert name.split("/")[:2] == ["orgs", "rival"], rpc


async def test_the_right_caller_is_let_in(world: World) -> None:
    """Without this column the others would also pass on a mesh that refuses everybody."""

    def attempts(rpc: Rpc) -> list[Attempt]:
        if rpc.policy.access == ROLE:
            return [(caller(rpc), good(world, rpc, org=UNKNOWN), UNKNOWN)]
        return [(caller(rpc), (), UNKNOWN)]

    def allowed(reason: str, code: grpc.StatusCode) -> bool:
        return reason not in REFUSED and code is not grpc.StatusCode.UNAVAILABLE

    rpcs = [rpc for rpc in world.rpcs if rpc.descriptor.name not in ("Bootstrap", "ExchangeKey")]
    assert await faults(world, rpcs, attempts, allowed) == []
    # Those two ask for a secret instead of a token, and say so; the token that they are sent is not even read.
    public = [rpc for rpc in world.rpcs if rpc.descriptor.name in ("Bootstrap", "ExchangeKey")]
    refusal = is_("TOKEN_INVALID")
    assert await faults(world, public, lambda rpc: [(OPERATOR, bearer("nonsense"), UNKNOWN)], refusal) == []


async def test_nobody(world: World) -> None:
    attempts = lambda rpc: [(caller(rpc), (), "acme")]  # noqa: E731
    assert await faults(world, with_access(world, ROLE), attempts, is_("TOKEN_MISSING")) == []


async def test_one_role_below(world: World) -> None:
    def attempts(rpc: Rpc) -> list[Attempt]:
        return [(caller(rpc), good(world, rpc, role=rpc.policy.role - 1), "acme")]

    assert await faults(world, with_access(world, ROLE), attempts, is_("ROLE_MISSING")) == []


async def test_another_tenant(world: World) -> None:
    """Administrators of one organization see nothing of another; only the role `system` crosses."""
    named = [rpc for rpc in with_access(world, ROLE, PEER) if rpc.descriptor.name not in NAMELESS]
    named = [rpc for rpc in named if rpc.policy.role != options_pb2.ROLE_SYSTEM]

    def attempts(rpc: Rpc) -> list[Attempt]:
        return [(caller(rpc), good(world, rpc, role=options_pb2.ROLE_ADMIN), "rival")]

    assert await faults(world, named, attempts, is_("NOT_FOUND")) == []


async def test_a_replica_answers_its_own_organization_only(world: World) -> None:
    generate = [rpc for rpc in world.rpcs if rpc.descriptor.name in ("Generate", "Complete")]
    assert len(generate) == 2
    attempts = lambda rpc: [("gateway", good(world, rpc, org="rival"), "rival")]  # noqa: E731
    assert await faults(world, generate, attempts, is_("NOT_FOUND")) == []


async def test_a_private_dataset_of_another_tenant_is_not_there(world: World) -> None:
    """The methods that read what may be shared let the name through to the handler, which must say no itself."""
    rpcs = {rpc.descriptor.name: rpc for rpc in world.rpcs if rpc.service == "dataset"}
    create = rpcs["CreateDataset"]
    request: Any = minimal(create.descriptor, "rival")
    request.dataset_id = "thing"
    request.dataset.type = 2
    made = await world.ask(create, OPERATOR, good(world, create, org="rival"), request)
    assert made == ("", grpc.StatusCode.OK)
    sharable = [rpc for rpc in rpcs.values() if rpc.policy.sharable and rpc.policy.access == ROLE]
    assert len(sharable) >= 5
    attempts = lambda rpc: [(OPERATOR, good(world, rpc, role=options_pb2.ROLE_ADMIN), "rival")]  # noqa: E731
    assert await faults(world, sharable, attempts, is_("NOT_FOUND")) == []
    get = rpcs["GetDataset"]
    found = await world.ask(get, OPERATOR, good(world, get, org="rival"), minimal(get.descriptor, "rival"))
    assert found == ("", grpc.StatusCode.OK)


async def test_an_expired_token(world: World) -> None:
    attempts = lambda rpc: [(caller(rpc), good(world, rpc, now=-320.0), "acme")]  # noqa: E731
    assert await faults(world, with_access(world, ROLE, PEER), attempts, is_("TOKEN_EXPIRED")) == []


async def test_a_token_for_another_audience(world: World) -> None:
    def attempts(rpc: Rpc) -> list[Attempt]:
        others = [name for name in SERVICES if name != rpc.audience]
        return [(caller(rpc), good(world, rpc, audience=others), "acme")]

    assert await faults(world, with_access(world, ROLE, PEER), attempts, is_("TOKEN_AUDIENCE")) == []


def _forged(world: World, rpc: Rpc) -> Iterable[Metadata]:
    """Tokens that only look right: another key under the name of ours, no signature, our public key as a password."""
    mesh = world.mesh
    token = mesh.token(role=rpc.policy.role, audience=[rpc.audience])
    claims = jwt.decode(token, options={"verify_signature": False})
    header = {"kid": mesh.signing_key.kid}
    yield bearer(jwt.encode(claims, SigningKey.generate().private, algorithm="EdDSA", headers=header))
    yield bearer(jwt.encode(claims, "", algorithm="none", headers=header))
    yield bearer(jwt.encode(claims, mesh.signing_key.private.public_key().public_bytes_raw(), "HS256", header))
    yield bearer(jwt.encode(claims | {"iss": "somebody"}, mesh.signing_key.private, "EdDSA", header))
    yield bearer(token[:-6] + "AAAAAA")
    yield bearer("not.a.token")
    yield bearer("x" * 9000)
    yield (("authorization", f"Basic {token}"),)


@pytest.mark.filterwarnings("ignore:The HMAC key")
async def test_a_malformed_or_forged_token(world: World) -> None:
    def attempts(rpc: Rpc) -> Iterable[Attempt]:
        return [(caller(rpc), metadata, "acme") for metadata in _forged(world, rpc)]

    # The check does not know which method it guards: all forgeries on some RPCs, the first on every one.
    every, some = with_access(world, ROLE, PEER), {rpc.service: rpc for rpc in with_access(world, ROLE)}
    assert await faults(world, some.values(), attempts, is_("TOKEN_INVALID")) == []
    assert await faults(world, every, lambda rpc: list(attempts(rpc))[:1], is_("TOKEN_INVALID")) == []


async def test_the_wrong_peer(world: World) -> None:
    """Neither the operator nor any service that is not listed, with a token or without."""
    listed = [rpc for rpc in world.rpcs if rpc.policy.peers]

    def attempts(rpc: Rpc) -> Iterable[Attempt]:
        for stranger in strangers(rpc):
            yield stranger, good(world, rpc), "acme"
            if rpc.policy.access == PEER:
                yield stranger, (), "acme"

    assert await faults(world, listed, attempts, is_("PEER_NOT_ALLOWED")) == []


async def test_no_client_certificate(world: World) -> None:
    attempts = lambda rpc: [(None, good(world, rpc), "acme")]  # noqa: E731
    assert await faults(world, world.rpcs, attempts, lambda _, code: code is grpc.StatusCode.UNAVAILABLE) == []


async def test_a_certificate_of_another_authority(world: World, tmp_path: Path) -> None:
    other = Mesh(tmp_path)
    other.ca.issue(OPERATOR, timedelta(hours=1))
    pair = other.certificates(OPERATOR).current
    credentials = grpc.ssl_channel_credentials(world.mesh.ca.certificate, pair.key, pair.certificate)
    for service, rpc in {rpc.service: rpc for rpc in world.rpcs}.items():
        options = (("grpc.ssl_target_name_override", f"{service}.argosy.local"), ("grpc.use_local_subchannel_pool", 1))
        async with grpc.aio.secure_channel(world.mesh.peers[service], credentials, options) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await channel.unary_unary(rpc.policy.path)(b"", metadata=good(world, rpc), timeout=10)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE, service


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def revoked(world: World) -> dict[str, Metadata]:
    """By audience: a token that was good until its key was revoked."""
    tokens = {
        name: bearer((await world.exchange(world.user_key, name)).token) for name in (*SERVICES, REPLICA_AUDIENCE)
    }
    everybody = {rpc.service: rpc for rpc in with_access(world, ROLE) if rpc.policy.role <= options_pb2.ROLE_EDITOR}
    attempts = lambda rpc: [(caller(rpc), tokens[rpc.audience], "rival")]  # noqa: E731
    # Each service knows the token now: what is refused below is not refused because it was never good.
    assert await faults(world, everybody.values(), attempts, lambda reason, _: reason not in REFUSED) == []
    stub = identity_service_pb2_grpc.IdentityServiceStub(world.channel("identity", OPERATOR))
    admin = world.mesh.metadata(role=options_pb2.ROLE_ADMIN)
    await stub.RevokeApiKey(
        identity_service_pb2.RevokeApiKeyRequest(name=world.user_key_name), metadata=admin, timeout=10
    )
    async with asyncio.timeout(10):
        while await faults(world, everybody.values(), attempts, is_("TOKEN_REVOKED")):
            await asyncio.sleep(0.05)
    return tokens


async def test_a_revoked_token(world: World, revoked: dict[str, Metadata]) -> None:
    attempts = lambda rpc: [(caller(rpc), revoked[rpc.audience], "acme")]  # noqa: E731
    assert await faults(world, with_access(world, ROLE, PEER), attempts, is_("TOKEN_REVOKED")) == []
