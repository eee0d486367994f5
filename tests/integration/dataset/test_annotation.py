"""The annotation model from a request to boxes that people correct: over gRPC, with real PostgreSQL, NATS and Ray."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from argosy.common.v1 import options_pb2, task_pb2
from argosy.dataset.v1 import annotation_pb2, dataset_pb2, human_work_pb2
from argosy.dataset.v1 import annotation_service_pb2 as pb
from argosy.dataset.v1 import dataset_service_pb2 as data_pb
from argosy.dataset.v1 import human_work_service_pb2 as work_pb
from dataset_client import Client, dataset_service, refusal
from google.protobuf import json_format, struct_pb2
from PIL import Image

from libs.common.testing.mesh import Mesh
from services.dataset.engines.detection.scenes import SHAPE_NAMES, Scene, draw, held_out

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

STARS = "orgs/acme/detectors/stars"
SHAPES = ("star", "circle")
READING = {"targets": ["red car", "red  car", "person with a helmet"], "excluded": ["toy"], "unread": ["quickly"]}


def scenes(count: int) -> list[Scene]:
    rng = np.random.default_rng(5)
    return [draw(rng, ~held_out()) for _ in range(count)]


def archive(drawn: list[Scene]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for number, scene in enumerate(drawn):
            picture = io.BytesIO()
            Image.fromarray(scene.image).save(picture, "PNG")
            file.writestr(f"{number:03}.png", picture.getvalue())
    return packed.getvalue()


def struct(value: dict[str, Any]) -> struct_pb2.Struct:
    return json_format.ParseDict(value, struct_pb2.Struct())


async def built_in(client: Client, steps: int = 60) -> annotation_pb2.Detector:
    """A detector of a minute less training than a good one."""
    request = pb.CreateDetectorRequest(
        parent="orgs/acme",
        detector_id="stars",
        detector=annotation_pb2.Detector(kind="DETECTOR_KIND_BUILT_IN", secrecy="SECRECY_CONFIDENTIAL"),
        training_steps=steps,
    )
    task = await client.finish(await client.CreateDetector(request))
    assert task.state == task_pb2.Task.STATE_SUCCEEDED, task
    assert task.result["detector"] == STARS
    return await client.GetDetector(pb.GetDetectorRequest(name=STARS))


async def rows_of(client: Client, version: str) -> list[dict[str, Any]]:
    page = await client.PreviewRows(data_pb.PreviewRowsRequest(parent=version, page_size=100))
    return [json_format.MessageToDict(row.fields) for row in page.rows]


async def test_from_a_request_to_an_accepted_version(worker: Client) -> None:
    client, drawn = worker, scenes(40)
    dataset = await client.dataset("shapes", type="DATASET_TYPE_IMAGE")
    before = await client.imported(dataset.name, archive(drawn), "shapes.zip")
    detector = await built_in(client)
    card = json_format.MessageToDict(detector.card)
    assert card["recipe"]["steps"] == 60
    assert 0 <= card["ap50_unseen"] <= 1
    assert detector.byte_count > 100_000

    reading = await client.ReadTargets(pb.ReadTargetsRequest(parent="orgs/acme", request="标出五角星和圆形，不要圆环"))
    assert (list(reading.targets), list(reading.excluded), reading.reader) == ([*SHAPES], ["ring"], "rules")
    request = pb.AnnotateVersionRequest(
        name=before.name, detector=STARS, targets=reading.targets, excluded=reading.excluded
    )
    task = await client.finish(await client.AnnotateVersion(request))
    assert task.state == task_pb2.Task.STATE_SUCCEEDED, task
    version = await client.GetDatasetVersion(data_pb.GetDatasetVersionRequest(name=str(task.result["version"])))
    # What comes of a confidential detector is confidential, and says where it comes from.
    assert version.secrecy == dataset_pb2.DatasetVersion(secrecy="SECRECY_CONFIDENTIAL").secrecy
    parents = {parent.relation: parent.digest for parent in version.lineage.parents}
    assert parents == {"annotated_from": before.manifest_digest, "annotated_by": detector.manifest_digest}
    rows = await rows_of(client, version.name)
    assert len(rows) == 40
    found = [one for row in rows for one in row["objects"]]
    assert {one["label"] for one in found} == {*SHAPES}
    assert all(0.05 <= one["score"] <= 1 for one in found)
    counted = {rule.rule: rule.changed for rule in version.report.rules}
    assert counted == {label: sum(any(o["label"] == label for o in row["objects"]) for row in rows) for label in SHAPES}

    # On Ray (two shards) as in one process: the same rows, asked again.
    again = await client.finish(await client.AnnotateVersion(request))
    other = await client.GetDatasetVersion(data_pb.GetDatasetVersionRequest(name=str(again.result["version"])))
    assert other.content_digest == version.content_digest

    await people_correct(client, version.name, drawn, rows)


async def people_correct(client: Client, version: str, drawn: list[Scene], rows: list[dict[str, Any]]) -> None:
    """Somebody makes of each proposal what is on the image; the report says from which score on nobody needs to."""
    field = human_work_pb2.WorkField(name="objects", kind="WORK_FIELD_KIND_BOXES", choices=SHAPES)
    made = await client.CreateWorkProject(
        work_pb.CreateWorkProjectRequest(
            parent="orgs/acme",
            work_project_id="boxes",
            work_project=human_work_pb2.WorkProject(source=version, form=human_work_pb2.WorkForm(fields=[field])),
        )
    )
    items = [
        human_work_pb2.WorkItem(
            payload=struct({"file_name": row["file_name"]}), proposal=struct({"objects": row["objects"]})
        )
        for row in rows
    ]
    await client.AddWorkItems(work_pb.AddWorkItemsRequest(parent=made.name, items=items[:30]))
    while (taken := await client.TakeWork(work_pb.TakeWorkRequest(name=made.name))).HasField("assignment"):
        scene = drawn[int(str(taken.assignment.item.payload["file_name"])[:3])]
        request = work_pb.SubmitWorkRequest(name=taken.assignment.name, answer=struct({"objects": truth(scene)}))
        await client.SubmitWork(request)
    asked = work_pb.ReportWorkRequest(name=made.name, wanted_precision=0.2)
    assert (await client.finish(await client.ReportWork(asked))).state == task_pb2.Task.STATE_SUCCEEDED
    report = await client.GetWorkReport(work_pb.GetWorkReportRequest(name=made.name))
    (proposed,) = report.proposals
    assert (proposed.field, proposed.items, len(proposed.rows)) == ("objects", 30, 19)
    counts = [row.proposals for row in proposed.rows]
    assert counts[0] == sum(len(row["objects"]) for row in rows[:30])
    assert counts == sorted(counts, reverse=True)
    assert proposed.rows[0].recall.value > 0.3
    enough = [row.score for row in proposed.rows if row.precision.low >= 0.2]
    assert (proposed.auto_accept_score if enough else None) == (enough[0] if enough else None)

    # Images whose boxes are all good enough need nobody; those with a lesser one, and those without any, do.
    least = sorted(min((o["score"] for o in row["objects"]), default=-1.0) for row in rows[30:])[-3]
    added = await client.AddWorkItems(
        work_pb.AddWorkItemsRequest(parent=made.name, items=items[30:], accept_score=least)
    )
    assert (added.item_count, added.accepted_count) == (10, 3)
    progress = (await client.GetWorkProject(work_pb.GetWorkProjectRequest(name=made.name))).progress
    assert (progress.accepted, progress.open, progress.answers) == (33, 7, 30)
    # What nobody looked at says nothing about the model.
    await client.finish(await client.ReportWork(asked))
    report = await client.GetWorkReport(work_pb.GetWorkReportRequest(name=made.name))
    assert report.proposals[0].items == 30


def truth(scene: Scene) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for box, shape in zip(scene.boxes.tolist(), scene.shapes, strict=True):
        if SHAPE_NAMES[shape] in SHAPES:
            left, top, right, bottom = box
            found.append({"label": SHAPE_NAMES[shape], "box": [left, top, right - left, bottom - top]})
    return found


async def test_weights_that_are_none_are_refused(worker: Client) -> None:
    client = worker
    for content, says in (
        (b"no zip at all, but long enough to be one", "cannot be read"),
        (archive(scenes(1)), "lacks config.json, model.safetensors"),
    ):
        upload = await client.upload(content, "weights.zip")
        request = pb.CreateDetectorRequest(
            parent="orgs/acme",
            detector=annotation_pb2.Detector(kind="DETECTOR_KIND_GROUNDING_DINO"),
            upload=upload.name,
        )
        task = await client.finish(await client.CreateDetector(request))
        assert task.state == task_pb2.Task.STATE_FAILED
        assert says in task.error.message
        assert task.error.reason == "PREFLIGHT_FAILED"
    assert not (await client.ListDetectors(pb.ListDetectorsRequest(parent="orgs/acme"))).detectors


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"detector": {}}, "detector.kind"),
        ({"detector": {"kind": "DETECTOR_KIND_BUILT_IN"}, "upload": "orgs/acme/uploads/u"}, "upload"),
        ({"detector": {"kind": "DETECTOR_KIND_YOLO_WORLD"}}, "upload"),
        (
            {
                "detector": {"kind": "DETECTOR_KIND_YOLO_WORLD"},
                "upload": "orgs/acme/uploads/u",
                "training_steps": 5,
            },
            "training_steps",
        ),
        ({"detector": {"kind": "DETECTOR_KIND_BUILT_IN"}, "training_steps": -1}, "training_steps"),
    ],
)
async def test_what_no_detector_can_be_made_of_is_named(client: Client, fields: dict[str, Any], field: str) -> None:
    given: dict[str, Any] = {**fields, "detector": annotation_pb2.Detector(**fields["detector"])}
    error = await refusal(client.CreateDetector(pb.CreateDetectorRequest(parent="orgs/acme", **given)))
    assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", field)


# Language models.


@pytest.fixture
def told() -> list[tuple[str, dict[str, Any]]]:
    """What the language model was asked: the key, and the body."""
    return []


@pytest.fixture
def model(told: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    """A model with OpenAI's interface, outside of Argosy: it says what its name says."""
    replies = {
        "good": (200, completion(json.dumps(READING))),
        "prose": (200, completion("I see a red car.")),
        "empty": (200, completion('{"targets": [" "], "excluded": [], "unread": []}')),
        "wide": (200, completion(json.dumps({**READING, "targets": ["x" * 81]}))),
        "html": (200, b"<html>"),
        "busy": (503, b"overloaded"),
        "moved": (302, b""),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told.append((self.headers.get("Authorization", ""), body))
            status, content = replies.get(body["model"], (404, b"no such model"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if status == 302:
                self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/"
        server.shutdown()


def completion(content: str) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


async def reading_of(client: Client, **model: str) -> annotation_pb2.TargetReading:
    request = pb.ReadTargetsRequest(
        parent="orgs/acme", request="标出红色的车", language_model=annotation_pb2.LanguageModel(**model)
    )
    return await client.ReadTargets(request)


async def test_a_language_model_reads_a_request(
    tmp_path: Path, database_url: str, model: str, told: list[tuple[str, dict[str, Any]]]
) -> None:
    mesh = Mesh(tmp_path)
    async with dataset_service(mesh, tmp_path, database_url, import_networks="127.0.0.0/8") as service:
        client = Client(mesh, service)
        reading = await reading_of(client, uri=model, model="good")
        assert list(reading.targets) == ["red car", "person with a helmet"]
        assert (list(reading.excluded), list(reading.unread), reading.reader) == (["toy"], ["quickly"], "good")
        key, body = told[-1]
        assert key == ""
        assert body["messages"][-1] == {"role": "user", "content": "标出红色的车"}
        assert body["response_format"]["json_schema"]["schema"]["required"] == ["targets", "excluded", "unread"]
        for name, reason in (
            ("prose", "PREFLIGHT_FAILED"),
            ("empty", "PREFLIGHT_FAILED"),
            ("wide", "PREFLIGHT_FAILED"),
            ("html", "PREFLIGHT_FAILED"),
            ("moved", "PREFLIGHT_FAILED"),
            ("busy", "PEER_UNAVAILABLE"),
        ):
            assert (await refusal(reading_of(client, uri=model, model=name))).reason == reason, name
        error = await refusal(reading_of(client, uri=model, model="unknown"))
        assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", "language_model.model")
        await client.close()


@pytest.mark.parametrize(
    ("given", "reason", "field"),
    [
        ({}, "INVALID_FIELD", "language_model"),
        ({"uri": "https://llm.example/v1", "deployment": "orgs/acme/deployments/d"}, "INVALID_FIELD", "language_model"),
        ({"uri": "https://llm.example/v1"}, "INVALID_FIELD", "language_model.model"),
        ({"uri": "https://llm.example/v1?key=1", "model": "m"}, "INVALID_FIELD", "language_model.uri"),
        ({"uri": "http://127.0.0.1:9/v1", "model": "m"}, "INVALID_FIELD", "language_model.uri"),
        ({"uri": "http://169.254.169.254", "model": "m"}, "INVALID_FIELD", "language_model.uri"),
        ({"uri": "file:///etc/passwd", "model": "m"}, "INVALID_FIELD", "language_model.uri"),
        ({"deployment": "orgs/globex/deployments/d"}, "NOT_FOUND", None),
        ({"uri": "https://llm.example/v1", "model": "m", "secret": "orgs/globex/secrets/s"}, "NOT_FOUND", None),
    ],
)
async def test_language_models_that_cannot_be_asked(
    client: Client, given: dict[str, str], reason: str, field: str | None
) -> None:
    error = await refusal(reading_of(client, **given))
    assert (error.reason, error.metadata.get("field")) == (reason, field)


async def test_who_may_read_and_annotate(client: Client) -> None:
    dataset = await client.dataset("docs")
    viewer = client.other(role=options_pb2.ROLE_VIEWER)
    request = pb.ReadTargetsRequest(parent="orgs/acme", request="stars")
    assert (await refusal(viewer.ReadTargets(request))).reason == "ROLE_MISSING"
    asked = pb.AnnotateVersionRequest(name=f"{dataset.name}/versions/v1", detector=STARS, targets=["star"])
    assert (await refusal(client.AnnotateVersion(asked))).reason == "NOT_FOUND"
    unsaid = await refusal(client.ReadTargets(pb.ReadTargetsRequest(parent="orgs/acme", request="the bridge")))
    assert (unsaid.reason, unsaid.metadata["field"]) == ("INVALID_FIELD", "request")
