"""Runs that Argosy did not start: over the wire with the real database."""

from __future__ import annotations

import asyncio
import io
import math
import threading
import zipfile
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from argosy import event_files
from argosy.training.v1 import outside_run_service_pb2 as pb
from argosy.training.v1 import run_artifact_service_pb2 as artifacts
from argosy.training.v1 import run_metrics_pb2, run_service_pb2, training_pb2
from argosy.training.v1 import training_service_pb2 as training_service

from services.training.jobs.sweep import sweep
from tests.integration.training.conftest import training_service as training
from tests.integration.training.peers import Caller, FakeDataset, refusal

ORG = "orgs/acme"
TRAINING = f"{ORG}/trainings/elsewhere"
OURS = f"{ORG}/trainings/packages/runs/1"
State = training_pb2.TrainingRun.State
C = pb.RunCondition


@pytest.fixture
async def editor(mesh: Any, dataset: FakeDataset, tmp_path: Path, database_url: str) -> AsyncIterator[Caller]:
    """An editor of acme, with a training of outside runs, one of ours, and a run of it that nobody carries."""
    async with training(mesh, tmp_path, database_url, artifact_max_bytes=1000) as service:
        caller = Caller(mesh, service=service)
        await caller.project()
        await caller.training(labels={"team": "red"})
        await caller.RunTraining(training_service.RunTrainingRequest(name=OURS.rpartition("/runs/")[0]))
        given = training_pb2.Training(display_name="Elsewhere", outside=True)
        await caller.CreateTraining(
            training_service.CreateTrainingRequest(parent=ORG, training_id="elsewhere", training=given)
        )
        yield caller
        await caller.close()


async def begin(caller: Caller, run_id: str = "first", **fields: Any) -> pb.RunRecord:
    return await caller.CreateOutsideRun(
        pb.CreateOutsideRunRequest(parent=TRAINING, outside_run_id=run_id, display_name=run_id.title(), **fields)
    )


async def report(caller: Caller, name: str, **fields: Any) -> pb.ReportOutsideRunResponse:
    return await caller.ReportOutsideRun(pb.ReportOutsideRunRequest(name=name, **fields))


def series(key: str, values: list[float], first: int = 0) -> run_metrics_pb2.MetricSeries:
    steps = range(first, first + len(values))
    return run_metrics_pb2.MetricSeries(key=key, steps=steps, times=[1000 + step for step in steps], values=values)


async def search(caller: Caller, *conditions: pb.RunCondition, **fields: Any) -> list[str]:
    names = [TRAINING, OURS.rpartition("/runs/")[0]]
    request = pb.SearchRunsRequest(parent=ORG, trainings=names, conditions=conditions, **fields)
    found = await caller.SearchRuns(request)
    return [record.run.name.rpartition("/")[2] for record in found.run_records]


async def test_an_outside_run_is_told_read_and_compared(editor: Caller) -> None:
    made = await begin(editor, parameters={"lr": "0.1", "model": "tree"}, tags={"who": "me"})
    name = made.run.name
    assert made.run.outside
    assert made.run.state == State.STATE_RUNNING
    asked = {
        "series": [series("loss", [3.0, 2.0, math.nan]), series("accuracy", [0.5])],
        "parameters": {"depth": "3"},
        "tags": {"note": "x", "who": "you"},
        "request_id": "once",
    }
    assert (await report(editor, name, **asked)).point_count == 4
    # The same again adds nothing.
    await report(editor, name, **asked)
    keys = await editor.ListRunMetricKeys(run_service_pb2.ListRunMetricKeysRequest(parent=name))
    assert {key.key: key.point_count for key in keys.metric_keys} == {"accuracy": 1, "loss": 3}

    await report(editor, name, removed_tags=["note"], state="STATE_SUCCEEDED")
    record = await editor.GetRunRecord(pb.GetRunRecordRequest(name=name))
    assert dict(record.parameters) == {"lr": "0.1", "model": "tree", "depth": "3"}
    assert dict(record.tags) == {"who": "you"}
    assert record.run.state == State.STATE_SUCCEEDED
    assert record.HasField("end_time")
    assert [(point.key, point.step) for point in record.metrics] == [("accuracy", 0), ("loss", 2)]
    assert dict(record.run.results) == {"accuracy": 0.5}

    # It is a run like others: in the lists, in curves, in comparisons, in the events.
    listed = await editor.ListTrainingRuns(
        training_service.ListTrainingRunsRequest(
            parent=f"{ORG}/trainings/-", filter="parameters.lr < 0.2 AND results.accuracy = 0.5"
        )
    )
    assert [run.name for run in listed.training_runs] == [name]
    curves = await editor.GetRunCurves(
        run_service_pb2.GetRunCurvesRequest(parent=ORG, runs=[name, OURS], keys=["loss"])
    )
    assert [list(curve.values)[:2] for curve in curves.curves] == [[3.0, 2.0]]
    compared = await editor.CompareRuns(run_service_pb2.CompareRunsRequest(parent=ORG, runs=[name, OURS]))
    differing = {parameter.name: dict(parameter.values) for parameter in compared.parameters}
    assert differing["parameters.model"] == {name: "tree"}
    events = await editor.ListRunEvents(run_service_pb2.ListRunEventsRequest(parent=name))
    assert [event.message.split(",")[0].split(" ")[0] for event in events.events] == ["reported", "succeeded"]

    error = await refusal(report(editor, name, parameters={"lr": "0.2"}, tags={"who": "nobody"}))
    assert error.reason == "INVALID_FIELD"
    assert error.metadata["field"] == "parameters.lr"
    # What was refused left nothing.
    assert dict((await editor.GetRunRecord(pb.GetRunRecordRequest(name=name))).tags) == {"who": "you"}


