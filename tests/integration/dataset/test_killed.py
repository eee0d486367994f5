"""kill -9 of the service, the job process and Ray workers: the same result, nothing lost, nothing doubled."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from argosy.common.v1 import options_pb2, task_pb2, task_service_pb2
from argosy.dataset.v1 import dataset_pb2
from argosy.dataset.v1 import dataset_service_pb2 as pb
from argosy.dataset.v1 import human_work_pb2 as work_pb
from argosy.dataset.v1 import human_work_service_pb2 as work_service_pb
from dataset_client import Client
from google.protobuf import json_format, struct_pb2

from deploy.local.nats import Server
from libs.common.blobs import BlobStore
from libs.common.ids import uuid7
from libs.common.testing.mesh import Mesh
from libs.common.testing.ray import RunningRay
from libs.compute.context import LocalContext
from services.dataset.domain.recipes import DEFAULT_RECIPE
from services.dataset.engines import cleaning
from services.dataset.engines.access import StoreBlobs
from services.dataset.engines.index import content_digest, save
from services.dataset.engines.writing import VersionWriter
from tests.conftest import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SEED = 20261121
WORDS = [f"{first}{second}" for first in ("ba", "ke", "lo", "mi", "nu") for second in ("rat", "sel", "tin", "vom")]
ROWS = 30_000
PEOPLE, ITEMS, OVERLAP = 6, 40, 3
# Of the process that people talk to; each costs its start.
KILLS = 2
MOODS = ("positive", "neutral", "negative")
PROJECT = "orgs/acme/workProjects/moods"
# Somebody who waits for a service that starts again asks so often, and gives up after so long.
_PAUSE, _PATIENCE = 0.2, 120.0


class Process:
    """One role of the service, as a process that is killed and started again."""

    def __init__(self, role: str, folder: Path, environment: dict[str, str]) -> None:
        self._command = [sys.executable, "-m", "killable_service", str(folder / "jwk.json"), "--role", role]
        self._environment = environment
        self._log = folder / f"{role}.log"
        self.start()

    def start(self) -> None:
        """Starts it; callers wait for its answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()

    def replace(self) -> None:
        """kill -9, and another one in its place."""
        assert self._process.poll() is None, "it ended by itself"
        self.kill()
        self.start()


@asynccontextmanager
async def service(
    mesh: Mesh, folder: Path, database_url: str, nats: Server, ray: RunningRay | None, roles: list[str]
) -> AsyncGenerator[list[Process]]:
    """The roles as processes of their own, killed at the end."""
    (folder / "jwk.json").write_text(json.dumps(mesh.signing_key.jwk()), encoding="utf-8")
    mesh.peers["dataset"] = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ,
        **(ray.environment if ray is not None else {}),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "ARGOSY_HOME": str(folder),
        "ARGOSY_PKI_DIR": str(mesh.pki),
        "ARGOSY_BLOB_ROOT": f"file://{folder}/blobs",
        "ARGOSY_NATS_URL": nats.url(),
        "ARGOSY_RAY_ADDRESS": ray.address if ray is not None else "",
        "ARGOSY_DATASET_LISTEN": mesh.peers["dataset"],
        "ARGOSY_DATASET_DATABASE_URL": database_url,
    }
    async with AsyncExitStack() as stack:
        processes: list[Process] = []
        for role in roles:
            processes.append(Process(role, folder, environment))
            stack.callback(processes[-1].kill)
        yield processes


async def patient(call: Callable[[Any], Any], request: Any) -> Any:
    """The answer of a service that may be killed at any time: the same request again until there is one."""
    async with asyncio.timeout(_PATIENCE):
        while True:
            try:
                return await call(request)
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
            await asyncio.sleep(_PAUSE)


async def until(client: Client, name: str, wanted: Callable[[task_pb2.Task], bool]) -> task_pb2.Task:
    async with asyncio.timeout(_PATIENCE):
        while not wanted(task := await patient(client.GetTask, task_service_pb2.GetTaskRequest(name=name))):
            await asyncio.sleep(_PAUSE)
    return task


def ended(task: task_pb2.Task) -> bool:
    return task.state >= task_pb2.Task.STATE_SUCCEEDED


