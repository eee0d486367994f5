"""What stands behind both gateways: python -m tests.bench.gateway_upstream FOLDER prints where it listens, as one line
of JSON.

For ours: a replica, identity, deploy and a receiver of telemetry over mutual TLS. For the peer: the same answer as an
OpenAI server over plain HTTP, and the same receiver of telemetry without TLS. Nothing here works; every answer is made
once.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import grpc
import uvloop
from argosy.common.v1 import options_pb2
from argosy.deploy.v1 import deploy_pb2, deploy_service_pb2, deploy_service_pb2_grpc, inference_service_pb2
from argosy.identity.v1 import token_service_pb2, token_service_pb2_grpc, usage_service_pb2, usage_service_pb2_grpc

from libs.common.auth.tokens import TOKEN_SECONDS
from libs.common.testing.mesh import Mesh

ANSWER = "The port keeps a lamp lit for every ship that is late."
KEY = "ak_bench_key"
_PLENTY = 1_000_000_000
_DEPLOYMENT = "orgs/acme/deployments/llm"


class _Identity(token_service_pb2_grpc.TokenServiceServicer, usage_service_pb2_grpc.UsageServiceServicer):
    def __init__(self, mesh: Mesh, counts: dict[str, int]) -> None:
        self._mesh = mesh
        self._counts = counts

    def _token(self, audience: list[str]) -> token_service_pb2.Token:
        given: dict[str, Any] = {"audience": audience} if audience else {}
        token = token_service_pb2.Token(
            token=self._mesh.token(api_key="orgs/acme/apiKeys/bench", **given),
            org="orgs/acme",
            subject="users/alice",
            role=options_pb2.ROLE_EDITOR,
            api_key="orgs/acme/apiKeys/bench",
            requests_per_minute=_PLENTY,
            tokens_per_minute=_PLENTY,
        )
        token.expire_time.FromNanoseconds(int((self._mesh.clock.now().timestamp() + TOKEN_SECONDS) * 1e9))
        return token

    async def ExchangeKey(self, request: Any, context: Any) -> token_service_pb2.Token:
        if request.key != KEY:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no such key")
        return self._token([])

    async def IssueToken(self, request: Any, context: Any) -> token_service_pb2.Token:
        return self._token(list(request.audience))

    async def GetJwks(self, request: Any, context: Any) -> token_service_pb2.GetJwksResponse:
        return token_service_pb2.GetJwksResponse(keys=[token_service_pb2.Jwk(**key) for key in await self._mesh.jwks()])

    async def WatchRevocations(self, request: Any, context: Any) -> Any:
        await asyncio.sleep(3600)
        yield token_service_pb2.Revocation()

    async def RecordUsage(self, request: Any, context: Any) -> usage_service_pb2.RecordUsageResponse:
        self._counts["ours_usage_entries"] += len(request.entries)
        return usage_service_pb2.RecordUsageResponse(written=len(request.entries))


class _Deploy(deploy_service_pb2_grpc.DeployServiceServicer):
    def __init__(self, address: str) -> None:
        endpoint = deploy_pb2.Endpoint(
            deployment=_DEPLOYMENT,
            audience=_DEPLOYMENT,
            addresses=[address],
            model_version="orgs/acme/modelProjects/m/versions/1",
        )
        self._endpoints = deploy_service_pb2.EndpointSet(endpoints=[endpoint], revision=1)

    async def WatchEndpoints(self, request: Any, context: Any) -> Any:
        yield self._endpoints
        await asyncio.sleep(3600)


def _generate() -> grpc.GenericRpcHandler:
    """Answers every call with the same bytes: a stream of one message, or the whole."""
    usage = inference_service_pb2.Usage(prompt_tokens=20, completion_tokens=12)
    response = inference_service_pb2.GenerateResponse(text=ANSWER, finish_reason="stop", usage=usage)
    data = response.SerializeToString()

    async def generate(request: bytes, context: Any) -> None:
        await context.write(data)

    whole = inference_service_pb2.CompleteResponse(answers=[response]).SerializeToString()

    async def complete(request: bytes, context: Any) -> bytes:
        return whole

    handlers = {
        "Generate": grpc.unary_stream_rpc_method_handler(generate),
        "Complete": grpc.unary_unary_rpc_method_handler(complete),
    }
    return grpc.method_handlers_generic_handler("argosy.deploy.v1.InferenceService", handlers)


def _receiver(counts: dict[str, int], whose: str) -> tuple[grpc.GenericRpcHandler, ...]:
    def handler(signal: str) -> grpc.GenericRpcHandler:
        async def export(request: bytes, context: Any) -> bytes:
            counts[f"{whose}_{signal.lower()}_bytes"] += len(request)
            return b""

        name = f"opentelemetry.proto.collector.{signal.lower()}.v1.{signal}Service"
        return grpc.method_handlers_generic_handler(name, {"Export": grpc.unary_unary_rpc_method_handler(export)})

    return tuple(handler(signal) for signal in ("Trace", "Metrics", "Logs"))


class _OpenAiStub(asyncio.Protocol):
    """The peer's upstream: the same answer to every request that is whole."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) >= int(lines.get(b"content-length", b"0")):
            self._buffer = b""
            self._transport.write(self._answer)


def _openai_answer() -> bytes:
    body = json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "stub",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": ANSWER},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 20, "completion_tokens": 12, "total_tokens": 32},
        }
    ).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


async def _main(folder: Path) -> None:
    mesh = Mesh(folder)
    signals = [f"{whose}_{signal}_bytes" for whose in ("ours", "peer") for signal in ("trace", "metrics", "logs")]
    counts = dict.fromkeys(["ours_usage_entries", *signals], 0)
    servers: list[grpc.aio.Server] = []

    async def serve(name: str | None, *, handlers: tuple[grpc.GenericRpcHandler, ...] = (), add: Any = None) -> int:
        server = grpc.aio.server(handlers=handlers)
        if add is not None:
            add(server)
        if name is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", mesh.certificates(name).server_credentials())
        await server.start()
        servers.append(server)
        return port

    identity = _Identity(mesh, counts)

    def add_identity(server: grpc.aio.Server) -> None:
        token_service_pb2_grpc.add_TokenServiceServicer_to_server(identity, server)
        usage_service_pb2_grpc.add_UsageServiceServicer_to_server(identity, server)

    replica = await serve("replica", handlers=(_generate(),))
    deploy = _Deploy(f"127.0.0.1:{replica}")
    places = {
        "identity": await serve("identity", add=add_identity),
        "deploy": await serve(
            "deploy", add=lambda server: deploy_service_pb2_grpc.add_DeployServiceServicer_to_server(deploy, server)
        ),
        "otlp": await serve("aiops", handlers=_receiver(counts, "ours")),
        "plain_otlp": await serve(None, handlers=_receiver(counts, "peer")),
    }
    answer = _openai_answer()
    http = await asyncio.get_running_loop().create_server(lambda: _OpenAiStub(answer), "127.0.0.1", 0)
    places["openai"] = http.sockets[0].getsockname()[1]
    print(json.dumps(places), flush=True)
    # Each line on standard input is a question for the counts; its end ends the stub.
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    uvloop.run(_main(Path(sys.argv[1])))