async def test_what_argosy_started_is_only_read(editor: Caller) -> None:
    made = await begin(editor)
    ours = await editor.GetRunRecord(pb.GetRunRecordRequest(name=OURS))
    assert ours.parameters["spec.seed"] == "7"
    assert not ours.run.outside
    for call in (
        report(editor, OURS, tags={"a": "b"}),
        report(editor, OURS, series=[series("loss", [1.0])]),
        editor.DeleteOutsideRun(pb.DeleteOutsideRunRequest(name=OURS)),
        editor.ImportEventFile(pb.ImportEventFileRequest(name=OURS, data=b"x")),
        editor.AppendRunArtifact(
            artifacts.AppendRunArtifactRequest(name=OURS, path="a", upload_id="u", data=b"x", last=True)
        ),
        editor.CreateOutsideRun(pb.CreateOutsideRunRequest(parent=OURS.rpartition("/runs/")[0])),
        # And what was started elsewhere is not steered from here.
        editor.RunTraining(training_service.RunTrainingRequest(name=TRAINING)),
        editor.CancelTrainingRun(run_service_pb2.CancelTrainingRunRequest(name=made.run.name)),
        editor.PauseTrainingRun(run_service_pb2.PauseTrainingRunRequest(name=made.run.name)),
        editor.CloneTraining(run_service_pb2.CloneTrainingRequest(name=made.run.name)),
    ):
        assert (await refusal(call)).reason == "STATE_CONFLICT"
    given = training_pb2.Training(outside=True, model_project=f"{ORG}/modelProjects/packages")
    error = await refusal(editor.CreateTraining(training_service.CreateTrainingRequest(parent=ORG, training=given)))
    assert error.metadata["field"] == "training.model_project"