async def succeeded(client: Client, task: task_pb2.Task) -> dataset_pb2.DatasetVersion:
    """The version that a task makes in the end."""
    done = await until(client, task.name, ended)
    assert done.state == task_pb2.Task.STATE_SUCCEEDED, done
    name = str(done.result["version"])
    return await patient(client.GetDatasetVersion, pb.GetDatasetVersionRequest(name=name))


def ray_workers() -> list[psutil.Process]:
    """Processes of our Ray that work now: carriers of tasks, and those that compute shards. Ray's own agents have
    such titles too, and take the node with them."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            title = " ".join(child.cmdline())
            if title.startswith(("ray::TaskCarrier", "ray::judge_shard")) and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return sorted(found, key=lambda process: process.pid)


def texts_of_rows() -> list[str]:
    """Texts of which some come again, some are nearly alike, and some are dropped by a rule."""
    chance = random.Random(SEED)
    texts = [" ".join(chance.choices(WORDS, k=40)) for _ in range(ROWS)]
    for at in range(0, ROWS, 10):
        texts[at] = chance.choice([texts[at + 1], f"{texts[at + 1]} more", "short"])
    return texts


def undisturbed(folder: Path, texts: list[str]) -> tuple[str, str]:
    """The content digests of the rows and of those that a cleaning leaves, in one process that nobody kills."""
    store = BlobStore(f"file://{folder}/alone")
    writer = VersionWriter(StoreBlobs(store))
    for number, text in enumerate(texts, 1):
        writer.add({"text": text}, "rows.jsonl", number)
    index = writer.finish()
    manifest = save(index, StoreBlobs(store)).manifest_digest
    spec = {"version": manifest, "grant": "", "text_column": "text", "recipe": DEFAULT_RECIPE.to_json()}
    return content_digest(index), cleaning.run(LocalContext(spec, blobs_write=store, blobs_read=store))[
        "content_digest"
    ]


async def test_import_and_cleaning_end_as_if_nobody_had_been_killed(
    tmp_path: Path, database_url: str, nats_server: Server, ray: RunningRay
) -> None:
    chance, mesh, texts = random.Random(SEED), Mesh(tmp_path), texts_of_rows()
    async with service(mesh, tmp_path, database_url, nats_server, ray, ["rpc", "jobs"]) as (rpc, jobs):
        client = Client(mesh, None)  # type: ignore[arg-type]
        alone = asyncio.create_task(asyncio.to_thread(undisturbed, tmp_path, texts))
        for name in ("calm", "hurt"):
            dataset = dataset_pb2.Dataset(type=dataset_pb2.DATASET_TYPE_TEXT)
            request = pb.CreateDatasetRequest(parent="orgs/acme", dataset_id=name, dataset=dataset, request_id=uuid7())
            await patient(client.CreateDataset, request)
        data = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
        upload = await client.upload(data)
        wanted_rows, wanted_clean = await alone

        def importing(name: str) -> pb.ImportVersionRequest:
            parent = f"orgs/acme/datasets/{name}"
            return pb.ImportVersionRequest(parent=parent, upload=upload.name, request_id=uuid7())

        calm = await succeeded(client, await patient(client.ImportVersion, importing("calm")))
        imported = await patient(client.ImportVersion, importing("hurt"))
        cleaned = await patient(client.CleanVersion, pb.CleanVersionRequest(name=calm.name, request_id=uuid7()))
        await hurt(chance, rpc, jobs)
        rows, clean = await succeeded(client, imported), await succeeded(client, cleaned)
        attempts = [await until(client, task.name, ended) for task in (imported, cleaned)]
        assert max(task.attempt for task in attempts) > 1, "the work was done before anything could be killed"
        assert (rows.content_digest, rows.row_count) == (wanted_rows, ROWS)
        assert clean.content_digest == wanted_clean
        for name, count in (("hurt", 1), ("calm", 2)):
            listed = await patient(
                client.ListDatasetVersions, pb.ListDatasetVersionsRequest(parent=f"orgs/acme/datasets/{name}")
            )
            assert len(listed.dataset_versions) == count
        await client.close()


async def hurt(chance: random.Random, rpc: Process, jobs: Process) -> None:
    """Kills two Ray workers, the service and the job process at seeded moments."""
    for _ in range(2):
        await kill_worker(chance)
    rpc.replace()
    await asyncio.sleep(chance.uniform(0, 2))
    jobs.replace()


async def kill_worker(chance: random.Random) -> None:
    """Waits until a Ray worker works, and kills one of them."""
    async with asyncio.timeout(_PATIENCE):
        while True:
            await asyncio.sleep(chance.uniform(0.05, 0.3))
            with suppress(psutil.NoSuchProcess):
                if workers := ray_workers():
                    chance.choice(workers).kill()
                    return


async def test_no_answer_is_lost_or_doubled_when_the_service_is_killed(
    tmp_path: Path, database_url: str, nats_server: Server
) -> None:
    chance, mesh = random.Random(SEED), Mesh(tmp_path)
    async with service(mesh, tmp_path, database_url, nats_server, None, ["rpc"]) as (rpc,):
        client = Client(mesh, None)  # type: ignore[arg-type]
        await offer(client)
        people = [client.other(subject=f"users/p{n}", role=options_pb2.ROLE_VIEWER) for n in range(PEOPLE)]
        async with asyncio.TaskGroup() as group:
            working = [group.create_task(work(somebody, number)) for number, somebody in enumerate(people)]
            kills = 0
            while kills < KILLS and not all(task.done() for task in working):
                await asyncio.sleep(chance.uniform(0.5, 1.5))
                rpc.replace()
                await patient(client.GetWorkProject, work_service_pb.GetWorkProjectRequest(name=PROJECT))
                kills += 1
        assert kills == KILLS, "everybody was done before the service could be killed"
        given = {key: mood for task in working for key, mood in task.result().items()}
        assert sum(len(task.result()) for task in working) == ITEMS * OVERLAP
        assert await stored(client) == given
        for somebody in (client, *people):
            await somebody.close()


async def offer(client: Client) -> None:
    """A project with items for everybody."""
    project = work_pb.WorkProject(display_name="Moods", overlap=OVERLAP)
    made = work_service_pb.CreateWorkProjectRequest(
        parent="orgs/acme", work_project_id="moods", template="sentiment", work_project=project, request_id=uuid7()
    )
    await patient(client.CreateWorkProject, made)
    items = [work_pb.WorkItem(payload=struct({"text": f"text {number}"})) for number in range(ITEMS)]
    added = work_service_pb.AddWorkItemsRequest(parent=PROJECT, items=items, request_id=uuid7())
    await patient(client.AddWorkItems, added)


async def work(somebody: Client, number: int) -> dict[tuple[str, str], str]:
    """Takes and submits until there is nothing left; what was answered, by item and person."""
    chance = random.Random(number)
    answered: dict[tuple[str, str], str] = {}
    while True:
        taking = work_service_pb.TakeWorkRequest(name=PROJECT, request_id=uuid7())
        taken = await patient(somebody.TakeWork, taking)
        if not taken.HasField("assignment"):
            return answered
        mood = chance.choice(MOODS)
        await asyncio.sleep(chance.uniform(0, 0.4))
        answer = work_service_pb.SubmitWorkRequest(
            name=taken.assignment.name, answer=struct({"sentiment": mood}), active_seconds=1, request_id=uuid7()
        )
        submitted = await patient(somebody.SubmitWork, answer)
        # As if the answer had been lost on its way: the first one again, and nothing happens twice.
        assert await patient(somebody.SubmitWork, answer) == submitted
        assert await patient(somebody.TakeWork, taking) == taken
        key = (taken.assignment.item.name, f"users/p{number}")
        assert key not in answered, "an item came to one person twice"
        answered[key] = mood


async def stored(client: Client) -> dict[tuple[str, str], str]:
    """What the service has, by item and person; every item has as many answers as were asked for."""
    found: dict[tuple[str, str], str] = {}
    listed = await client.ListWorkItems(work_service_pb.ListWorkItemsRequest(parent=PROJECT, page_size=1000))
    assert len(listed.items) == ITEMS
    for item in listed.items:
        request = work_service_pb.ListWorkAssignmentsRequest(parent=item.name)
        assignments = (await client.ListWorkAssignments(request)).assignments
        assert len(assignments) == OVERLAP, item.name
        found |= {(item.name, one.annotator): one.answer["sentiment"] for one in assignments}
    return found


def struct(value: dict[str, Any]) -> struct_pb2.Struct:
    return json_format.ParseDict(value, struct_pb2.Struct())
