"""A gateway with everything real but the services behind it: those are small servers with mutual TLS in the test's
process.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from argosy.app.v1 import app_pb2, app_service_pb2, app_service_pb2_grpc, chat_service_pb2, chat_service_pb2_grpc
from argosy.common.v1 import options_pb2, task_pb2, task_service_pb2_grpc
from argosy.dataset.v1 import dataset_pb2, dataset_service_pb2, dataset_service_pb2_grpc
from argosy.deploy.v1 import (
    deploy_pb2,
    deploy_service_pb2,
    deploy_service_pb2_grpc,
    inference_service_pb2,
    inference_service_pb2_grpc,
)
from argosy.identity.v1 import (
    identity_pb2,
    identity_service_pb2,
    identity_service_pb2_grpc,
    token_service_pb2,
    token_service_pb2_grpc,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from argosy.training.v1 import model_service_pb2, model_service_pb2_grpc, training_pb2

from libs.common.auth.tokens import TOKEN_SECONDS
from libs.common.errors import STATUS_DETAILS_KEY, ArgosyError, to_status
from libs.common.rpc.server import MAX_MESSAGE_BYTES
from libs.common.testing.mesh import Mesh
from libs.common.testing.service import running_service
from services.gateway.app import DEFINITION, App

KEY = "ak_test_secret"
_SIZES = (("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.max_send_message_length", MAX_MESSAGE_BYTES))


async def fail(context: Any, error: ArgosyError) -> None:
    """Ends a call as a service of Argosy does."""
    status = to_status(error)
    await context.abort(error.code, error.message, ((STATUS_DETAILS_KEY, status.SerializeToString()),))


class Identity(
    token_service_pb2_grpc.TokenServiceServicer,
    usage_service_pb2_grpc.UsageServiceServicer,
    identity_service_pb2_grpc.IdentityServiceServicer,
):
    """Knows keys that tests give it; counts what is asked of it."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.keys: dict[str, dict[str, Any]] = {KEY: {}}
        self.exchanges = 0
        self.usage: dict[str, usage_service_pb2.UsageEntry] = {}
        self.records = 0
        self.revocations: asyncio.Queue[token_service_pb2.Revocation] = asyncio.Queue()
        self.watchers = 0
        self.away = False

    def _token(self, subject: str, audience: list[str], api_key: str = "") -> token_service_pb2.Token:
        given: dict[str, Any] = {"audience": audience} if audience else {}
        token = token_service_pb2.Token(
            token=self.mesh.token(subject=subject, api_key=api_key, **given),
            org="orgs/acme",
            subject=subject,
            role=options_pb2.ROLE_EDITOR,
            api_key=api_key,
        )
        token.expire_time.FromNanoseconds(int((self.mesh.clock.now().timestamp() + TOKEN_SECONDS) * 1e9))
        return token

    async def ExchangeKey(self, request: Any, context: Any) -> token_service_pb2.Token:
        self.exchanges += 1
        if self.away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "")
        limits = self.keys.get(request.key)
        if limits is None:
            await fail(context, ArgosyError("TOKEN_INVALID", "The key is not valid."))
        token = self._token("users/alice", [], f"orgs/acme/apiKeys/{request.key.split('_')[1]}")
        token.requests_per_minute = (limits or {}).get("requests", 0)
        token.tokens_per_minute = (limits or {}).get("tokens", 0)
        return token

    async def IssueToken(self, request: Any, context: Any) -> token_service_pb2.Token:
        return self._token(request.subject or "services/gateway", list(request.audience))

    async def GetJwks(self, request: Any, context: Any) -> token_service_pb2.GetJwksResponse:
        return token_service_pb2.GetJwksResponse(keys=[token_service_pb2.Jwk(**key) for key in await self.mesh.jwks()])

    async def WatchRevocations(self, request: Any, context: Any) -> AsyncIterator[token_service_pb2.Revocation]:
        self.watchers += 1
        while True:
            yield await self.revocations.get()

    async def RecordUsage(self, request: Any, context: Any) -> usage_service_pb2.RecordUsageResponse:
        if self.away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "")
        self.records += 1
        known = sum(entry.id in self.usage for entry in request.entries)
        self.usage.update({entry.id: entry for entry in request.entries})
        return usage_service_pb2.RecordUsageResponse(written=len(request.entries) - known, known=known)

    async def GetOrganization(self, request: Any, context: Any) -> identity_pb2.Organization:
        metadata = dict(context.invocation_metadata())
        labels = {"request-id": metadata["x-request-id"], "traceparent": metadata["traceparent"]}
        return identity_pb2.Organization(name=request.name, labels=labels)

    async def ListOrganizations(self, request: Any, context: Any) -> identity_service_pb2.ListOrganizationsResponse:
        await fail(context, ArgosyError("ROLE_MISSING", "Only system.", metadata={"required_role": "ROLE_SYSTEM"}))
        raise AssertionError


