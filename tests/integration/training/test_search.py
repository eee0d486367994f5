"""A search from request to model version, with trials on Ray, and what it refuses."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from argosy.common.v1 import task_pb2, task_service_pb2
from argosy.training.v1 import model_service_pb2, run_service_pb2, search_pb2, training_pb2, training_service_pb2
from argosy.training.v1 import search_service_pb2 as pb
from argosy.training.v1.run_metrics_pb2 import RunEvent
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Value

from libs.common.blobs import BlobStore
from libs.common.clock import SYSTEM_CLOCK, ManualClock
from libs.common.tasks import store as tasks
from services.training.engines import search
from services.training.handlers.messages import spec_from
from services.training.handlers.search_messages import plan_from
from services.training.jobs.search import SearchTasks
from services.training.jobs.sweep import sweep
from tests.integration.training.conftest import training_service
from tests.integration.training.peers import PROJECT, Caller, FakeDataset, refusal, spec_of
from tests.unit.training.samples import TEMPLATE, context, rows

NAME = "orgs/acme/searches/rates"
TRAINING = "orgs/acme/trainings/packages"
RATE, LAYERS = "phases[0].learning_rate", "architecture.layers"
TRIALS = 6
# Of a trial that takes long enough to be hit: some seconds.
LONG_STEPS = 200


def tuning(steps: int = 30) -> training_pb2.TrainingSpec:
    """Fine-tuning alone, for two workers; trials take its steps on one."""
    phase = training_pb2.Phase(
        method=training_pb2.Phase.METHOD_SFT,
        steps=steps,
        batch_size=12,
        learning_rate=0.01,
        prompt_template=TEMPLATE,
    )
    return spec_of(phases=[phase])


def search_of(**fields: Any) -> search_pb2.HyperparameterSearch:
    """Six trials, two at a time, with halving."""
    usual: dict[str, Any] = {
        "training": TRAINING,
        "space": [
            search_pb2.SearchDimension(path=RATE, log_uniform=search_pb2.RealRange(low=1e-5, high=0.05)),
            search_pb2.SearchDimension(
                path=LAYERS,
                categorical=search_pb2.Choices(values=[Value(number_value=1), Value(number_value=2)]),
            ),
        ],
        "method": search_pb2.HyperparameterSearch.METHOD_TPE,
        "early_stopping": search_pb2.EarlyStopping(method=search_pb2.EarlyStopping.METHOD_ASHA, reduction_factor=2),
        "objective": search_pb2.Objective(
            result="sft.heldout_loss_after", direction=search_pb2.Objective.DIRECTION_MINIMIZE
        ),
        "budget": search_pb2.SearchBudget(max_trials=TRIALS, max_parallel=2),
        "seed": 11,
    }
    return search_pb2.HyperparameterSearch(**{**usual, **fields})


async def start(caller: Caller, steps: int = 30, **fields: Any) -> search_pb2.HyperparameterSearch:
    await caller.project()
    await caller.training(spec=tuning(steps))
    return await caller.CreateSearch(create(search_of(**fields)))


def create(search: search_pb2.HyperparameterSearch) -> pb.CreateSearchRequest:
    return pb.CreateSearchRequest(parent="orgs/acme", search_id="rates", search=search, request_id="create-search")


async def trials(caller: Caller, page_size: int = 0) -> list[search_pb2.SearchTrial]:
    request, found = pb.ListSearchTrialsRequest(parent=NAME, page_size=page_size), []
    while True:
        page = await caller.ListSearchTrials(request)
        found += page.search_trials
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def processes(title: str) -> list[int]:
    """Processes of this session's Ray with such a title."""
    found: list[int] = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(child.cmdline()).startswith(title) and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child.pid)
    return found


