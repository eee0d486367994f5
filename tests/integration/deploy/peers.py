"""What plays the peers of deploy in its tests, and what calls it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from argosy.common.v1 import resource_pb2
from argosy.deploy.v1 import deploy_pb2, deploy_service_pb2_grpc
from argosy.identity.v1 import token_service_pb2, token_service_pb2_grpc
from argosy.training.v1 import model_service_pb2, model_service_pb2_grpc, training_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from libs.common.blobs import BlobStore
from libs.common.testing.mesh import Mesh
from tests.unit.deploy.tiny_llama import write_tiny_llama

VERSION = "orgs/acme/modelProjects/docs/versions/v1"


class FakeTraining(model_service_pb2_grpc.ModelServiceServicer):
    """Model versions in a dictionary, their files in a real blob store; remembers the trace contexts of its callers."""

    def __init__(self, blobs: BlobStore) -> None:
        self.blobs = blobs
        self.versions: dict[str, training_pb2.ModelVersion] = {}
        self.traceparents: list[str] = []

    def add(self, name: str, digest: str, *, state: str = "STATE_APPROVED", **gate: Any) -> None:
        """A version with one gate, open for its own digest unless `gate` says otherwise."""
        usual: dict[str, Any] = {
            "gate": "release",
            "open": True,
            "model_digest": digest,
            "rule": "lower bound beats the majority",
        }
        self.versions[name] = training_pb2.ModelVersion(
            name=name,
            state=state,
            manifest_digest=digest,
            secrecy=resource_pb2.SECRECY_CONFIDENTIAL,
            gates=[training_pb2.Gate(evaluation="orgs/acme/evaluations/e1", figures={"lower": 0.4}, **(usual | gate))],
        )

    def make_adapter(self, name: str, base: str) -> None:
        """Turns a version into an adapter for another one."""
        self.versions[name].base_model_version = base
        self.versions[name].files.add(path="adapter_config.json")

    async def GetModelVersion(self, request: Any, context: Any) -> training_pb2.ModelVersion:
        self._remember(context)
        if request.name not in self.versions:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such version")
        return self.versions[request.name]

    async def GrantModelRead(self, request: Any, context: Any) -> model_service_pb2.GrantModelReadResponse:
        self._remember(context)
        digest = self.versions[request.name].manifest_digest
        grant = await self.blobs.grant(digest, request.holder, request.ttl_seconds)
        return model_service_pb2.GrantModelReadResponse(manifest_digest=digest, grant=grant)

    def _remember(self, context: Any) -> None:
        self.traceparents += [value for key, value in context.invocation_metadata() if key == "traceparent"]


class FakeIdentity(token_service_pb2_grpc.TokenServiceServicer):
    """Publishes the keys of the test's mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    async def GetJwks(self, request: Any, context: Any) -> token_service_pb2.GetJwksResponse:
        return token_service_pb2.GetJwksResponse(keys=[token_service_pb2.Jwk(**key) for key in await self.mesh.jwks()])

    async def WatchRevocations(self, request: Any, context: Any) -> AsyncGenerator[token_service_pb2.Revocation]:
        await asyncio.Event().wait()
        yield token_service_pb2.Revocation()

    async def IssueToken(self, request: Any, context: Any) -> token_service_pb2.Token:
        token = token_service_pb2.Token(token=self.mesh.token(request.org.removeprefix("orgs/"), "services/deploy"))
        token.expire_time.FromSeconds(int(self.mesh.clock.now().timestamp()) + 300)
        return token


@dataclass(frozen=True)
class Span:
    """A span as the receiver saw it."""

    service: str
    trace: str
    name: str
    attributes: dict[str, Any]


class FakeAiops(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    async def Export(self, request: Any, context: Any) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                attributes = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
                self.spans.append(Span(service, span.trace_id.hex(), span.name, attributes))
        return trace_service_pb2.ExportTraceServiceResponse()

    async def span(self, name: str) -> Span | None:
        """The first span of this name."""
        return next((span for span in self.spans if span.name == name), None)


class Caller:
    """Calls deploy as a person of an organization, through the gateway's certificate.

    Args:
        mesh: gives certificates and tokens.
        subject, role, org: who calls.
    """

    def __init__(self, mesh: Mesh, subject: str, role: int, org: str = "acme", identity: str = "gateway") -> None:
        self._channel = mesh.channel("deploy", identity)
        self._stub = deploy_service_pb2_grpc.DeployServiceStub(self._channel)
        self._metadata = mesh.metadata(org, subject, role)

    def __getattr__(self, rpc: str) -> Any:
        method = getattr(self._stub, rpc)
        return lambda request, timeout=20.0, metadata=(): method(
            request, timeout=timeout, metadata=(*self._metadata, *metadata)
        )

    async def close(self) -> None:
        await self._channel.close()


def order_of(version: str = VERSION, deployment: str = "docs", **fields: Any) -> deploy_pb2.WorkOrder:
    """A work order as a caller writes it."""
    fields.setdefault("spec", deploy_pb2.DeploymentSpec(cpus=1, max_concurrency=8))
    return deploy_pb2.WorkOrder(model_version=version, deployment_id=deployment, **fields)


async def put_model(blobs: BlobStore, folder: Path, **llama: Any) -> str:
    """Stores a tiny random model and gives the digest of its manifest."""
    write_tiny_llama(folder, **llama)
    entries = []
    for path in sorted(folder.iterdir()):
        blob = await blobs.put(path)
        entries.append({"path": path.name, "sha256": blob.sha256, "size": blob.size})
    return await blobs.commit({"blobs": entries})