async def test_runs_are_searched_by_whatever_they_have(editor: Caller) -> None:
    for number, lr in enumerate(("0.1", "0.2", "0.4")):
        made = await begin(editor, f"r{number}", parameters={"lr": lr}, tags={"kind": f"K{number}"})
        await report(editor, made.run.name, series=[series("acc", [0.1 * number])])
    await report(editor, f"{TRAINING}/runs/r2", state="STATE_FAILED", series=[series("only", [1.0])])

    def met(field: Any, key: str, operator: Any, *texts: str, number: float = 0.0) -> pb.RunCondition:
        return C(field=field, key=key, operator=operator, texts=texts, number=number)

    metric, tag, parameter, attribute = C.FIELD_METRIC, C.FIELD_TAG, C.FIELD_PARAMETER, C.FIELD_ATTRIBUTE
    assert await search(editor, met(metric, "acc", C.OPERATOR_AT_LEAST, number=0.1)) == ["r2", "r1"]
    assert await search(editor, met(parameter, "lr", C.OPERATOR_EQUAL, "0.1")) == ["r0"]
    assert await search(editor, met(parameter, "lr", C.OPERATOR_NOT_EQUAL, "0.1")) == ["r2", "r1"]
    assert await search(editor, met(parameter, "spec.seed", C.OPERATOR_EQUAL, "7")) == ["1"]
    assert await search(editor, met(tag, "kind", C.OPERATOR_ILIKE, "k_")) == ["r2", "r1", "r0"]
    assert await search(editor, met(tag, "kind", C.OPERATOR_LIKE, "k_")) == []
    assert await search(editor, met(tag, "kind", C.OPERATOR_LIKE, "K\\")) == []
    assert await search(editor, met(tag, "team", C.OPERATOR_IN, "red", "blue")) == ["1"]
    assert await search(editor, met(tag, "kind", C.OPERATOR_NOT_IN, "K0")) == ["r2", "r1"]
    assert await search(editor, met(attribute, "state", C.OPERATOR_EQUAL, "FAILED")) == ["r2"]
    assert await search(editor, met(attribute, "display_name", C.OPERATOR_EQUAL, "R1")) == ["r1"]
    assert await search(editor, met(attribute, "start_time", C.OPERATOR_GREATER, number=4e12)) == []
    order = [pb.RunOrder(field=metric, key="acc", descending=True)]
    # What has no such metric comes last.
    assert await search(editor, orders=order) == ["r2", "r1", "r0", "1"]

    request = pb.SearchRunsRequest(parent=ORG, trainings=[TRAINING], orders=order, page_size=2)
    page = await editor.SearchRuns(request)
    request.page_token = page.next_page_token
    rest = await editor.SearchRuns(request)
    assert [record.run.name[-2:] for record in (*page.run_records, *rest.run_records)] == ["r2", "r1", "r0"]
    assert not rest.next_page_token

    for condition, field in (
        (met(attribute, "colour", C.OPERATOR_EQUAL, "red"), "conditions[0].key"),
        (met(metric, "acc", C.OPERATOR_LIKE), "conditions[0].operator"),
        (met(tag, "kind", C.OPERATOR_EQUAL), "conditions[0].texts"),
        (met(attribute, "state", C.OPERATOR_EQUAL, "ASLEEP"), "conditions[0].texts"),
        (met(parameter, "spec.seed", C.OPERATOR_LIKE, "%"), "conditions"),
    ):
        assert (await refusal(search(editor, condition))).metadata["field"] == field
    stranger = pb.SearchRunsRequest(parent=ORG, trainings=["orgs/globex/trainings/elsewhere"])
    assert (await refusal(editor.SearchRuns(stranger))).reason == "NOT_FOUND"


async def test_a_deleted_run_takes_nothing_and_comes_back(editor: Caller) -> None:
    name = (await begin(editor)).run.name
    await editor.DeleteOutsideRun(pb.DeleteOutsideRunRequest(name=name))
    assert (await refusal(report(editor, name, tags={"a": "b"}))).reason == "NOT_FOUND"
    assert await search(editor) == ["1"]
    assert await search(editor, life=pb.SearchRunsRequest.LIFE_DELETED) == ["first"]
    await editor.UndeleteOutsideRun(pb.UndeleteOutsideRunRequest(name=name))
    assert await search(editor) == ["first", "1"]


async def test_a_list_of_trainings_goes_on_behind_one(editor: Caller) -> None:
    for number in range(4):
        labels = {"kind": "ab"[number % 2]} if number else {}
        given = training_pb2.Training(outside=True, labels=labels)
        await editor.CreateTraining(
            training_service.CreateTrainingRequest(parent=ORG, training_id=f"t{number}", training=given)
        )

    async def listed(**fields: Any) -> list[str]:
        request = training_service.ListTrainingsRequest(parent=ORG, page_size=2, **fields)
        found: list[str] = []
        while True:
            page = await editor.ListTrainings(request)
            found += [training.name.rpartition("/")[2] for training in page.trainings]
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    assert await listed(labels=["kind"]) == ["t3", "t2", "t1"]
    assert await listed(labels=["kind=b"]) == ["t3", "t1"]
    assert await listed(after=f"{ORG}/trainings/t3", labels=["kind"]) == ["t2", "t1"]
    await editor.DeleteTraining(training_service.DeleteTrainingRequest(name=f"{ORG}/trainings/t2"))
    assert await listed(after=f"{ORG}/trainings/t2") == ["t1", "t0", "elsewhere", "packages"]
    assert (await refusal(listed(after=f"{ORG}/trainings/nothing"))).reason == "NOT_FOUND"


