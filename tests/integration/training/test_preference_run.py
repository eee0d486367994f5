"""Fine-tuning, DPO and GRPO in one run on two workers, from request to model version."""

from __future__ import annotations

import pytest
from argosy.common.v1 import task_pb2, task_service_pb2
from argosy.training.v1 import model_service_pb2, training_pb2
from argosy.training.v1 import run_service_pb2 as runs
from argosy.training.v1 import training_service_pb2 as pb

from libs.common.errors import ArgosyError
from tests.integration.training.peers import HELDOUT, PROJECT, TRAIN, Caller, FakeDataset, refusal, spec_of
from tests.unit.training.preferences import pairs
from tests.unit.training.samples import TEMPLATE, write_version

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def phase(method: training_pb2.Phase.Method, steps: int, **fields: object) -> training_pb2.Phase:
    usual = {"batch_size": 12, "learning_rate": 0.005, "prompt_template": TEMPLATE, **fields}
    return training_pb2.Phase(method=method, steps=steps, **usual)  # type: ignore[arg-type]


def rewarded(version: str = "") -> training_pb2.Phase:
    rule = training_pb2.RewardRule(kind=training_pb2.RewardRule.KIND_PATTERN, pattern="\\.$")
    rollouts = training_pb2.Rollouts(group_size=4, max_new_tokens=6, rules=[rule], reward_version=version)
    return phase(training_pb2.Phase.METHOD_GRPO, 4, batch_size=4, rollouts=rollouts)


async def test_run_of_preferences_makes_a_model_version(worker: Caller, dataset: FakeDataset) -> None:
    for name, rows in ((TRAIN, pairs(120)), (HELDOUT, pairs(48, seed=99))):
        dataset.rows[name], dataset.digests[name] = rows, write_version(dataset.blobs, rows)
    await worker.project()
    tuned = phase(training_pb2.Phase.METHOD_SFT, 80, learning_rate=0.01)
    dpo = phase(training_pb2.Phase.METHOD_DPO, 20, learning_rate=0.002)
    spec = spec_of(phases=[tuned, dpo, rewarded()], checkpoint_every=1000)
    training = await worker.training(spec=spec)
    assert (training.spec.phases[1].chosen_column, training.spec.phases[1].beta) == ("chosen", 0.1)
    assert not training.spec.phases[1].HasField("rollouts")
    started = await worker.RunTraining(pb.RunTrainingRequest(name=training.name, request_id="run-1"))
    task = await worker.finish(started.task)
    assert task.state == task_pb2.Task.STATE_SUCCEEDED, task

    done = await worker.GetTrainingRun(pb.GetTrainingRunRequest(name=started.name))
    assert done.results["dpo.heldout_accuracy_before"] == 0.5
    # Measured: 1.0.
    assert done.results["dpo.heldout_accuracy_after"] > 0.8
    assert "grpo.heldout_reward_after" in done.results
    version = await worker.GetModelVersion(model_service_pb2.GetModelVersionRequest(name=done.model_version))
    for part in ("- dpo: beta 0.1", "| dpo | accuracy | 0.500 |", "1 for an answer with `\\.$`"):
        assert part in version.model_card
    metrics = await worker.ListTaskMetrics(task_service_pb2.ListTaskMetricsRequest(parent=started.task))
    drawn = [point.values for point in metrics.metrics if point.phase == "grpo"]
    assert drawn
    assert all(0 <= values["reward"] <= 1 and 1 <= values["length"] <= 6 for values in drawn)

    # The version that was made judges nothing: it is no reward model.
    spec.phases[2].CopyFrom(rewarded(done.model_version))
    spec.workers = 1
    again = training_pb2.Training(name=training.name, spec=spec)
    error: ArgosyError = await refusal(worker.UpdateTraining(pb.UpdateTrainingRequest(training=again)))
    assert error.message == f"spec.phases names {version.name}, which is for text-generation; it needs one for reward."
    # What a run learns from is in its lineage.
    taught = training_pb2.Distillation(teacher_version=version.name)
    spec.phases[2].CopyFrom(phase(training_pb2.Phase.METHOD_DISTILL, 2, distillation=taught))
    await worker.UpdateTraining(pb.UpdateTrainingRequest(training=training_pb2.Training(name=training.name, spec=spec)))
    second = await worker.RunTraining(pb.RunTrainingRequest(name=training.name))
    parents = {(parent.name, parent.digest, parent.relation) for parent in second.lineage.parents}
    assert (version.name, version.manifest_digest, "learned_from") in parents
    await worker.CancelTrainingRun(runs.CancelTrainingRunRequest(name=second.name))
    assert (await worker.finish(second.task)).state == task_pb2.Task.STATE_CANCELLED


async def test_a_teacher_that_is_not_there_is_named(worker: Caller) -> None:
    await worker.project()
    missing = f"{PROJECT}/versions/9"
    taught = phase(
        training_pb2.Phase.METHOD_DISTILL, 2, distillation=training_pb2.Distillation(teacher_version=missing)
    )
    error: ArgosyError = await refusal(worker.training(spec=spec_of(phases=[taught])))
    assert (error.reason, error.metadata["name"]) == ("NOT_FOUND", missing)