class Dataset(dataset_service_pb2_grpc.DatasetServiceServicer, task_service_pb2_grpc.TaskServiceServicer):
    """Keeps one upload and one task."""

    def __init__(self) -> None:
        self.content = b""
        self.parts: list[int] = []
        self.created: list[dataset_service_pb2.CreateDatasetRequest] = []
        self.watched_from = -1
        self.cancelled = asyncio.Event()
        self.task_watchers = 0
        self.stated = "image/png"

    async def CreateDataset(self, request: Any, context: Any) -> dataset_pb2.Dataset:
        self.created.append(request)
        return dataset_pb2.Dataset(name=f"{request.parent}/datasets/{request.dataset_id}", etag="1")

    async def AppendUpload(self, request: Any, context: Any) -> dataset_pb2.Upload:
        if request.offset != len(self.content):
            text = {"offset": str(len(self.content)), "received": str(request.offset)}
            await fail(context, ArgosyError("OFFSET_MISMATCH", "The upload stands elsewhere.", metadata=text))
        assert hashlib.sha256(request.data).hexdigest() == request.sha256
        self.content += request.data
        self.parts.append(len(request.data))
        return dataset_pb2.Upload(name=request.name, offset=len(self.content))

    async def GetUpload(self, request: Any, context: Any) -> dataset_pb2.Upload:
        return dataset_pb2.Upload(name=request.name, offset=len(self.content))

    async def ReadVersion(self, request: Any, context: Any) -> AsyncIterator[dataset_service_pb2.ReadVersionResponse]:
        for number in range(3):
            yield dataset_service_pb2.ReadVersionResponse(batch=b"batch%d" % number, cursor=str(number))

    async def DownloadRowMedia(
        self, request: Any, context: Any
    ) -> AsyncIterator[dataset_service_pb2.DownloadRowMediaResponse]:
        """A file that is said to be what `self.stated` says."""
        yield dataset_service_pb2.DownloadRowMediaResponse(content_type=self.stated, size=7)
        for part in (b"abc", b"defg"):
            yield dataset_service_pb2.DownloadRowMediaResponse(data=part)

    async def WatchTask(self, request: Any, context: Any) -> AsyncIterator[task_pb2.TaskEvent]:
        self.watched_from = request.after_sequence
        if request.name.endswith("/missing"):
            await fail(context, ArgosyError("NOT_FOUND", "There is none.", metadata={"name": request.name}))
        for sequence in range(request.after_sequence + 1, 4):
            yield task_pb2.TaskEvent(sequence=sequence, log=task_pb2.TaskLog(body=f"line {sequence}"))
        if request.name.endswith("/broken"):
            await fail(context, ArgosyError("STORAGE_UNAVAILABLE", "It is away."))
        if request.name.endswith("/endless"):
            self.task_watchers += 1
            try:
                await asyncio.sleep(60)
            finally:
                self.cancelled.set()


class Training(model_service_pb2_grpc.ModelServiceServicer):
    """Gives one file, and knows the versions that tests give it, with their labels."""

    def __init__(self) -> None:
        self.versions: dict[str, dict[str, str]] = {}

    async def GetModelVersion(self, request: Any, context: Any) -> training_pb2.ModelVersion:
        if request.name not in self.versions:
            await fail(context, ArgosyError("NOT_FOUND", "There is none.", metadata={"name": request.name}))
        return training_pb2.ModelVersion(name=request.name, labels=self.versions[request.name])

    async def DownloadModelFile(
        self, request: Any, context: Any
    ) -> AsyncIterator[model_service_pb2.DownloadModelFileResponse]:
        for part in (b"abc", b"defg"):
            yield model_service_pb2.DownloadModelFileResponse(data=part)


