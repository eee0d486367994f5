"""Model versions without long work: what `apply` makes of what an engine wrote."""

from __future__ import annotations

from typing import Any

from argosy.training.v1 import model_service_pb2, training_pb2
from argosy.training.v1 import training_service_pb2 as pb

from libs.common.blobs import BlobStore
from libs.common.clock import SYSTEM_CLOCK
from libs.common.tasks import Task
from libs.common.tasks import store as tasks
from services.training.jobs.run import RunTasks
from tests.integration.training.peers import Caller

TRAINING = "orgs/acme/trainings/packages"


def app(caller: Caller) -> Any:
    assert caller.service is not None
    return caller.service.app


async def finished_run(caller: Caller, content: bytes = b"weights") -> training_pb2.ModelVersion:
    """A run whose engine wrote one file: what `apply` makes of it."""
    await caller.project()
    await caller.training()
    run = await caller.RunTraining(pb.RunTrainingRequest(name=TRAINING))
    return await apply(caller, run, content)


async def apply(
    caller: Caller, run: training_pb2.TrainingRun, content: bytes, **others: bytes
) -> training_pb2.ModelVersion:
    """What comes of a run that wrote these weights; `others`: JSON files beside them."""
    parts = app(caller)
    blobs: BlobStore = parts.blobs
    files: list[dict[str, Any]] = []
    beside = {f"{name}.json": written for name, written in others.items()}
    for path, written in {"model.safetensors": content, **beside}.items():
        blob = await blobs.put(written)
        files.append({"path": path, "sha256": blob.sha256, "size": blob.size})
    result = {
        "manifest_digest": await blobs.commit({"kind": "training.model", "blobs": files}),
        "files": files,
        "parameter_count": 7,
        "context_length": 32,
        "architecture": "llama",
        "results": {"sft.last_loss": 0.5},
        "framework": {"torch": "2"},
    }
    kind = RunTasks(parts.database, blobs, parts.datasets, parts.signer, SYSTEM_CLOCK).kind()
    async with parts.database.system() as uow:
        answer = await kind.apply(await task_of(uow, run), result, uow)
    return await caller.GetModelVersion(model_service_pb2.GetModelVersionRequest(name=answer["model_version"]))


async def task_of(uow: Any, run: training_pb2.TrainingRun) -> Task:
    return await tasks.get(uow, run.task)


def gate_of(version: training_pb2.ModelVersion, **fields: Any) -> training_pb2.Gate:
    usual: dict[str, Any] = {
        "gate": "release",
        "open": True,
        "evaluation": "orgs/acme/evaluations/e1",
        "rule": "lower bound above the majority by 0.1",
        "figures": {"lower": 0.4, "baseline": 0.15},
        "model_digest": version.manifest_digest,
    }
    return training_pb2.Gate(**{**usual, **fields})


async def record(caller: Caller, version: training_pb2.ModelVersion, **fields: Any) -> Any:
    """As the evaluation service does it."""
    request = model_service_pb2.RecordGateRequest(name=version.name, gate=gate_of(version, **fields))
    return await caller.other("eval").RecordGate(request)


async def states(caller: Caller, version: str) -> list[tuple[str, str, str]]:
    request = model_service_pb2.ListModelVersionTransitionsRequest(parent=version, page_size=2)
    found: list[tuple[str, str, str]] = []
    while True:
        page = await caller.ListModelVersionTransitions(request)
        found += [(each.from_state, each.to_state, each.actor) for each in page.transitions]
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def two_versions(caller: Caller) -> tuple[str, str]:
    """Both approved."""
    first = await finished_run(caller)
    run = await caller.RunTraining(pb.RunTrainingRequest(name=TRAINING, run_id="again"))
    second = await apply(caller, run, b"other")
    for version in (first, second):
        await record(caller, version)
    return first.name, second.name
