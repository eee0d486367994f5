"""The gRPC port of a replica: the same server and the same chain of interceptors as every service of the mesh."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from argosy.deploy.v1 import inference_service_pb2
from argosy.identity.v1 import token_service_pb2, token_service_pb2_grpc

from libs.common.auth.tokens import JwksCache, JwksSource, TokenVerifier
from libs.common.clock import SYSTEM_CLOCK
from libs.common.pki import Certificates, server_name
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
_JWKS_TIMEOUT = 5.0


async def open_server(spec: ReplicaSpec, serving: Serving) -> Server:
    """Serves InferenceService on a free port of `spec.host`; health says SERVING when it returns.

    Tokens are verified offline; their audience must be `spec.audience`. At most `spec.max_concurrency` answers are
    streamed at a time, the next caller gets OVERLOADED.
    """
    certificates = Certificates(Path(spec.pki_dir), NAME)
    keys = JwksCache(Path(spec.scratch).parent / "jwks-replica.json", _jwks_source(certificates, spec.peers))
    host = Host(
        service=NAME,
        deps=serving,
        clock=SYSTEM_CLOCK,
        verifier=TokenVerifier(keys, spec.audience, now=lambda: SYSTEM_CLOCK.now().timestamp()),
        database=None,
        load=Load(max_calls=_MAX_STATUS_CALLS, max_streams=spec.max_concurrency or DEFAULT_CONCURRENCY),
    )
    server = Server(host, certificates, f"{spec.host}:0")
    server.mount([inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"]], [inference])
    await server.start()
    await server.set_ready(True)
    return server


def _jwks_source(certificates: Certificates, peers: dict[str, str]) -> JwksSource:
    """Asks identity for the public keys. It happens at a key that is not known yet, so a channel of its own each time
    is cheap and always shows the newest certificate."""

    async def fetch() -> Sequence[dict[str, str]]:
        options = (("grpc.ssl_target_name_override", server_name("identity")),)
        credentials = certificates.channel_credentials()
        async with grpc.aio.secure_channel(peers["identity"], credentials, options) as channel:
            stub = token_service_pb2_grpc.TokenServiceStub(channel)
            response = await stub.GetJwks(token_service_pb2.GetJwksRequest(), timeout=_JWKS_TIMEOUT)
        fields = ("kid", "kty", "crv", "x", "alg", "use")
        return [{name: getattr(key, name, "") for name in fields} for key in response.keys]

    return fetch