async def ended_trials(caller: Caller, task: str) -> list[int]:
    """The numbers of trials that the log says have ended, once for each time."""
    found: list[int] = []
    request = task_service_pb2.ListTaskLogsRequest(parent=task, page_size=1000)
    for line in (await caller.ListTaskLogs(request)).logs:
        words = line.body.split()
        if words[0] == "trial" and words[2].strip(",") in ("finished", "pruned", "failed", "stopped"):
            found.append(int(words[1].strip(":")))
    return found


def undisturbed(folder: Path) -> dict[str, Any]:
    """The same search in this process, one trial after the other, with nobody to kill it."""
    ctx = context(BlobStore(f"file://{folder}/alone"), spec_from(tuning(LONG_STEPS)), rows(200))
    ctx.spec["search"] = plan_from(search_of()).to_json()
    return search.run(ctx)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_search_that_is_killed_makes_the_same_best_model(
    worker: Caller, dataset: FakeDataset, tmp_path: Path
) -> None:
    """kill -9 of the process that leads the search, in its middle: as if nobody had, and no trial twice."""
    started = await start(worker, LONG_STEPS)
    assert started.name == NAME
    assert (await worker.CreateSearch(create(search_of()))).task == started.task
    refused = await refusal(worker.DeleteSearch(pb.DeleteSearchRequest(name=NAME)))
    assert refused.reason == "STATE_CONFLICT"
    async with asyncio.timeout(150):
        while not await ended_trials(worker, started.task):
            await asyncio.sleep(0.1)
    (leading,) = processes("ray::TaskCarrier")
    os.kill(leading, signal.SIGKILL)
    task = await worker.finish(started.task)
    assert task.state == task_pb2.Task.STATE_SUCCEEDED, task
    assert task.attempt == 2
    assert sorted(await ended_trials(worker, started.task)) == list(range(TRIALS))

    alone = undisturbed(tmp_path)
    found = await trials(worker, page_size=4)
    assert [trial.number for trial in found] == list(range(TRIALS))
    for trial, expected in zip(found, alone["trials"], strict=True):
        assert json_format.MessageToDict(trial.parameters) == pytest.approx(expected["parameters"])
        assert search_pb2.SearchTrial.State.Name(trial.state) == f"STATE_{expected['state']}"
        assert trial.value == pytest.approx(expected["value"] or 0.0, rel=1e-5)
        assert trial.spec.architecture.layers == trial.parameters[LAYERS]
    done = await worker.GetSearch(pb.GetSearchRequest(name=NAME))
    assert done.best_trial == f"{NAME}/trials/{alone['best_trial']}"
    await check_version(worker, done, found[alone["best_trial"]])
    await check_report(worker, done)


async def check_version(worker: Caller, done: search_pb2.HyperparameterSearch, best: search_pb2.SearchTrial) -> None:
    """Only the best trial became a run with a model version."""
    assert done.model_version == f"{PROJECT}/versions/1"
    request = training_service_pb2.GetTrainingRunRequest(name=done.training_run)
    run = await worker.GetTrainingRun(request)
    assert run.model_version == done.model_version
    assert run.spec.phases[0].learning_rate == best.parameters[RATE]
    assert run.results["sft.heldout_loss_after"] == best.value == done.best_value
    relations = {parent.name: parent.relation for parent in run.lineage.parents}
    assert relations[NAME] == "best_trial_of"
    # It has what other runs have: its curves, and the beginning of its history.
    curves = run_service_pb2.GetRunCurvesRequest(parent="orgs/acme", runs=[run.name], keys=["sft.heldout_loss"])
    assert (await worker.GetRunCurves(curves)).curves[0].values[-1] == best.rungs[-1]
    events = (await worker.ListRunEvents(run_service_pb2.ListRunEventsRequest(parent=run.name))).events
    assert [event.kind for event in events] == [RunEvent.KIND_CREATED, RunEvent.KIND_SUCCEEDED]
    assert f"trial {best.number}" in events[0].message
    versions = model_service_pb2.ListModelVersionsRequest(parent=PROJECT)
    assert len((await worker.ListModelVersions(versions)).model_versions) == 1
    version = await worker.GetModelVersion(model_service_pb2.GetModelVersionRequest(name=done.model_version))
    assert version.training_run == run.name
    assert version.files


