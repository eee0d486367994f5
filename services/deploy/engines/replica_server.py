"""The gRPC port of a replica: the same server and the same chain of interceptors as every service of the mesh."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from argosy.deploy.v1 import inference_service_pb2
from argosy.identity.v1 import token_service_pb2, token_service_pb2_grpc

from libs.common.aio import Background
from libs.common.auth.revocations import follow_revocations
from libs.common.auth.tokens import JwksCache, TokenVerifier
from libs.common.clock import SYSTEM_CLOCK
from libs.common.config import CommonSettings
from libs.common.pki import Certificates
from libs.common.rpc.client import Channels
from libs.common.rpc.method import Host, Load
from libs.common.rpc.server import Server
from services.deploy.engines import inference
from services.deploy.engines.serving import Serving
from services.deploy.engines.text_engine import DEFAULT_CONCURRENCY

if TYPE_CHECKING:
    from services.deploy.engines.replica import ReplicaSpec

# Service name of a replica: in certificates, telemetry and the peers of policies.
NAME = "replica"
# Status calls are short; this many at a time is plenty.
_MAX_STATUS_CALLS = 64


async def open_server(spec: ReplicaSpec, serving: Serving, background: Background) -> Server:
    """Serves InferenceService on a free port of `spec.host`; health says SERVING when it returns.

    Tokens are verified offline; their audience must be `spec.audience`, and revocations are followed. At most
    `spec.max_concurrency` answers are made at a time, the next caller gets OVERLOADED.
    """
    certificates = Certificates(Path(spec.pki_dir), NAME)
    settings = CommonSettings(pki_dir=Path(spec.pki_dir), peers=spec.peers)
    channels = Channels(settings, NAME, certificates=certificates)

    async def published_keys() -> Sequence[dict[str, str]]:
        stub = channels.stub(token_service_pb2_grpc.TokenServiceStub, "identity")
        answer = await stub.GetJwks(token_service_pb2.GetJwksRequest())
        return [{"kid": k.kid, "kty": k.kty, "crv": k.crv, "x": k.x, "alg": k.alg, "use": k.use} for k in answer.keys]

    # Shared by the replicas of a machine: one that starts while identity is away still knows the keys.
    keys = JwksCache(Path(spec.scratch).parent / "jwks-replica.json", published_keys)
    verifier = TokenVerifier(keys, spec.audience, now=lambda: SYSTEM_CLOCK.now().timestamp())
    if "identity" in spec.peers:
        background.start(follow_revocations(channels, verifier, SYSTEM_CLOCK), name="revocations")
    host = Host(
        service=NAME,
        deps=serving,
        clock=SYSTEM_CLOCK,
        verifier=verifier,
        database=None,
        load=Load(max_calls=_MAX_STATUS_CALLS, max_long=spec.max_concurrency or DEFAULT_CONCURRENCY),
    )
    server = Server(host, certificates, f"{spec.host}:0")
    server.mount([inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"]], [inference])
    await server.start()
    await server.set_ready(True)
    return server
