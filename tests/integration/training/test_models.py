"""Model versions, gates and trainings over the wire; no long work."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from argosy.common.v1 import options_pb2, resource_pb2, task_pb2, task_service_pb2
from argosy.training.v1 import model_service_pb2, training_pb2
from argosy.training.v1 import training_service_pb2 as pb
from google.protobuf import field_mask_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from libs.common.blobs import BlobStore
from libs.common.clock import SYSTEM_CLOCK
from libs.common.tasks import store as tasks
from services.training.jobs.sweep import sweep
from tests.integration.training.peers import HELDOUT, PROJECT, TRAIN, Caller, FakeDataset, refusal, spec_of
from tests.integration.training.versions import TRAINING, app, apply, finished_run, gate_of, record, states, task_of


async def test_versions_are_numbered_and_registered(served: Caller) -> None:
    first = await finished_run(served)
    assert first.name == f"{PROJECT}/versions/1"
    assert first.state == training_pb2.ModelVersion.STATE_REGISTERED
    by_training = ("REGISTERED", "REGISTERED", "services/training")
    assert await states(served, first.name) == [("", "REGISTERED", "users/alice"), by_training, by_training]
    run = await served.RunTraining(pb.RunTrainingRequest(name=TRAINING, run_id="again"))
    second = await apply(served, run, b"other")
    assert second.name == f"{PROJECT}/versions/2"
    listed = await served.ListModelVersions(model_service_pb2.ListModelVersionsRequest(parent=PROJECT))
    assert [version.name for version in listed.model_versions] == [second.name, first.name]


async def test_gate_opens_and_shuts_and_every_state_is_kept(served: Caller) -> None:
    version = await finished_run(served)
    opened = await record(served, version)
    assert opened.state == training_pb2.ModelVersion.STATE_APPROVED
    shut = await record(served, version, open=False, evaluation="orgs/acme/evaluations/e2")
    assert shut.state == training_pb2.ModelVersion.STATE_REJECTED
    assert [gate.evaluation for gate in shut.gates] == ["orgs/acme/evaluations/e2"]
    by_eval = "services/eval"
    assert (await states(served, version.name))[3:] == [
        ("REGISTERED", "REGISTERED", by_eval),
        ("REGISTERED", "APPROVED", by_eval),
        ("APPROVED", "REJECTED", by_eval),
    ]


async def test_an_evaluation_decides_once(served: Caller) -> None:
    version = await finished_run(served)
    opened = await record(served, version)
    again = await record(served, version, open=False)
    assert again.state == training_pb2.ModelVersion.STATE_APPROVED
    assert again.etag == opened.etag
    assert len(await states(served, version.name)) == 5


async def test_an_old_decision_does_not_overrule_a_new_one(served: Caller) -> None:
    version = await finished_run(served)
    await record(served, version)
    old = Timestamp(seconds=1_700_000_000)
    late = await record(served, version, open=False, evaluation="orgs/acme/evaluations/old", decide_time=old)
    assert late.state == training_pb2.ModelVersion.STATE_APPROVED


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model_digest": "0" * 64}, "STATE_CONFLICT"),
        ({"model_digest": ""}, "INVALID_FIELD"),
        ({"evaluation": ""}, "INVALID_FIELD"),
        ({"gate": "Not A Gate"}, "INVALID_FIELD"),
    ],
)
async def test_wrong_verdicts_are_refused(served: Caller, fields: dict[str, Any], reason: str) -> None:
    version = await finished_run(served)
    assert (await refusal(record(served, version, **fields))).reason == reason
    assert len(await states(served, version.name)) == 3


async def test_only_eval_records_gates_and_only_peers_get_grants(served: Caller) -> None:
    version = await finished_run(served)
    request = model_service_pb2.RecordGateRequest(name=version.name, gate=gate_of(version))
    assert (await refusal(served.RecordGate(request))).reason == "PEER_NOT_ALLOWED"
    grant = model_service_pb2.GrantModelReadRequest(name=version.name, holder="replica-1", ttl_seconds=60)
    assert (await refusal(served.GrantModelRead(grant))).reason == "PEER_NOT_ALLOWED"
    granted = await served.other("deploy").GrantModelRead(grant)
    store = BlobStore.from_grant(granted.grant)
    assert granted.manifest_digest == version.manifest_digest
    assert store.read_sync(version.files[0].sha256) == b"weights"


async def test_deleted_version_is_archived_and_comes_back_as_its_gate_says(served: Caller) -> None:
    version = await finished_run(served)
    await record(served, version)
    name = version.name
    deleted = await served.DeleteModelVersion(model_service_pb2.DeleteModelVersionRequest(name=name))
    assert deleted.state == training_pb2.ModelVersion.STATE_ARCHIVED
    gone = await refusal(served.GetModelVersion(model_service_pb2.GetModelVersionRequest(name=name)))
    assert gone.reason == "NOT_FOUND"
    back = await served.UndeleteModelVersion(model_service_pb2.UndeleteModelVersionRequest(name=name))
    assert back.state == training_pb2.ModelVersion.STATE_APPROVED
    assert [to for _, to, _ in await states(served, name)][3:] == ["REGISTERED", "APPROVED", "ARCHIVED", "APPROVED"]
    twice = await refusal(served.UndeleteModelVersion(model_service_pb2.UndeleteModelVersionRequest(name=name)))
    assert twice.reason == "STATE_CONFLICT"


async def test_another_organization_sees_nothing(served: Caller) -> None:
    version = await finished_run(served)
    stranger = served.other(org="globex", subject="users/mallory", role=options_pb2.ROLE_ADMIN)
    calls = [
        stranger.GetModelVersion(model_service_pb2.GetModelVersionRequest(name=version.name)),
        stranger.GetModelProject(model_service_pb2.GetModelProjectRequest(name=PROJECT)),
        stranger.ListModelVersions(model_service_pb2.ListModelVersionsRequest(parent=PROJECT)),
        stranger.DeleteModelVersion(model_service_pb2.DeleteModelVersionRequest(name=version.name)),
        stranger.GetTraining(pb.GetTrainingRequest(name=TRAINING)),
        stranger.RunTraining(pb.RunTrainingRequest(name=TRAINING)),
        stranger.PreflightTraining(pb.PreflightTrainingRequest(name=TRAINING)),
        stranger.GetTrainingRun(pb.GetTrainingRunRequest(name=f"{TRAINING}/runs/1")),
        stranger.ListModelVersionTransitions(model_service_pb2.ListModelVersionTransitionsRequest(parent=version.name)),
    ]
    for call in calls:
        assert (await refusal(call)).reason == "NOT_FOUND"
    download = model_service_pb2.DownloadModelFileRequest(name=version.name, path="model.safetensors")
    stream = stranger.DownloadModelFile(download)
    assert (await refusal(stream.read())).reason == "NOT_FOUND"


async def test_download_names_what_is_wrong(served: Caller) -> None:
    version = await finished_run(served)
    request = model_service_pb2.DownloadModelFileRequest(name=version.name, path="../secrets")
    assert (await refusal(served.DownloadModelFile(request).read())).reason == "NOT_FOUND"
    request = model_service_pb2.DownloadModelFileRequest(name=version.name, path="model.safetensors", offset=8)
    assert (await refusal(served.DownloadModelFile(request).read())).reason == "INVALID_FIELD"


async def test_run_keeps_the_training_as_it_was(served: Caller) -> None:
    await served.project()
    training = await served.training()
    run = await served.RunTraining(pb.RunTrainingRequest(name=TRAINING))
    changed = training_pb2.Training(name=TRAINING, etag="", spec=spec_of(pretrain=3))
    mask = field_mask_pb2.FieldMask(paths=["spec"])
    await served.UpdateTraining(pb.UpdateTrainingRequest(training=changed, update_mask=mask))
    kept = await served.GetTrainingRun(pb.GetTrainingRunRequest(name=run.name))
    assert kept.spec == training.spec
    assert kept.secrecy == resource_pb2.SECRECY_CONFIDENTIAL
    assert [parent.relation for parent in kept.lineage.parents] == ["run_of", "trained_on", "validated_on"]
    task = await served.GetTask(task_service_pb2.GetTaskRequest(name=run.task))
    assert (task.kind, task.target, task.state) == ("training.run", run.name, task_pb2.Task.STATE_QUEUED)
    listed = await served.ListTrainingRuns(pb.ListTrainingRunsRequest(parent=TRAINING))
    assert [each.name for each in listed.training_runs] == [run.name]


async def test_stale_etag_is_refused(served: Caller) -> None:
    await served.project()
    training = await served.training()
    for etag, refused in ((training.etag, False), (training.etag, True)):
        changed = training_pb2.Training(name=TRAINING, etag=etag, description="new")
        call = served.UpdateTraining(pb.UpdateTrainingRequest(training=changed))
        if refused:
            assert (await refusal(call)).reason == "ETAG_MISMATCH"
        else:
            assert (await call).description == "new"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"spec": training_pb2.TrainingSpec()}, "phases"),
        ({"dataset_version": ""}, "training.dataset_version"),
        ({"model_project": ""}, "training.model_project"),
        ({"spec": spec_of(workers=13)}, "spec.phases[0].batch_size"),
        ({"spec": spec_of(architecture=training_pb2.Architecture(hidden_size=30))}, "spec.architecture.hidden_size"),
        ({"spec": spec_of(architecture=training_pb2.Architecture(vocabulary_size=9))}, "vocabulary_size"),
    ],
)
async def test_impossible_trainings_are_refused(served: Caller, fields: dict[str, Any], field: str) -> None:
    await served.project()
    error = await refusal(served.training(**fields))
    assert error.reason == "INVALID_FIELD"
    assert field in error.metadata["field"]


async def test_foreign_and_missing_parents_are_not_found(served: Caller) -> None:
    assert (await refusal(served.training())).reason == "NOT_FOUND"
    await served.project()
    foreign = TRAIN.replace("acme", "globex")
    assert (await refusal(served.training(dataset_version=foreign))).reason == "NOT_FOUND"
    missing = f"{PROJECT}/versions/9"
    assert (await refusal(served.training(base_model_version=missing))).reason == "NOT_FOUND"


async def test_preflight_finds_what_would_fail(served: Caller, dataset: FakeDataset) -> None:
    await served.project()
    await served.training()
    request = pb.PreflightTrainingRequest(name=TRAINING)
    fine = await served.PreflightTraining(request)
    assert not [finding for finding in fine.findings if finding.blocking]
    assert fine.parameter_count == 400 * 32 + 32 * 32 * 4 + 3 * 32 * 64 + 3 * 32
    assert fine.seconds > 0
    assert fine.memory_bytes > 2**30
    dataset.rows[HELDOUT] = [{"text": "a"}]
    found = (await served.PreflightTraining(request)).findings
    assert [(finding.check, finding.blocking) for finding in found] == [("schema", True)]
    assert "'label'" in found[0].message
    refused = await refusal(served.RunTraining(pb.RunTrainingRequest(name=TRAINING)))
    assert refused.reason == "PREFLIGHT_FAILED"
    assert refused.metadata["check"] == "schema"
    del dataset.rows[HELDOUT]
    found = (await served.PreflightTraining(request)).findings
    assert [(finding.check, finding.blocking) for finding in found] == [("schema", True)]


async def test_sweep_keeps_models_and_checkpoints(served: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    version = await finished_run(served)
    parts = app(served)
    prepared = await parts.blobs.commit({"blobs": []})
    orphan = (await parts.blobs.put(b"orphan")).sha256
    async with parts.database.system() as uow:
        run = await served.GetTrainingRun(pb.GetTrainingRunRequest(name=version.training_run))
        task = await task_of(uow, run)
        await tasks.change(uow, task, checkpoint={"plan": {"prepared": prepared}})
    monkeypatch.setattr("services.training.jobs.sweep._GRACE", timedelta(seconds=-1))
    assert await sweep(parts.database, parts.blobs, SYSTEM_CLOCK) == 1
    assert (await parts.blobs.stat(version.files[0].sha256)).size == len(b"weights")
    assert await parts.blobs.load_manifest(prepared) == {"blobs": []}
    with pytest.raises(Exception, match="not in the store"):
        await parts.blobs.stat(orphan)