async def check_report(worker: Caller, done: search_pb2.HyperparameterSearch) -> None:
    """History, lines and picture are there, and a search that has ended can be deleted and brought back."""
    report = await worker.GetSearchReport(pb.GetSearchReportRequest(name=NAME))
    assert sum(report.states.values()) == TRIALS
    assert report.history[-1].best == done.best_value
    assert len(report.lines) == report.states["FINISHED"]
    svg = (await worker.RenderSearchReport(pb.RenderSearchReportRequest(name=NAME))).svg
    assert svg.startswith("<svg")
    assert svg.count("<circle") == report.states["FINISHED"]
    await worker.DeleteSearch(pb.DeleteSearchRequest(name=NAME))
    assert not (await worker.ListSearches(pb.ListSearchesRequest(parent="orgs/acme"))).searches
    assert (await worker.UndeleteSearch(pb.UndeleteSearchRequest(name=NAME))).name == NAME


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_cancelled_search_leaves_nothing_running(worker: Caller) -> None:
    started = await start(worker, steps=100_000)
    async with asyncio.timeout(150):
        async for event in worker.watch(started.task):
            if event.HasField("metrics"):
                break
    running = processes("ray::_trial")
    assert running
    await worker.CancelTask(task_service_pb2.CancelTaskRequest(name=started.task))
    task = await worker.finish(started.task)
    assert task.state == task_pb2.Task.STATE_CANCELLED
    async with asyncio.timeout(30):
        while set(processes("ray::_trial")) & set(running):
            await asyncio.sleep(0.1)
    found = await trials(worker)
    assert {trial.state for trial in found} == {search_pb2.SearchTrial.STATE_STOPPED}
    done = await worker.GetSearch(pb.GetSearchRequest(name=NAME))
    assert not done.model_version
    assert not done.training_run


@pytest.fixture
async def served(mesh: Any, dataset: FakeDataset, tmp_path: Path, database_url: str) -> AsyncIterator[Caller]:
    """An editor of acme; nothing works."""
    async with training_service(mesh, tmp_path, database_url) as service:
        caller = Caller(mesh, service=service)
        await caller.project()
        await caller.training(spec=tuning())
        yield caller
        await caller.close()


def dimension(path: str, **values: Any) -> list[search_pb2.SearchDimension]:
    return [search_pb2.SearchDimension(path=path, **values)]


WHOLE = search_pb2.IntegerRange(low=1, high=4)


async def test_a_space_that_does_not_fit_is_refused(served: Caller) -> None:
    """Each refusal names the field and the thing; nothing begins."""
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"space": dimension("phases[0].steps[", integer=WHOLE)}, "search.space[0].path", "pattern"),
        ({"space": dimension("phases[1].steps", integer=WHOLE)}, "search.space[0].path", "phases has 1 entries"),
        ({"space": dimension("phases[0].stps", integer=WHOLE)}, "search.space[0].path", "it has answer_column"),
        ({"space": dimension(RATE)}, "search.space[0].values", "required"),
        (
            {"space": dimension(RATE, uniform=search_pb2.RealRange(low=0.1, high=7))},
            "search.space[0]",
            "to 7.0, which must be greater than 0 and less than or equal to 1",
        ),
        (
            {"space": dimension("phases[0].batch_size", integer=search_pb2.IntegerRange(low=0, high=4))},
            "search.space[0]",
            "cannot set phases[0].batch_size to 0",
        ),
        (
            {"space": dimension("phases[0].method", categorical=search_pb2.Choices(values=[Value(string_value="x")]))},
            "search.space[0]",
            "cannot set phases[0].method to 'x'",
        ),
        (
            {"space": dimension(LAYERS, categorical=search_pb2.Choices(values=[Value(null_value=0)]))},  # type: ignore[arg-type]
            "search.space[0].categorical.values",
            "numbers, texts or booleans",
        ),
        (
            {"objective": search_pb2.Objective(result="loss", direction=search_pb2.Objective.DIRECTION_MINIMIZE)},
            "search.objective.result",
            "sft.heldout_loss_after",
        ),
        ({"budget": search_pb2.SearchBudget()}, "search.budget.max_trials", "must be set"),
    ]
    for fields, field, message in cases:
        error = await refusal(served.CreateSearch(create(search_of(**fields))))
        assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", field), fields
        assert message in error.message, error.message
    elsewhere = search_of(training="orgs/rival/trainings/packages")
    assert (await refusal(served.CreateSearch(create(elsewhere)))).reason == "NOT_FOUND"
    assert not (await served.ListSearches(pb.ListSearchesRequest(parent="orgs/acme"))).searches