class Deploy(deploy_service_pb2_grpc.DeployServiceServicer):
    """Says where replicas are."""

    def __init__(self) -> None:
        self.endpoints = deploy_service_pb2.EndpointSet()
        self.changed = asyncio.Event()
        # Deployments that have no endpoint.
        self.states: dict[str, deploy_pb2.Deployment.State] = {}
        self.away = False

    async def GetDeployment(self, request: Any, context: Any) -> deploy_pb2.Deployment:
        if self.away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "")
        state = self.states.get(request.name)
        if state is None:
            await fail(context, ArgosyError("NOT_FOUND", "There is none.", metadata={"name": request.name}))
        return deploy_pb2.Deployment(name=request.name, state=state)

    async def WatchEndpoints(self, request: Any, context: Any) -> AsyncIterator[deploy_service_pb2.EndpointSet]:
        while True:
            yield self.endpoints
            await self.changed.wait()
            self.changed.clear()

    def place(
        self,
        deployment: str,
        *addresses: str,
        org: str = "acme",
        model_version: str = "orgs/acme/modelProjects/m/versions/1",
    ) -> None:
        name = f"orgs/{org}/deployments/{deployment}"
        endpoint = deploy_pb2.Endpoint(deployment=name, model_version=model_version, audience=name, addresses=addresses)
        self.endpoints.endpoints.append(endpoint)
        self.changed.set()


class Application(app_service_pb2_grpc.AppServiceServicer, chat_service_pb2_grpc.ChatServiceServicer):
    """Has one published application."""

    def __init__(self) -> None:
        self.asked: list[chat_service_pb2.ChatRequest] = []

    async def ListApplications(self, request: Any, context: Any) -> app_service_pb2.ListApplicationsResponse:
        applications = [
            app_pb2.Application(name="orgs/acme/applications/helper", published_version="2"),
            app_pb2.Application(name="orgs/acme/applications/draft"),
        ]
        return app_service_pb2.ListApplicationsResponse(applications=applications)

    async def Chat(self, request: Any, context: Any) -> AsyncIterator[chat_service_pb2.ChatResponse]:
        self.asked.append(request)
        if request.name.endswith("/draft"):
            await fail(context, ArgosyError("STATE_CONFLICT", "It is not published."))
        usage = inference_service_pb2.Usage(prompt_tokens=5, completion_tokens=1)
        response = inference_service_pb2.GenerateResponse(text="from the app", finish_reason="stop", usage=usage)
        yield chat_service_pb2.ChatResponse(response=response, model_version="orgs/acme/modelProjects/m/versions/1")


Script = Callable[[inference_service_pb2.GenerateRequest, Any], AsyncIterator[inference_service_pb2.GenerateResponse]]


async def hello(
    request: inference_service_pb2.GenerateRequest, context: Any
) -> AsyncIterator[inference_service_pb2.GenerateResponse]:
    """Three words, then what they cost."""
    for index in range((request.sampling.n or 1) * max(1, len(request.prompts))):
        for word in ("Hello", " wide", " world"):
            yield inference_service_pb2.GenerateResponse(index=index, text=word)
        yield inference_service_pb2.GenerateResponse(index=index, finish_reason="stop")
    yield inference_service_pb2.GenerateResponse(
        usage=inference_service_pb2.Usage(prompt_tokens=7, completion_tokens=3)
    )


