"""Trainings of algorithms from request to model version. The engine runs here, as Ray would call it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from argosy.common.v1 import resource_pb2
from argosy.training.v1 import (
    algorithm_pb2,
    automl_service_pb2,
    model_service_pb2,
    run_service_pb2,
    search_pb2,
    search_service_pb2,
    training_pb2,
)
from argosy.training.v1 import algorithm_service_pb2 as catalogue
from argosy.training.v1 import training_service_pb2 as pb
from google.protobuf.struct_pb2 import Struct

from libs.common.clock import SYSTEM_CLOCK
from libs.common.tasks import store as tasks
from libs.compute.context import LocalContext, load_entrypoint
from services.training.domain.runs import RunState
from services.training.engines.algorithms.image import ImagePredictor
from services.training.engines.algorithms.tabular import TabularPredictor
from services.training.jobs.run import RunTasks
from services.training.jobs.search import SearchTasks
from services.training.store.repositories import TrainingRuns
from tests.integration.training.conftest import training_service
from tests.integration.training.peers import PROJECT, Caller, FakeDataset, refusal
from tests.unit.training.tables import digits, wine

WINES = "orgs/acme/datasets/wines/versions/1"
IMAGES = "orgs/acme/datasets/digits/versions/1"


def struct(**values: Any) -> Struct:
    message = Struct()
    message.update(values)
    return message


@pytest.fixture
async def worker(mesh: Any, dataset: FakeDataset, tmp_path: Path, database_url: str) -> AsyncIterator[Caller]:
    """An editor of acme, and the service itself."""
    async with training_service(mesh, tmp_path, database_url) as service:
        caller = Caller(mesh, service=service)
        yield caller
        await caller.close()


async def run(caller: Caller, id: str, **fields: Any) -> training_pb2.TrainingRun:
    """The run of a new training, when it has ended."""
    usual: dict[str, Any] = {"model_project": PROJECT, "spec": training_pb2.TrainingSpec(seed=7)}
    given = training_pb2.Training(**{**usual, **fields})
    training = await caller.CreateTraining(pb.CreateTrainingRequest(parent="orgs/acme", training_id=id, training=given))
    started = await caller.RunTraining(pb.RunTrainingRequest(name=training.name))
    await carry(caller, started.task)
    return await caller.GetTrainingRun(pb.GetTrainingRunRequest(name=started.name))


async def carry(caller: Caller, name: str, *, searches: bool = False) -> None:
    """What jobs and Ray do with a task: load, run with grants alone, apply. All that passes is JSON."""
    assert caller.service is not None
    parts: Any = caller.service.app
    runs = RunTasks(parts.database, parts.blobs, parts.datasets, parts.signer, SYSTEM_CLOCK)
    kind = SearchTasks(parts.database, runs, SYSTEM_CLOCK).kind() if searches else runs.kind()
    async with parts.database.system() as uow:
        task = await tasks.get(uow, name)
    loaded = json.loads(json.dumps(await kind.load(task, None)))  # type: ignore[arg-type]
    ctx = LocalContext(loaded, blobs_write=parts.blobs)
    result = json.loads(json.dumps(await asyncio.to_thread(load_entrypoint(kind.entrypoint), ctx)))
    async with parts.database.system() as uow:
        await kind.apply(task, result, uow)


async def files_of(caller: Caller, version: training_pb2.ModelVersion) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for file in version.files:
        request = model_service_pb2.DownloadModelFileRequest(name=version.name, path=file.path)
        found[file.path] = b"".join([part.data async for part in caller.DownloadModelFile(request)])
    return found


async def test_an_own_version_learns_from_a_table(worker: Caller, dataset: FakeDataset) -> None:
    await worker.project()
    rows = wine()
    dataset.add(WINES, rows)
    await worker.CreateAlgorithm(
        catalogue.CreateAlgorithmRequest(parent="orgs/acme", algorithm_id="mine", algorithm=algorithm_pb2.Algorithm())
    )
    own = await worker.CreateAlgorithmVersion(
        catalogue.CreateAlgorithmVersionRequest(
            parent="orgs/acme/algorithms/mine",
            algorithm_version=algorithm_pb2.AlgorithmVersion(
                base_version="orgs/system/algorithms/tabular-classification/versions/1",
                fixed=struct(label_column="grower", iterations=20),
                parameters=struct(type="object", properties={"l2": {"type": "number", "default": 1}}),
            ),
        )
    )
    done = await run(worker, "wines", dataset_version=WINES, algorithm_version=own.name, parameters=struct(l2=2))
    assert done.parameters["iterations"] == 20
    clone = await worker.CloneTraining(run_service_pb2.CloneTrainingRequest(name=done.name, training_id="again"))
    assert clone.algorithm_version == own.name
    assert clone.parameters == struct(l2=2)
    assert done.results["accuracy"] > done.results["baseline.accuracy"] + 0.4
    assert set(done.framework) == {"scikit-learn", "onnx", "onnxruntime"}

    version = await worker.GetModelVersion(model_service_pb2.GetModelVersionRequest(name=done.model_version))
    assert (version.architecture, version.context_length) == ("tabular-classification", 0)
    assert version.secrecy == resource_pb2.SECRECY_CONFIDENTIAL
    assert {(parent.name, parent.relation) for parent in version.lineage.parents} == {
        (done.name, "made_by"),
        (WINES, "trained_on"),
    }
    assert own.name in version.model_card
    assert dataset.digests[WINES] in version.model_card
    told = TabularPredictor(await files_of(worker, version)).predict(rows[:20])
    assert [answer["label"] for answer in told] == [row["grower"] for row in rows[:20]]
    project = await worker.GetModelProject(model_service_pb2.GetModelProjectRequest(name=PROJECT))
    assert project.train_framework.startswith("scikit-learn ")


async def test_a_task_alone_learns_from_images(worker: Caller, dataset: FakeDataset) -> None:
    await worker.project()
    rows, files = digits(200)
    dataset.add(IMAGES, rows, files)
    parameters = struct(size=8, color=False, width=8, epochs=8)
    done = await run(worker, "digits", dataset_version=IMAGES, task="classification", parameters=parameters)
    assert done.algorithm_version == "orgs/system/algorithms/image-classification/versions/1"
    assert done.parameters["label_column"] == "digit"
    assert done.results["accuracy"] > done.results["baseline.accuracy"] + 0.3
    version = await worker.GetModelVersion(model_service_pb2.GetModelVersionRequest(name=done.model_version))
    answers = ImagePredictor(await files_of(worker, version)).predict([files["0.png"]])
    assert answers[0]["label"] in range(10)


async def test_an_agent_learns_without_data(worker: Caller) -> None:
    await worker.project()
    parameters = struct(environment="grid-world", iterations=3, copies=4, horizon=16)
    name = "orgs/system/algorithms/policy-gradient/versions/1"
    done = await run(worker, "agent", algorithm_version=name, parameters=parameters)
    version = await worker.GetModelVersion(model_service_pb2.GetModelVersionRequest(name=done.model_version))
    assert {parent.relation for parent in version.lineage.parents} == {"made_by"}
    assert "learned from what it did itself" in version.model_card


async def test_a_task_and_a_column_are_enough_for_automl(worker: Caller, dataset: FakeDataset) -> None:
    """What is to be foretold, and a budget; what was found is data and a picture, also while it is being found."""
    await worker.project()
    dataset.add(WINES, wine())
    given = struct(target_column="grower", trials=3, folds=2)
    training = training_pb2.Training(
        model_project=PROJECT,
        spec=training_pb2.TrainingSpec(seed=7),
        dataset_version=WINES,
        task="automl",
        parameters=given,
    )
    await worker.CreateTraining(pb.CreateTrainingRequest(parent="orgs/acme", training_id="auto", training=training))
    started = await worker.RunTraining(pb.RunTrainingRequest(name="orgs/acme/trainings/auto"))
    request = automl_service_pb2.GetLeaderboardRequest(name=started.name)
    refused = await refusal(worker.GetLeaderboard(request))
    assert (refused.reason, refused.metadata["name"]) == ("STATE_CONFLICT", started.name)
    await keep_checkpoint(worker, started.task, {"report": {"task": "classification", "entries": [{"number": 0}]}})
    assert [entry.number for entry in (await worker.GetLeaderboard(request)).entries] == [0]
    await carry(worker, started.task)

    board = await worker.GetLeaderboard(request)
    assert (board.name, board.target_column, board.task) == (started.name, "grower", "classification")
    assert [entry.rank for entry in board.entries] == [1, 2, 3]
    assert board.entries[0].parameters
    done = await worker.GetTrainingRun(pb.GetTrainingRunRequest(name=started.name))
    assert board.figures[0].value == done.results["log_loss"] < board.figures[0].baseline.value
    assert set(board.importances) == {column.column for column in board.columns if not column.dropped}
    drawn = await worker.RenderLeaderboard(automl_service_pb2.RenderLeaderboardRequest(name=started.name))
    assert drawn.svg.startswith("<svg")
    assert drawn.svg.count("<circle") == 3
    assert "together log_loss" in drawn.svg
    version = await worker.GetModelVersion(model_service_pb2.GetModelVersionRequest(name=done.model_version))
    assert version.architecture == "automl"
    assert "best_single.log_loss" in version.model_card

    other = await run(worker, "wines", dataset_version=WINES, task="classification", parameters=struct(iterations=2))
    refused = await refusal(worker.GetLeaderboard(automl_service_pb2.GetLeaderboardRequest(name=other.name)))
    assert refused.reason == "STATE_CONFLICT"


async def keep_checkpoint(caller: Caller, name: str, checkpoint: dict[str, Any]) -> None:
    """As the worker of the task does."""
    assert caller.service is not None
    parts: Any = caller.service.app
    async with parts.database.system() as uow:
        await tasks.change(uow, await tasks.get(uow, name), checkpoint=checkpoint)


def search_of(path: str, **values: Any) -> search_service_pb2.CreateSearchRequest:
    """Two trials of the training `tuned`."""
    search = search_pb2.HyperparameterSearch(
        training="orgs/acme/trainings/tuned",
        space=[search_pb2.SearchDimension(path=path, **values)],
        method=search_pb2.HyperparameterSearch.METHOD_RANDOM,
        objective=search_pb2.Objective(result="accuracy", direction=search_pb2.Objective.DIRECTION_MAXIMIZE),
        budget=search_pb2.SearchBudget(max_trials=2),
    )
    return search_service_pb2.CreateSearchRequest(parent="orgs/acme", search_id="tuned", search=search)


async def test_parameters_of_an_algorithm_are_searched(worker: Caller, dataset: FakeDataset) -> None:
    await worker.project()
    dataset.add(WINES, wine())
    training = training_pb2.Training(
        model_project=PROJECT,
        spec=training_pb2.TrainingSpec(seed=7),
        dataset_version=WINES,
        algorithm_version="orgs/system/algorithms/tabular-classification/versions/1",
        parameters=struct(label_column="grower", iterations=5, l2=2),
    )
    await worker.CreateTraining(pb.CreateTrainingRequest(parent="orgs/acme", training_id="tuned", training=training))
    values = {"low": 0.5, "high": 8.0}
    for path, words in (
        ("parameters.depth", "has no 'depth'"),
        ("parameters.label_column", "does not fit parameters.label_column, which is text"),
        ("phases[0].steps", "has no 'phases'"),
    ):
        refused = await refusal(worker.CreateSearch(search_of(path, uniform=search_pb2.RealRange(**values))))
        assert words in refused.message
    wide = search_pb2.RealRange(low=0.5, high=1e9)
    refused = await refusal(worker.CreateSearch(search_of("parameters.l2", uniform=wide)))
    assert "must be at most 1e+06" in refused.message
    started = await worker.CreateSearch(search_of("parameters.l2", log_uniform=search_pb2.RealRange(**values)))
    assert started.algorithm_version.endswith("tabular-classification/versions/1")
    await carry(worker, started.task, searches=True)

    found = await worker.GetSearch(search_service_pb2.GetSearchRequest(name=started.name))
    listed = await worker.ListSearchTrials(search_service_pb2.ListSearchTrialsRequest(parent=started.name))
    first, second = listed.search_trials
    assert first.parameters["parameters.l2"] == 2
    assert not first.HasField("spec")
    best = first if first.name == found.best_trial else second
    done = await worker.GetTrainingRun(pb.GetTrainingRunRequest(name=found.training_run))
    assert done.parameters["l2"] == best.parameters["parameters.l2"]
    assert done.results["accuracy"] == best.value == found.best_value
    assert done.algorithm_version == started.algorithm_version
    version = await worker.GetModelVersion(model_service_pb2.GetModelVersionRequest(name=found.model_version))
    assert version.architecture == "tabular-classification"
    events = await worker.ListRunEvents(run_service_pb2.ListRunEventsRequest(parent=done.name))
    assert "trial" in events.events[0].message


async def test_automl_alone_can_be_paused_while_it_runs(worker: Caller, dataset: FakeDataset) -> None:
    """It has checkpoints; another algorithm would begin again."""
    await worker.project()
    dataset.add(WINES, wine())
    assert worker.service is not None
    parts: Any = worker.service.app
    for task, pauses in (("automl", True), ("classification", False)):
        training = training_pb2.Training(
            model_project=PROJECT, spec=training_pb2.TrainingSpec(seed=7), dataset_version=WINES, task=task
        )
        await worker.CreateTraining(pb.CreateTrainingRequest(parent="orgs/acme", training_id=task, training=training))
        started = await worker.RunTraining(pb.RunTrainingRequest(name=f"orgs/acme/trainings/{task}"))
        async with parts.database.system() as uow:
            run = await TrainingRuns(uow).get(started.name, for_update=True)
            run.state = RunState.RUNNING
            await TrainingRuns(uow).save(run)
        pause = worker.PauseTrainingRun(run_service_pb2.PauseTrainingRunRequest(name=started.name))
        if pauses:
            assert (await pause).name == started.name
        else:
            assert "without checkpoints" in (await refusal(pause)).message
