"""The algorithm catalogue and trainings of its entries over the wire; no long work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from argosy.common.v1 import options_pb2
from argosy.training.v1 import algorithm_pb2, training_pb2
from argosy.training.v1 import algorithm_service_pb2 as catalogue
from argosy.training.v1 import training_service_pb2 as pb
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct

from services.training.domain.built_in import ENTRIES
from tests.integration.training.conftest import training_service
from tests.integration.training.peers import PROJECT, TRAIN, Caller, FakeDataset, refusal

TABULAR = "orgs/system/algorithms/tabular-classification/versions/1"
MINE = "orgs/acme/algorithms/mine"
WINES = "orgs/acme/datasets/wines/versions/1"


@pytest.fixture
async def served(mesh: Any, dataset: FakeDataset, tmp_path: Path, database_url: str) -> AsyncIterator[Caller]:
    """An editor of acme, and the service itself."""
    async with training_service(mesh, tmp_path, database_url) as service:
        caller = Caller(mesh, service=service)
        await caller.project()
        yield caller
        await caller.close()


def struct(**values: Any) -> Struct:
    message = Struct()
    message.update(values)
    return message


async def mine(caller: Caller, **fields: Any) -> algorithm_pb2.Algorithm:
    return await caller.CreateAlgorithm(
        catalogue.CreateAlgorithmRequest(
            parent="orgs/acme", algorithm_id="mine", algorithm=algorithm_pb2.Algorithm(**fields)
        )
    )


async def version(caller: Caller, **fields: Any) -> algorithm_pb2.AlgorithmVersion:
    usual: dict[str, Any] = {
        "base_version": TABULAR,
        "parameters": struct(
            type="object", properties={"iterations": {"type": "integer", "default": 10, "maximum": 50}}
        ),
        "fixed": struct(label_column="grower"),
    }
    return await caller.CreateAlgorithmVersion(
        catalogue.CreateAlgorithmVersionRequest(
            parent=MINE, algorithm_version=algorithm_pb2.AlgorithmVersion(**{**usual, **fields})
        )
    )


async def training(caller: Caller, **fields: Any) -> training_pb2.Training:
    usual: dict[str, Any] = {"dataset_version": WINES, "model_project": PROJECT}
    return await caller.CreateTraining(
        pb.CreateTrainingRequest(
            parent="orgs/acme", training_id="wines", training=training_pb2.Training(**{**usual, **fields})
        )
    )


def wines(dataset: FakeDataset, **change: Any) -> str:
    rows = [
        {"sugar": float(n), "colour": "red" if n % 2 else "white", "grower": f"g{n % 2}"} | change for n in range(20)
    ]
    return dataset.add(WINES, rows)


async def preflight(caller: Caller) -> dict[str, str]:
    found = await caller.PreflightTraining(pb.PreflightTrainingRequest(name="orgs/acme/trainings/wines"))
    return {finding.check + ("!" if finding.blocking else ""): finding.message for finding in found.findings}


async def test_built_in_algorithms_are_there_for_every_organization(served: Caller) -> None:
    rival = served.other(org="rival", role=options_pb2.ROLE_VIEWER)
    for caller in (served, rival):
        names: list[str] = []
        request = catalogue.ListAlgorithmsRequest(parent="orgs/system", page_size=3)
        while True:
            page = await caller.ListAlgorithms(request)
            names += [one.name for one in page.algorithms]
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        assert names == sorted(entry.name.rsplit("/", 2)[0] for entry in ENTRIES)
        shown = await caller.GetAlgorithm(catalogue.GetAlgorithmRequest(name=names[0]))
        assert shown.latest_version == f"{names[0]}/versions/1"
        found = await caller.GetAlgorithmVersion(catalogue.GetAlgorithmVersionRequest(name=TABULAR))
        assert found.parameters["properties"]["iterations"]["maximum"] == 2000
        assert found.code.endswith("tabular:CLASSIFICATION")
        listed = await caller.ListAlgorithmVersions(catalogue.ListAlgorithmVersionsRequest(parent=names[0]))
        assert [one.name for one in listed.algorithm_versions] == [shown.latest_version]
    await rival.close()


async def test_nobody_adds_to_the_built_in_ones(served: Caller) -> None:
    root = served.other(org="system", role=options_pb2.ROLE_SYSTEM)
    given = catalogue.CreateAlgorithmRequest(parent="orgs/system", algorithm=algorithm_pb2.Algorithm())
    assert (await refusal(root.CreateAlgorithm(given))).metadata["field"] == "parent"
    await root.close()


async def test_an_algorithm_is_its_creators_until_it_is_published(served: Caller) -> None:
    made = await mine(served, display_name="Mine")
    await version(served)
    bob, rival = served.other(subject="users/bob"), served.other(org="rival")
    get, listed = catalogue.GetAlgorithmRequest(name=MINE), catalogue.ListAlgorithmsRequest(parent="orgs/acme")
    of_version = catalogue.GetAlgorithmVersionRequest(name=f"{MINE}/versions/1")
    assert (await refusal(bob.GetAlgorithm(get))).reason == "NOT_FOUND"
    assert (await refusal(bob.GetAlgorithmVersion(of_version))).reason == "NOT_FOUND"
    assert not (await bob.ListAlgorithms(listed)).algorithms
    made.visibility = algorithm_pb2.Algorithm.VISIBILITY_ORGANIZATION
    change = catalogue.UpdateAlgorithmRequest(algorithm=made, update_mask=FieldMask(paths=["visibility"]))
    assert (await refusal(served.UpdateAlgorithm(change))).reason == "ETAG_MISMATCH"
    change.algorithm.etag = ""
    await served.UpdateAlgorithm(change)
    assert (await bob.GetAlgorithm(get)).latest_version == f"{MINE}/versions/1"
    assert [one.name for one in (await bob.ListAlgorithms(listed)).algorithms] == [MINE]
    for attempt in (rival.GetAlgorithm(get), rival.GetAlgorithmVersion(of_version), rival.ListAlgorithms(listed)):
        assert (await refusal(attempt)).reason == "NOT_FOUND"
    await bob.close()
    await rival.close()


async def test_an_own_version_is_checked_against_its_base(served: Caller) -> None:
    await mine(served)
    made = await version(served)
    assert (made.name, made.task, made.lineage.parents[0].name) == (f"{MINE}/versions/1", "classification", TABULAR)
    hostile = struct(type="object", properties={"iterations": {"type": "integer", "pattern": "(a+)+$", "default": 1}})
    error = await refusal(version(served, parameters=hostile))
    assert error.metadata["field"] == "algorithm_version.parameters.properties.iterations.pattern"
    error = await refusal(version(served, fixed=struct(depth=3)))
    assert error.metadata["field"] == "algorithm_version.fixed.depth"
    assert (await refusal(version(served, base_version=""))).metadata["field"] == "algorithm_version.base_version"
    missing = "orgs/system/algorithms/nothing/versions/1"
    assert (await refusal(version(served, base_version=missing))).reason == "NOT_FOUND"
    deep: Any = 1
    for _ in range(36):
        deep = [deep]
    assert (await refusal(version(served, fixed=struct(label_column=deep)))).reason == "INVALID_FIELD"
    listed = await served.ListAlgorithmVersions(catalogue.ListAlgorithmVersionsRequest(parent=MINE))
    assert [one.name for one in listed.algorithm_versions] == [made.name]


async def test_each_wrong_parameter_of_a_training_is_named(served: Caller, dataset: FakeDataset) -> None:
    wines(dataset)
    error = await refusal(training(served, algorithm_version=TABULAR, parameters=struct(iterations=0, depth=3)))
    assert error.reason == "INVALID_FIELD"
    assert {field for field, _ in error.violations} == {"training.parameters.iterations", "training.parameters.depth"}
    error = await refusal(training(served, parameters=struct(iterations=5)))
    assert error.reason == "INVALID_FIELD"
    assert (await refusal(training(served, task="astrology"))).metadata["field"] == "training.task"
    made = await training(served, algorithm_version=TABULAR, parameters=struct(label_column="grower"))
    assert made.parameters == struct(label_column="grower")
    made.parameters.update({"l2": -1})
    change = pb.UpdateTrainingRequest(training=made, update_mask=FieldMask(paths=["parameters"]))
    assert (await refusal(served.UpdateTraining(change))).metadata["field"] == "training.parameters.l2"


async def test_a_deleted_algorithm_can_be_named_no_more(served: Caller, dataset: FakeDataset) -> None:
    wines(dataset)
    await mine(served)
    own = (await version(served)).name
    await training(served, algorithm_version=own)
    assert await preflight(served) == {}
    await served.DeleteAlgorithm(catalogue.DeleteAlgorithmRequest(name=MINE))
    run = pb.RunTrainingRequest(name="orgs/acme/trainings/wines")
    assert (await refusal(served.RunTraining(run))).reason == "NOT_FOUND"


async def test_preflight_stops_a_run_before_it_begins(served: Caller, dataset: FakeDataset) -> None:
    wines(dataset, grower="one")
    await training(served, algorithm_version=TABULAR, parameters=struct(label_column="grower"))
    assert "the same value in 'grower'" in (await preflight(served))["labels!"]
    error = await refusal(served.RunTraining(pb.RunTrainingRequest(name="orgs/acme/trainings/wines")))
    assert (error.reason, error.metadata["check"]) == ("PREFLIGHT_FAILED", "labels")


async def test_a_task_is_enough(served: Caller, dataset: FakeDataset) -> None:
    """What is chosen is shown first, and written out by the run."""
    wines(dataset)
    await training(served, task="regression", parameters=struct(iterations=5))
    assert "tabular-regression was chosen for regression" in (await preflight(served))["choice"]
    run = await served.RunTraining(pb.RunTrainingRequest(name="orgs/acme/trainings/wines"))
    shown = await served.GetTraining(pb.GetTrainingRequest(name="orgs/acme/trainings/wines"))
    assert shown.algorithm_version == "orgs/system/algorithms/tabular-regression/versions/1" == run.algorithm_version
    assert shown.parameters == struct(iterations=5, target_column="sugar")
    assert run.parameters["max_leaves"] == 31
    assert run.parameters["target_column"] == "sugar"
    assert "choice" in await preflight(served)


async def test_a_task_that_no_column_fits_is_refused(served: Caller, dataset: FakeDataset) -> None:
    dataset.add(WINES, [{"name": "a"}, {"name": "b"}])
    await training(served, task="regression")
    assert "target_column" in (await preflight(served))["choice!"]
    error = await refusal(served.RunTraining(pb.RunTrainingRequest(name="orgs/acme/trainings/wines")))
    assert error.reason == "PREFLIGHT_FAILED"


async def test_data_are_given_to_who_reads_them(served: Caller) -> None:
    agent = "orgs/system/algorithms/policy-gradient/versions/1"
    error = await refusal(training(served, algorithm_version=agent, dataset_version=TRAIN))
    assert error.metadata["field"] == "training.dataset_version"
    assert (await refusal(training(served, algorithm_version=TABULAR, dataset_version=""))).reason == "INVALID_FIELD"
    await training(served, algorithm_version=agent, dataset_version="")
    assert await preflight(served) == {}


async def test_phases_and_an_algorithm_do_not_go_together(served: Caller) -> None:
    phase = training_pb2.Phase(method=training_pb2.Phase.METHOD_PRETRAIN, steps=1, batch_size=1, learning_rate=0.1)
    spec = training_pb2.TrainingSpec(phases=[phase])
    error = await refusal(training(served, dataset_version=TRAIN, algorithm_version=TABULAR, spec=spec))
    assert error.metadata["field"] == "training.spec.phases"