async def test_what_the_pre_flight_forbids_is_not_searched(served: Caller, dataset: FakeDataset) -> None:
    for name in dataset.rows:
        dataset.rows[name] = [{"text": "no answer"}]
    error = await refusal(served.CreateSearch(create(search_of())))
    assert (error.reason, error.metadata["check"]) == ("PREFLIGHT_FAILED", "schema")


async def test_another_organization_does_not_see_a_search(served: Caller) -> None:
    started = await served.CreateSearch(create(search_of()))
    assert started.spec.phases[0].steps == 30
    assert started.budget.max_trials == TRIALS
    stranger = served.other(org="rival")
    for call in (
        stranger.GetSearch(pb.GetSearchRequest(name=NAME)),
        stranger.ListSearchTrials(pb.ListSearchTrialsRequest(parent=NAME)),
        stranger.RenderSearchReport(pb.RenderSearchReportRequest(name=NAME)),
    ):
        assert (await refusal(call)).reason == "NOT_FOUND"
    await stranger.close()


async def test_sweep_keeps_what_a_search_goes_on_with(served: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data of its trials and its best model so far are named by its checkpoint alone."""
    started = await served.CreateSearch(create(search_of()))
    assert served.service is not None
    parts: Any = served.service.app
    kept = await parts.blobs.commit({"blobs": []})
    await parts.blobs.put(b"of a trial that was not the best")
    async with parts.database.system() as uow:
        task = await tasks.get(uow, started.task, for_update=True)
        await tasks.change(uow, task, checkpoint={"manifests": [kept]})
    monkeypatch.setattr("services.training.jobs.sweep._GRACE", timedelta(seconds=-1))
    assert await sweep(parts.database, parts.blobs, SYSTEM_CLOCK) == 1
    assert await parts.blobs.load_manifest(kept) == {"blobs": []}


async def test_sweep_takes_what_trials_left_while_the_search_goes_on(served: Caller) -> None:
    started = await served.CreateSearch(create(search_of()))
    assert served.service is not None
    parts: Any = served.service.app
    async with parts.database.system() as uow:
        task = await tasks.get(uow, started.task)
        granted = BlobStore.from_grant(await parts.blobs.grant_write(task.uid, 60))
        best, loser = granted.commit_sync({"blobs": []}), granted.commit_sync({"blobs": [], "kind": "training.model"})
        told = {"trials": [], "prepared": {}, "manifests": [best], "replaced": [loser]}
        kind = SearchTasks(parts.database, None, SYSTEM_CLOCK).kind()  # type: ignore[arg-type]
        assert kind.checkpoint is not None
        await kind.checkpoint(await tasks.change(uow, task, state="RUNNING", checkpoint=told), told, uow)
    assert await sweep(parts.database, parts.blobs, SYSTEM_CLOCK) == 0
    assert await sweep(parts.database, parts.blobs, ManualClock(SYSTEM_CLOCK.now() + timedelta(minutes=11))) == 1
    assert await parts.blobs.load_manifest(best) == {"blobs": []}