async def test_points_come_in_pages(editor: Caller) -> None:
    name = (await begin(editor)).run.name
    await report(editor, name, series=[series("loss", [float(step) for step in range(10)])])
    request = pb.ListRunPointsRequest(parent=name, key="loss", page_size=4, first_step=1)
    found: list[float] = []
    while True:
        page = await editor.ListRunPoints(request)
        found += [point.value for point in page.run_points]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert found == [float(step) for step in range(1, 10)]


async def test_what_runs_have_fits_into_messages(editor: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """With records of 3 MB; a message has at most 9 MiB."""
    texts = {f"p{number}": "ä" * 2900 for number in range(160)}
    names = [
        (await begin(editor, f"r{number}", parameters=texts, tags=texts)).run.name.rpartition("/")[2]
        for number in range(8)
    ]
    for field in ("parameters", "tags"):
        error = await refusal(
            report(editor, f"{TRAINING}/runs/r0", **{field: {f"q{at}": "x" * 5999 for at in range(13)}})
        )
        assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", field)
        assert "at most 1,000,000" in error.message
    search_request = pb.SearchRunsRequest(parent=ORG, trainings=[TRAINING], page_size=1000)
    list_request = training_service.ListTrainingRunsRequest(parent=TRAINING, page_size=1000)
    every = training_service.ListTrainingRunsRequest(parent=f"{ORG}/trainings/-", filter="training = elsewhere")
    for request, call, field in (
        (search_request, editor.SearchRuns, "run_records"),
        (list_request, editor.ListTrainingRuns, "training_runs"),
        (every, editor.ListTrainingRuns, "training_runs"),
    ):
        pages: list[list[str]] = []
        while not pages or request.page_token:
            page = await call(request)
            runs = [getattr(one, "run", one) for one in getattr(page, field)]
            pages.append([run.name.rpartition("/")[2] for run in runs])
            request.page_token = page.next_page_token
        assert len(pages) > 1
        assert [name for page in pages for name in page] == names[::-1]

    monkeypatch.setattr("services.training.handlers.runs.PAGE_BYTES", 1_000)
    first, second = (f"{TRAINING}/runs/r{number}" for number in range(2))
    await report(editor, first, parameters={f"only{number}": "here" for number in range(50)})
    error = await refusal(editor.CompareRuns(run_service_pb2.CompareRunsRequest(parent=ORG, runs=[first, second])))
    assert error.reason == "TOO_LARGE"

    monkeypatch.setattr("services.training.store.metrics.MOST_METRICS", 3)
    await report(editor, first, series=[series(key, [1.0]) for key in "abc"])
    assert (await refusal(report(editor, first, series=[series("d", [1.0])]))).reason == "TOO_LARGE"
    await report(editor, first, series=[series("a", [2.0], 1)])


async def test_no_connection_is_held_while_an_event_file_is_read(
    editor: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = (await begin(editor)).run.name
    reading, go_on = threading.Event(), threading.Event()

    def read_part(*_: Any) -> event_files.Part:
        reading.set()
        go_on.wait(10)
        return event_files.Part(7)

    assert editor.service is not None
    app: Any = editor.service.app
    pool = app.database.engine.pool

    async def held() -> int:
        """Connections in use all the time; what the service does beside it takes one now and then."""
        seen = []
        for _ in range(20):
            seen.append(pool.checkedout())
            await asyncio.sleep(0.01)
        return min(seen)

    before = await held()
    monkeypatch.setattr("services.training.handlers.event_files.event_files.read_part", read_part)
    request = pb.ImportEventFileRequest(name=name, data=b"x", request_id="one")
    call = asyncio.ensure_future(editor.ImportEventFile(request))
    assert await asyncio.to_thread(reading.wait, 10)
    during = await held()
    go_on.set()
    assert (await call).next_offset == 7
    assert during == before


async def test_event_files_go_out_and_come_in(editor: Caller) -> None:
    name, other = (await begin(editor)).run.name, (await begin(editor, "second")).run.name
    await report(editor, name, series=[series("train/loss", [3.0, 2.0, 1.0]), series("accuracy", [0.5])])
    request = pb.DownloadEventFilesRequest(parent=ORG, runs=[name, other])
    content = b"".join([answer.data async for answer in editor.DownloadEventFiles(request)])
    archive = zipfile.ZipFile(io.BytesIO(content))
    assert [path.rpartition("/")[0] for path in archive.namelist()] == ["elsewhere/first", "elsewhere/second"]
    file = archive.read(archive.namelist()[0])

    broken = bytearray(file)
    # A record in the middle, whose length stays as it is.
    broken[len(file) // 2] ^= 0xFF
    answer = await editor.ImportEventFile(
        pb.ImportEventFileRequest(name=other, data=bytes(broken), last=True, request_id="part-0")
    )
    assert (answer.next_offset, answer.fault_count) == (len(file), 1)
    assert answer.point_count == 3
    assert 0 < answer.faults[0].offset < len(file)

    third = (await begin(editor, "third")).run.name
    whole = file + event_files.scalar("bad(tag)", 1, 5, 1.0)
    at = 0
    while at < len(whole):
        piece = whole[at : at + 100]
        answer = await editor.ImportEventFile(
            pb.ImportEventFileRequest(name=third, data=piece, offset=at, last=at + 100 >= len(whole))
        )
        assert answer.next_offset > at
        at = answer.next_offset
    assert "'bad(tag)' is no metric" in answer.faults[0].reason
    curves = await editor.GetRunCurves(
        run_service_pb2.GetRunCurvesRequest(parent=ORG, runs=[name, third], keys=["train/loss", "accuracy"])
    )
    by_run = {(curve.run, curve.key): (list(curve.steps), list(curve.values)) for curve in curves.curves}
    assert by_run[name, "train/loss"] == by_run[third, "train/loss"] == ([0, 1, 2], [3.0, 2.0, 1.0])
    assert by_run[name, "accuracy"] == by_run[third, "accuracy"]


async def test_files_of_a_run(editor: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    name = (await begin(editor)).run.name

    def part(path: str, upload_id: str, offset: int, data: bytes, last: bool) -> Any:
        return editor.AppendRunArtifact(
            artifacts.AppendRunArtifactRequest(
                name=name, path=path, upload_id=upload_id, offset=offset, data=data, last=last
            )
        )

    async def listed(path: str = "", **fields: Any) -> list[str]:
        request = artifacts.ListRunArtifactsRequest(parent=name, path=path, page_size=1, **fields)
        found: list[str] = []
        while True:
            page = await editor.ListRunArtifacts(request)
            found += [f"{artifact.path}/" if artifact.folder else artifact.path for artifact in page.run_artifacts]
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    async def content(path: str) -> bytes:
        request = artifacts.DownloadRunArtifactRequest(name=name, path=path)
        return b"".join([answer.data async for answer in editor.DownloadRunArtifact(request)])

    await part("model/a.bin", "one", 0, b"abc", False)
    assert await listed() == []
    assert (await refusal(part("model/a.bin", "one", 1, b"x", False))).reason == "OFFSET_MISMATCH"
    await part("model/a.bin", "one", 3, b"def", True)
    await part("model/empty", "two", 0, b"", True)
    # A token holds the last path, however long it is.
    deep = "/".join(["model", *(letter * 180 for letter in "abcde"), '"' * 60])
    await part(deep, "deep", 0, b"", True)
    await part("notes.txt", "three", 0, b"hi", True)
    await part("models/b.bin", "other", 0, b"b", True)
    assert await listed() == ["model/a.bin", deep, "model/empty", "models/b.bin", "notes.txt"]
    assert await listed("model") == ["model/a.bin", deep, "model/empty"]
    assert await listed(children=True) == ["model/", "models/", "notes.txt"]
    assert await listed("model", children=True) == ["model/a.bin", f"model/{'a' * 180}/", "model/empty"]
    assert await listed("notes.txt", children=True) == []
    assert await content("model/a.bin") == b"abcdef"
    # The newest upload of a path is the file.
    await part("model/a.bin", "four", 0, b"new", True)
    assert await content("model/a.bin") == b"new"
    for path in ("../a", "/a", "a//b", "a/./b", "a\\b", "a\nb", "x" * 300):
        assert (await refusal(part(path, "five", 0, b"x", True))).metadata["field"] == "path"
    assert (await refusal(part("big", "six", 0, b"x" * 1001, True))).reason == "TOO_LARGE"

    assert editor.service is not None
    app: Any = editor.service.app
    # What a row names stays, however old it is.
    monkeypatch.setattr("services.training.jobs.sweep._GRACE", timedelta(seconds=-1))
    # Both parts of the first upload of the path, and one that came to the wrong place.
    assert await sweep(app.database, app.blobs, app.clock) == 3
    assert await content("notes.txt") == b"hi"
    removed = await editor.RemoveRunArtifacts(artifacts.RemoveRunArtifactsRequest(name=name, path="model"))
    assert removed.removed_count == 3
    assert await listed() == ["models/b.bin", "notes.txt"]