class Replica(inference_service_pb2_grpc.InferenceServiceServicer):
    """Answers by a script."""

    def __init__(self) -> None:
        self.script: Script = hello
        self.requests: list[inference_service_pb2.GenerateRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.ended = asyncio.Event()
        self.produced = 0
        self.completed = 0

    async def Generate(self, request: Any, context: Any) -> AsyncGenerator[inference_service_pb2.GenerateResponse]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        try:
            async for response in self.script(request, context):
                self.produced += 1
                yield response
        finally:
            self.ended.set()

    async def Complete(self, request: Any, context: Any) -> inference_service_pb2.CompleteResponse:
        self.completed += 1
        async with aclosing(self.Generate(request.request, context)) as responses:
            return inference_service_pb2.CompleteResponse(answers=[response async for response in responses])


class World:
    """All servers of a test, and a client of the gateway."""

    def __init__(self, folder: Path) -> None:
        self.mesh = Mesh(folder)
        self.identity = Identity(self.mesh)
        self.dataset = Dataset()
        self.training = Training()
        self.deploy = Deploy()
        self.application = Application()
        self.replicas: list[Replica] = []
        self.addresses: list[str] = []
        self._stack = AsyncExitStack()
        self.app: App
        self.http: httpx.AsyncClient

    async def serve(self, name: str, add: Callable[[grpc.aio.Server], None]) -> str:
        """Starts a server with the certificate of `name` and gives its address."""
        server = grpc.aio.server(options=_SIZES)
        add(server)
        port = server.add_secure_port("127.0.0.1:0", self.mesh.certificates(name).server_credentials())
        await server.start()
        self._stack.push_async_callback(server.stop, None)
        return f"127.0.0.1:{port}"

    async def start(self) -> None:
        """Starts the services behind the gateway."""
        peers = self.mesh.peers
        peers["identity"] = await self.serve("identity", self._add_identity)
        peers["dataset"] = await self.serve("dataset", self._add_dataset)
        peers["training"] = await self.serve(
            "training", lambda server: model_service_pb2_grpc.add_ModelServiceServicer_to_server(self.training, server)
        )
        peers["deploy"] = await self.serve(
            "deploy", lambda server: deploy_service_pb2_grpc.add_DeployServiceServicer_to_server(self.deploy, server)
        )
        peers["app"] = await self.serve("app", self._add_app)

    def _add_identity(self, server: grpc.aio.Server) -> None:
        token_service_pb2_grpc.add_TokenServiceServicer_to_server(self.identity, server)
        usage_service_pb2_grpc.add_UsageServiceServicer_to_server(self.identity, server)
        identity_service_pb2_grpc.add_IdentityServiceServicer_to_server(self.identity, server)

    def _add_dataset(self, server: grpc.aio.Server) -> None:
        dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(self.dataset, server)
        task_service_pb2_grpc.add_TaskServiceServicer_to_server(self.dataset, server)

    def _add_app(self, server: grpc.aio.Server) -> None:
        app_service_pb2_grpc.add_AppServiceServicer_to_server(self.application, server)
        chat_service_pb2_grpc.add_ChatServiceServicer_to_server(self.application, server)

    async def add_replica(self, deployment: str | None = "llm") -> Replica:
        """Starts a replica; None as deployment leaves it unknown to deploy."""
        replica = Replica()
        self.replicas.append(replica)
        address = await self.serve(
            "replica",
            lambda server: inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(replica, server),
        )
        self.addresses.append(address)
        if deployment is not None:
            self.deploy.place(deployment, address)
        return replica

    async def open_gateway(self, **settings: Any) -> None:
        """Starts the gateway and a client that sends KEY."""
        given = {"http_listen": "127.0.0.1:0", **settings}
        service = await self._stack.enter_async_context(running_service(DEFINITION, self.mesh, **given))
        assert service.app is not None
        self.app = service.app
        self.http = await self._stack.enter_async_context(
            httpx.AsyncClient(
                base_url=self.base_url, headers={"authorization": f"Bearer {KEY}"}, timeout=20, trust_env=False
            )
        )

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.app.http.port}"

    async def until_deployed(self, deployment: str = "llm", replicas: int = 1) -> None:
        """Waits until the gateway knows a deployment with so many replicas."""
        async with asyncio.timeout(5):
            while True:
                found = self.app.replicas.find(f"orgs/acme/deployments/{deployment}")
                if found is not None and len(found.replicas) == replicas:
                    return
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        await self._stack.aclose()


@pytest_asyncio.fixture
async def bare_world(tmp_path: Path) -> AsyncGenerator[World]:
    """Everything but the gateway."""
    world = World(tmp_path)
    await world.start()
    yield world
    await world.close()


@pytest_asyncio.fixture
async def world(bare_world: World) -> World:
    """A gateway with one deployment, `llm`, of one replica."""
    await bare_world.add_replica()
    await bare_world.open_gateway()
    await bare_world.until_deployed()
    return bare_world


@pytest.fixture
def key() -> str:
    """The API key that identity knows."""
    return KEY
