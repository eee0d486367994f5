"""Evaluations: what is refused, what the engine reports, and verdicts that arrive once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
from argosy.common.v1 import resource_pb2, task_pb2, task_service_pb2_grpc
from argosy.dataset.v1 import dataset_pb2, dataset_service_pb2, dataset_service_pb2_grpc
from argosy.deploy.v1 import (
    deploy_pb2,
    deploy_service_pb2_grpc,
    inference_service_pb2,
    inference_service_pb2_grpc,
)
from argosy.eval.v1 import eval_pb2, eval_service_pb2, eval_service_pb2_grpc
from argosy.identity.v1 import token_service_pb2_grpc
from argosy.training.v1 import model_service_pb2, model_service_pb2_grpc, training_pb2
from tokenizers import Tokenizer, models, pre_tokenizers

from deploy.local import nats
from libs.common.blobs import BlobStore
from libs.common.clock import SYSTEM_CLOCK
from libs.common.config import CommonSettings
from libs.common.errors import ArgosyError, not_found
from libs.common.rpc.client import Channels
from libs.common.service import RunningService
from libs.common.tasks import store as task_store
from libs.common.testing.mesh import Mesh
from libs.common.testing.service import running_service
from services.eval.app import DEFINITION
from services.eval.clients.training import TrainingClient
from services.eval.domain.evaluations import GATE_PENDING, GATE_RECORDED, SUCCEEDED, Evaluation
from services.eval.jobs.gates import GateRecorder
from services.eval.store.repositories import Evaluations
from tests.integration.app.stubs import Add, Identity, fail, served
from tests.unit.factories import resource_fields
from tests.unit.training.samples import TEMPLATE, WORDS, rows, write_version

MODEL = "orgs/acme/modelProjects/m/versions/1"
TEST = "orgs/acme/datasets/docs-test/versions/1"
TRAIN = "orgs/acme/datasets/docs/versions/1"
TEACHER = "orgs/acme/modelProjects/m/versions/2"
TAUGHT = "orgs/acme/datasets/answers/versions/1"
REPLICA = "orgs/acme/replicas/r1"
_ENGINE = """
import sys, orjson
from libs.common.blobs import BlobStore
from libs.compute.context import LocalContext
from services.eval.engines.evaluate import run
spec = orjson.loads(sys.stdin.buffer.read())
store = BlobStore(spec.pop("store"))
print(orjson.dumps(run(LocalContext(spec, blobs_read=store, blobs_write=store))).decode())
"""


class Peers(
    deploy_service_pb2_grpc.DeployServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
    dataset_service_pb2_grpc.DatasetServiceServicer,
    task_service_pb2_grpc.TaskServiceServicer,
    inference_service_pb2_grpc.InferenceServiceServicer,
):
    """Deploy with one replica, training with one model, dataset with two versions, and the replica."""

    def __init__(self) -> None:
        self.address = ""
        self.leased: list[str] = []
        self.released: list[str] = []
        self.gates: list[model_service_pb2.RecordGateRequest] = []
        self.refuses_gates = False
        self.broken = False
        self.dies = False
        self.leaked = 0
        self.trained_on: list[str] = []
        self.taught_on: list[str] = []
        self.checked: list[str] = []

    async def LeaseReplica(self, request: Any, context: Any) -> deploy_pb2.Replica:
        self.leased.append(request.holder)
        return deploy_pb2.Replica(name=REPLICA, state=deploy_pb2.Replica.STATE_STARTING)

    async def RenewReplica(self, request: Any, context: Any) -> deploy_pb2.Replica:
        state = deploy_pb2.Replica.STATE_FAILED if self.broken else deploy_pb2.Replica.STATE_READY
        return deploy_pb2.Replica(
            name=REPLICA, state=state, address=self.address, audience=REPLICA, context_length=64, message="no memory"
        )

    async def ReleaseReplica(self, request: Any, context: Any) -> deploy_pb2.Replica:
        self.released.append(request.name)
        return deploy_pb2.Replica(name=request.name)

    async def GetModelVersion(self, request: Any, context: Any) -> training_pb2.ModelVersion:
        if request.name not in (MODEL, TEACHER):
            await fail(context, not_found(request.name))
        learned = self.trained_on if request.name == MODEL else self.taught_on
        parents = [resource_pb2.Parent(name=name, relation="trained_on") for name in learned]
        if request.name == MODEL and self.taught_on:
            parents.append(resource_pb2.Parent(name=TEACHER, relation="learned_from"))
        lineage = resource_pb2.Lineage(parents=parents)
        return training_pb2.ModelVersion(name=request.name, manifest_digest="d" * 64, lineage=lineage)

    async def DownloadModelFile(
        self, request: Any, context: Any
    ) -> AsyncGenerator[model_service_pb2.DownloadModelFileResponse]:
        words = sorted({word for line in WORDS.values() for word in line.split()})
        vocabulary = {word: number for number, word in enumerate(["[UNK]", *words])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
        yield model_service_pb2.DownloadModelFileResponse(data=tokenizer.to_str().encode())

    async def RecordGate(self, request: Any, context: Any) -> training_pb2.ModelVersion:
        self.gates.append(request)
        if self.refuses_gates:
            await fail(context, ArgosyError("STATE_CONFLICT", "The model was deleted."))
        return training_pb2.ModelVersion(name=request.name)

    async def GetDatasetVersion(self, request: Any, context: Any) -> dataset_pb2.DatasetVersion:
        if request.name not in (TEST, TRAIN):
            await fail(context, not_found(request.name))
        return dataset_pb2.DatasetVersion(name=request.name, manifest_digest="e" * 64)

    async def CheckLeakage(self, request: Any, context: Any) -> task_pb2.Task:
        if request.train_version != TRAIN:
            await fail(context, not_found(request.train_version))
        self.checked.append(f"{request.name} in {request.train_version} by {request.text_column}")
        return task_pb2.Task(name="orgs/acme/dataset/tasks/t", state=task_pb2.Task.STATE_QUEUED)

    async def GetTask(self, request: Any, context: Any) -> task_pb2.Task:
        return task_pb2.Task(name=request.name, state=task_pb2.Task.STATE_SUCCEEDED)

    async def GetLeakageCheck(self, request: Any, context: Any) -> dataset_pb2.LeakageCheck:
        return dataset_pb2.LeakageCheck(test_rows=120, exact_rows=self.leaked, leaked_share=self.leaked / 120)

    async def GrantRead(self, request: Any, context: Any) -> dataset_service_pb2.GrantReadResponse:
        return dataset_service_pb2.GrantReadResponse(manifest_digest="e" * 64, grant="grant")

    async def Generate(self, request: Any, context: Any) -> AsyncGenerator[inference_service_pb2.GenerateResponse]:
        """Knows two of the three classes by their words; without them it says `ship`."""
        for index, prompt in enumerate(request.prompts):
            assert prompt.endswith("\nPackage:")
            known = [label for label in ("bank", "zoo") if prompt.split()[0] in WORDS[label].split()]
            answer = known[0].upper() if known else "ship"
            yield inference_service_pb2.GenerateResponse(index=index, text=f" {answer}.", finish_reason="stop")
            if self.dies:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


@pytest.fixture
def mesh(tmp_path: Path) -> Mesh:
    return Mesh(tmp_path)


@pytest.fixture
async def peers(mesh: Mesh) -> AsyncIterator[Peers]:
    peers, identity = Peers(), Identity(mesh)

    def add_dataset(server: grpc.aio.Server) -> None:
        dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(peers, server)
        task_service_pb2_grpc.add_TaskServiceServicer_to_server(peers, server)

    servers: dict[str, Add] = {
        "identity": lambda s: token_service_pb2_grpc.add_TokenServiceServicer_to_server(identity, s),
        "dataset": add_dataset,
        "training": lambda s: model_service_pb2_grpc.add_ModelServiceServicer_to_server(peers, s),
        "deploy": lambda s: deploy_service_pb2_grpc.add_DeployServiceServicer_to_server(peers, s),
        "replica": lambda s: inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(peers, s),
    }
    async with served(mesh, servers) as addresses:
        peers.address = addresses["replica"]
        yield peers


async def evaluate(
    mesh: Mesh, folder: Path, trained_on: Sequence[str] = (), **spec: Any
) -> tuple[int, dict[str, Any], str]:
    """Runs the engine in a process of its own, as Ray would: exit status, result, what it complained about."""
    store = BlobStore(f"file://{folder}/blobs")
    # Two of three test rows are of `ship`, which is the rarest class of the rows learned from.
    asked = [row for row in rows(300) if row["label"] == "ship"][:80] + [r for r in rows(300) if r["label"] != "ship"][
        :40
    ]
    learned = [row for row in rows(300, seed=1) if row["label"] != "ship"] + rows(30, seed=2)
    given = {
        "store": f"file://{folder}/blobs",
        "evaluation": "orgs/acme/evaluations/e1",
        "model_version": MODEL,
        "spec": {"prompt_template": TEMPLATE, "answers": sorted(WORDS), "gate": "release", "gate_margin": 0.1} | spec,
        "dataset": {"name": TEST, "manifest": write_version(store, asked), "grant": "unused"},
        "baseline": {"name": TRAIN, "manifest": write_version(store, learned), "grant": "unused"},
        "trained_on": list(trained_on),
        "mesh": {"pki_dir": str(mesh.pki), "home": str(folder), "peers": mesh.peers},
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _ENGINE,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, complaint = await asyncio.wait_for(process.communicate(orjson.dumps(given)), 60)
    return process.returncode or 0, orjson.loads(out) if out else {}, complaint.decode()


async def test_the_engine_reports_what_the_replica_answered(mesh: Mesh, peers: Peers, tmp_path: Path) -> None:
    status, result, complaint = await evaluate(mesh, tmp_path, masked_words=sorted(" ".join(WORDS.values()).split()))
    assert status == 0, complaint
    report = result["report"]
    # Case and a full stop do not matter: every answer is right.
    assert (report["rows"], report["score"]["correct"], report["mistakes"]) == (120, 120, [])
    # The strongest constant answer is that of the test rows, not the one that was frequent in training.
    assert (report["baselines"]["majority"]["correct"], report["masked_score"]["correct"]) == (80, 80)
    assert report["baselines"]["bag_of_words"]["correct"] > 80
    assert report["verdict"]["open"] is True
    assert report["classes"][0]["answer"] == "ship"
    assert (peers.leased, peers.released) == (["orgs/acme/evaluations/e1"], [REPLICA])
    lines = BlobStore(f"file://{tmp_path}/blobs").read_sync(result["samples"]["sha256"]).splitlines()
    assert len(lines) == 120
    assert orjson.loads(lines[0])["expected"] == "ship"


async def test_the_gate_stays_shut_within_the_margin(mesh: Mesh, peers: Peers, tmp_path: Path) -> None:
    status, result, complaint = await evaluate(mesh, tmp_path, gate_margin=0.4)
    assert status == 0, complaint
    assert result["report"]["verdict"]["open"] is False


async def test_the_gate_stays_shut_for_a_model_that_has_learned_the_test_rows(
    mesh: Mesh, peers: Peers, tmp_path: Path
) -> None:
    for leaked, is_open in ((1, True), (2, False)):
        peers.leaked = leaked
        status, result, complaint = await evaluate(mesh, tmp_path, [TRAIN])
        assert status == 0, complaint
        report = result["report"]
        assert report["leakage"][0]["exact_rows"] == leaked
        assert report["verdict"]["open"] is is_open, report["verdict"]
    assert peers.checked == [f"{TEST} in {TRAIN} by text"] * 2
    status, result, complaint = await evaluate(mesh, tmp_path, ["orgs/acme/datasets/gone/versions/1"])
    assert status == 0, complaint
    assert result["report"]["verdict"]["open"] is False
    assert "does not exist" in result["report"]["leakage"][0]["problem"]


async def test_a_replica_that_fails_is_given_back(mesh: Mesh, peers: Peers, tmp_path: Path) -> None:
    peers.broken = True
    status, _, complaint = await evaluate(mesh, tmp_path)
    assert status != 0
    assert "EngineInterrupted: the evaluation replica failed: no memory" in complaint
    assert peers.released == [REPLICA]


async def test_a_replica_that_dies_while_it_answers_interrupts(mesh: Mesh, peers: Peers, tmp_path: Path) -> None:
    """Interrupted, not failed: another attempt gets another replica."""
    peers.dies = True
    status, _, complaint = await evaluate(mesh, tmp_path)
    assert status != 0
    assert "EngineInterrupted: the evaluation replica went away" in complaint
    assert peers.released == [REPLICA]


@pytest.fixture
async def service(
    mesh: Mesh, peers: Peers, database_url: str, nats_server: nats.Server, tmp_path: Path
) -> AsyncIterator[RunningService[Any]]:
    blobs = f"file://{tmp_path}/eval"
    running = running_service(DEFINITION, mesh, database_url=database_url, nats_url=nats_server.url(), blob_root=blobs)
    async with running as service:
        yield service


@pytest.fixture
async def channels(mesh: Mesh, service: RunningService[Any]) -> AsyncIterator[Channels]:
    channels = Channels(CommonSettings(peers=mesh.peers, pki_dir=mesh.pki), "gateway")
    yield channels
    await channels.close()


async def test_evaluations_that_cannot_run_are_refused_and_leave_nothing(
    mesh: Mesh, peers: Peers, service: RunningService[Any], channels: Channels
) -> None:
    stub, metadata = channels.stub(eval_service_pb2_grpc.EvalServiceStub, "eval"), mesh.metadata()

    async def create(spec: Any = None, **fields: str) -> eval_pb2.Evaluation:
        given: dict[str, Any] = {"model_version": MODEL, "dataset_version": TEST, **fields}
        wanted = eval_pb2.Evaluation(spec=spec or eval_pb2.EvaluationSpec(), **given)
        request = eval_service_pb2.CreateEvaluationRequest(parent="orgs/acme", evaluation=wanted)
        return await stub.CreateEvaluation(request, metadata=metadata)

    refused = [
        ("INVALID_FIELD", "evaluation.model_version", create(model_version="")),
        ("INVALID_FIELD", "evaluation.dataset_version", create(dataset_version="")),
        (
            "INVALID_FIELD",
            "evaluation.spec.prompt_template",
            create(eval_pb2.EvaluationSpec(prompt_template="no place")),
        ),
        ("NOT_FOUND", "orgs/rival/", create(model_version="orgs/rival/modelProjects/m/versions/1")),
        ("NOT_FOUND", "datasets/none", create(dataset_version="orgs/acme/datasets/none/versions/1")),
        ("NOT_FOUND", "datasets/none", create(baseline_version="orgs/acme/datasets/none/versions/1")),
    ]
    for reason, named, call in refused:
        with pytest.raises(ArgosyError) as raised:
            await call
        assert raised.value.reason == reason, raised.value.message
        assert named in raised.value.message
    listed = eval_service_pb2.ListEvaluationsRequest(parent="orgs/acme")
    assert not (await stub.ListEvaluations(listed, metadata=metadata)).evaluations
    peers.trained_on = [TRAIN]
    made = await create()
    assert (made.model_digest, [p.relation for p in made.lineage.parents]) == ("d" * 64, ["evaluates", "evaluated_on"])
    assert service.app is not None
    async with service.app.database.system(read_only=True) as uow:
        assert (await task_store.get(uow, made.task)).input["trained_on"] == [TRAIN]
    # What its teacher was trained on counts as well.
    peers.taught_on = [TAUGHT]
    taught = await create()
    async with service.app.database.system(read_only=True) as uow:
        assert (await task_store.get(uow, taught.task)).input["trained_on"] == [TRAIN, TAUGHT]
    with pytest.raises(ArgosyError) as raised:
        await stub.ListSamples(eval_service_pb2.ListSamplesRequest(parent=made.name), metadata=metadata)
    assert raised.value.reason == "STATE_CONFLICT"


def decided() -> Evaluation:
    """An evaluation whose verdict training does not know yet."""
    share = {"value": 0.5, "lower": 0.4, "upper": 0.6, "correct": 50, "total": 100}
    verdict = {"gate": "release", "open": True, "rule": "r", "reason": "because", "margin": 0.1}
    return Evaluation(
        **resource_fields("orgs/acme/evaluations/e1"),
        state=SUCCEEDED,
        model_version=MODEL,
        dataset_version=TEST,
        model_digest="d" * 64,
        report={"score": share, "baselines": {"majority": share | {"value": 0.2}}, "verdict": verdict},
        gate_state=GATE_PENDING,
    )


async def state_of_gate(service: RunningService[Any]) -> str:
    assert service.app is not None
    async with service.app.database.system(read_only=True) as uow:
        return (await Evaluations(uow).get("orgs/acme/evaluations/e1")).gate_state


async def test_a_kill_after_the_gate_was_recorded_records_it_once(
    mesh: Mesh, peers: Peers, service: RunningService[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert service.app is not None
    database = service.app.database
    async with database.system() as uow:
        await Evaluations(uow).insert(decided())
    channels = Channels(CommonSettings(peers=mesh.peers, pki_dir=mesh.pki), "eval")
    try:

        async def killed(*_: object) -> None:
            raise asyncio.CancelledError

        with monkeypatch.context() as patch:
            patch.setattr(Evaluations, "save", killed)
            with pytest.raises(asyncio.CancelledError):
                await GateRecorder(database, TrainingClient(channels), SYSTEM_CLOCK).record_pending()
        assert (len(peers.gates), await state_of_gate(service)) == (1, GATE_PENDING)
        recorder = GateRecorder(database, TrainingClient(channels), SYSTEM_CLOCK)
        await recorder.record_pending()
        assert await state_of_gate(service) == GATE_RECORDED
        # The same request to the byte, under the same id: training answers the second one from memory.
        assert len(peers.gates) == 2
        assert peers.gates[0] == peers.gates[1]
        assert peers.gates[0].request_id
        assert peers.gates[0].gate.figures["margin"] == 0.1
        await recorder.record_pending()
        assert len(peers.gates) == 2
    finally:
        await channels.close()


async def test_a_gate_that_training_refuses_is_not_sent_for_ever(
    mesh: Mesh, peers: Peers, service: RunningService[Any]
) -> None:
    assert service.app is not None
    async with service.app.database.system() as uow:
        await Evaluations(uow).insert(decided())
    peers.refuses_gates = True
    channels = Channels(CommonSettings(peers=mesh.peers, pki_dir=mesh.pki), "eval")
    try:
        recorder = GateRecorder(service.app.database, TrainingClient(channels), SYSTEM_CLOCK)
        for _ in range(2):
            await recorder.record_pending()
    finally:
        await channels.close()
    assert (len(peers.gates), await state_of_gate(service)) == (1, "REFUSED")
