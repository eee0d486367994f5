"""All services in one process, behind the gateway's door, with real PostgreSQL and NATS. Long work is not run."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import os
import secrets
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import psutil
from argosy.common.v1 import event_pb2, options_pb2, task_service_pb2
from argosy.dataset.v1 import (
    catalogue_pb2,
    catalogue_service_pb2,
    catalogue_service_pb2_grpc,
    dataset_pb2,
    dataset_service_pb2_grpc,
    human_work_pb2,
    human_work_service_pb2_grpc,
)
from argosy.dataset.v1 import dataset_service_pb2 as pb
from argosy.dataset.v1 import human_work_service_pb2 as work
from argosy.identity.v1 import identity_pb2, identity_service_pb2
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, Phase, settings

from deploy.local import postgres
from libs.common.auth.policy import read_policy
from libs.common.pki import OPERATOR
from libs.common.service import RunningService, ServiceDefinition
from libs.common.tasks import store
from libs.common.testing.fuzzing import Names
from libs.common.testing.mesh import SERVICES, Mesh
from libs.common.testing.service import running_service
from libs.compute.context import LocalContext
from services.aiops.app import DEFINITION as AIOPS
from services.app.app import DEFINITION as APP
from services.dataset.app import DEFINITION as DATASET
from services.deploy.app import DEFINITION as DEPLOY
from services.eval.app import DEFINITION as EVAL
from services.gateway.app import DEFINITION as GATEWAY
from services.identity.app import DEFINITION as IDENTITY
from services.training.app import DEFINITION as TRAINING

DEFINITIONS: dict[str, ServiceDefinition[Any]] = {
    definition.name: definition for definition in (IDENTITY, DATASET, TRAINING, DEPLOY, EVAL, APP, AIOPS, GATEWAY)
}
EXAMPLES = int(os.environ.get("ARGOSY_FUZZ_EXAMPLES", "15"))

# The same examples every time. No shrinking: the examples are small, and what they meet depends on the calls before.
settings.register_profile(
    "argosy-fuzz",
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


class FuzzMesh:
    """What the tests call, and what they know of it."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.mesh = Mesh(folder)
        self.names = Names()
        # Administrators of the system work on organizations of their own: the others' must stay.
        self.system_names = Names("")
        self.services: dict[str, RunningService[Any]] = {}
        self._folder = folder
        self._stack = stack
        self._channels: dict[tuple[str, str], grpc.aio.Channel] = {}
        self._tokens: dict[tuple[str, int], Any] = {}

    async def start(self, postgres_server: postgres.Server, nats_url: str, **settings: Any) -> None:
        """Starts all services, in the order of the call graph."""
        for name, definition in DEFINITIONS.items():
            url = ""
            if definition.migrations is not None:
                url = await postgres_server.create_service_database(
                    f"fuzz_{name}_{secrets.token_hex(3)}", secrets.token_urlsafe()
                )
            own: dict[str, Any] = (
                {"http_listen": "127.0.0.1:0", "requests_per_minute": 1_000_000} if name == "gateway" else {}
            )
            if name in ("dataset", "training", "eval"):
                own["blob_root"] = f"file://{self._folder}/blobs/{name}"
            trusting = replace(definition, jwks=self._jwks)
            running = running_service(trusting, self.mesh, database_url=url, nats_url=nats_url, **own | settings)
            self.services[name] = await self._stack.enter_async_context(running)
        organization = identity_service_pb2.CreateOrganizationRequest(
            organization_id="acme", organization=identity_pb2.Organization(display_name="Acme")
        )
        await self.call(
            identity_service_pb2.DESCRIPTOR.services_by_name["IdentityService"].methods_by_name["CreateOrganization"],
            "identity",
            organization.SerializeToString(),
        )
        await self.seed()

    async def seed(self) -> None:
        """What only long work makes: a dataset with a version. All else comes from the fuzzed calls themselves."""
        service, data = "dataset", b'{"text": "one", "label": "a"}\n{"text": "two", "label": "b"}\n'
        digest = hashlib.sha256(data).hexdigest()
        stub = dataset_service_pb2_grpc.DatasetServiceStub(self.channel(service, OPERATOR))
        options: dict[str, Any] = {"metadata": self.mesh.metadata(role=options_pb2.ROLE_ADMIN), "timeout": 30}
        dataset = await stub.CreateDataset(
            pb.CreateDatasetRequest(parent="orgs/acme", dataset_id="seed", dataset=dataset_pb2.Dataset()), **options
        )
        upload = await stub.CreateUpload(
            pb.CreateUploadRequest(parent="orgs/acme", file_name="rows.jsonl", size=len(data)), **options
        )
        await stub.AppendUpload(pb.AppendUploadRequest(name=upload.name, data=data, sha256=digest), **options)
        await stub.CommitUpload(pb.CommitUploadRequest(name=upload.name, sha256=digest), **options)
        task = await stub.ImportVersion(pb.ImportVersionRequest(parent=dataset.name, upload=upload.name), **options)
        await self._carry_out(task.name)
        versions = await stub.ListDatasetVersions(pb.ListDatasetVersionsRequest(parent=dataset.name), **options)
        worked = await self._seed_work(versions.dataset_versions[0].name, options)
        for message in (dataset, upload, task, versions, *worked):
            self.names.learn(message)

    async def _seed_work(self, version: str, options: dict[str, Any]) -> list[Message]:
        """A project with items, one of them taken, and a data product: what a call of random content does not make."""
        human = human_work_service_pb2_grpc.HumanWorkServiceStub(self.channel("dataset", OPERATOR))
        catalogue = catalogue_service_pb2_grpc.CatalogueServiceStub(self.channel("dataset", OPERATOR))
        project = await human.CreateWorkProject(
            work.CreateWorkProjectRequest(
                parent="orgs/acme",
                work_project_id="seed",
                template="sentiment",
                work_project=human_work_pb2.WorkProject(overlap=2),
            ),
            **options,
        )
        items = [human_work_pb2.WorkItem(subject=f"rows/{number}") for number in range(20)]
        await human.AddWorkItems(work.AddWorkItemsRequest(parent=project.name, items=items), **options)
        taken = await human.TakeWork(work.TakeWorkRequest(name=project.name), **options)
        product = await catalogue.CreateDataProduct(
            catalogue_service_pb2.CreateDataProductRequest(
                parent="orgs/acme",
                data_product_id="seed",
                data_product=catalogue_pb2.DataProduct(dataset_version=version),
            ),
            **options,
        )
        return [project, taken, product]

    async def _carry_out(self, name: str) -> None:
        """Runs a task of dataset here, without Ray and without its worker."""
        app: Any = self.services["dataset"].app
        async with app.database.system() as uow:
            task = await store.get(uow, name)
            kind = next(kind for kind in app.kinds if kind.name == task.kind)
            spec = await kind.load(task, None)
            module, _, function = kind.entrypoint.partition(":")
            context = LocalContext(spec, blobs_write=app.blobs, blobs_read=app.blobs)
            result = await asyncio.to_thread(getattr(importlib.import_module(module), function), context)
            await kind.apply(task, result, uow)

    async def _jwks(self, app: Any) -> list[dict[str, str]]:
        """The keys of the test's tokens, and those with which identity signs what services ask it for."""
        del app
        keys = list(await self.mesh.jwks())
        if "identity" in self.services:
            identity: Any = self.services["identity"].app
            keys += await identity.jwks()
        return keys

    def channel(self, service: str, identity: str) -> grpc.aio.Channel:
        """A channel that is kept."""
        key = (service, identity)
        if key not in self._channels:
            self._channels[key] = self.mesh.channel(service, identity)
            self._stack.push_async_callback(self._channels[key].close)
        return self._channels[key]

    def names_for(self, method: MethodDescriptor) -> Names:
        """The names that the caller of a method speaks of."""
        return self.system_names if _needs_system(method) else self.names

    async def call(self, method: MethodDescriptor, service: str, body: bytes, timeout: float = 30) -> list[bytes]:
        """Calls with a token and a certificate that the method allows; the answers, at most three of a stream."""
        policy = read_policy(method)
        peer = sorted(policy.peers)[0] if policy.peers else OPERATOR
        org, role = ("system", options_pb2.ROLE_SYSTEM) if _needs_system(method) else ("acme", options_pb2.ROLE_ADMIN)
        metadata = self._tokens.setdefault((org, role), self.mesh.metadata(org=org, role=role, ttl=3600))
        channel = self.channel(service, peer)
        if not method.server_streaming:
            return [await channel.unary_unary(policy.path)(body, timeout=timeout, metadata=metadata)]
        answers: list[bytes] = []
        call = channel.unary_stream(policy.path)(body, timeout=timeout, metadata=metadata)
        async for answer in call:
            answers.append(answer)
            if len(answers) == 3:
                call.cancel()
                break
        return answers

    async def serving(self, service: str) -> bool:
        """What the health service says."""
        stub: Any = health_pb2_grpc.HealthStub(self.channel(service, OPERATOR))
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        return answer.status == health_pb2.HealthCheckResponse.SERVING


def _needs_system(method: MethodDescriptor) -> bool:
    return read_policy(method).role == options_pb2.ROLE_SYSTEM


def methods() -> list[tuple[str, MethodDescriptor]]:
    """(service, RPC) of everything that the services mount, creating ones first and deleting ones last."""
    events = event_pb2.DESCRIPTOR.services_by_name["EventService"]
    tasks = task_service_pb2.DESCRIPTOR.services_by_name["TaskService"]
    found: list[tuple[str, MethodDescriptor]] = []
    for name, definition in DEFINITIONS.items():
        mounted = [*definition.protos]
        mounted += [events] if definition.migrations is not None else []
        mounted += [tasks] if definition.task_kinds is not None else []
        found += [(name, method) for proto in mounted for method in proto.methods]
    return sorted(found, key=lambda pair: (_order(pair[1].name), SERVICES.index(pair[0])))


def _order(rpc: str) -> int:
    if rpc.startswith("Create"):
        return 0
    if rpc.startswith("Undelete"):
        return 3
    return 2 if rpc.startswith(("Delete", "Revoke")) else 1


def resident_bytes() -> int:
    """Memory of this process."""
    return psutil.Process().memory_info().rss
