"""Event files at the terminal: written while a run goes on, and taken in."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from argosy import event_files
from argosy.cli.main import build
from typer.testing import CliRunner

from tests.unit.argosy.conftest import Answer, FakeGateway, Request

APP = build()
pytestmark = pytest.mark.usefixtures("logged_in")
RUN = "orgs/acme/trainings/packages/runs/3"


class Run:
    """A run that has two points more each time that somebody looks, and has ended after three looks."""

    def __init__(self) -> None:
        self.looks = 0

    def respond(self, request: Request) -> Answer:
        path, query = urlsplit(request.path).path, parse_qs(urlsplit(request.path).query)
        if path.endswith("/metricKeys"):
            return answer({"metricKeys": [{"key": "sft.loss", "pointCount": str(2 * self.looks)}]})
        if path.endswith("/points"):
            # A page has one point.
            step = int((query.get("page_token") or query.get("first_step") or ["0"])[0])
            point = {"step": str(step), "time": "1790000000000000", "value": step / 2}
            more = {"nextPageToken": str(step + 1)} if step + 1 < 2 * self.looks else {}
            return answer({"runPoints": [point], **more})
        self.looks += 1
        state = "STATE_SUCCEEDED" if self.looks > 3 else "STATE_RUNNING"
        return answer({"name": RUN, "state": state, "createTime": "2026-01-02T03:04:05Z"})


def answer(body: dict[str, object]) -> Answer:
    return Answer(body=json.dumps(body).encode())


def test_a_run_is_followed_to_its_end(gateway: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("argosy.cli.tensorboard._BEAT_SECONDS", 0.0)
    gateway.respond = Run().respond
    result = CliRunner().invoke(APP, ["training", "tensorboard", "packages/3", "--logdir", str(tmp_path / "events")])
    assert result.exit_code == 0, result.output
    (file,) = [path for path in (tmp_path / "events").rglob("*") if path.is_file()]
    assert str(file.relative_to(tmp_path / "events")) == "packages/3/events.out.tfevents.1767323045.argosy"
    part = event_files.read_part(file.read_bytes(), 0, last=True)
    assert part.faults == []
    # Each point once, although it was looked for again and again.
    assert [(one.tag, one.step, one.value) for one in part.scalars] == [
        ("sft.loss", step, step / 2) for step in range(8)
    ]


def test_event_files_are_sent_from_where_the_last_answer_ended(gateway: FakeGateway, tmp_path: Path) -> None:
    content = event_files.opening(0) + event_files.scalar("loss", 1, 5, 1.0)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "events.out.tfevents.1.host").write_bytes(content)
    (tmp_path / "notes.txt").write_text("no event")
    ends = iter([10, len(content)])

    def respond(request: Request) -> Answer:
        fault = [{"offset": "3", "reason": "the checksum of the record is wrong"}]
        return answer({"nextOffset": str(next(ends)), "pointCount": "1", "faultCount": "1", "faults": fault})

    gateway.respond = respond
    result = CliRunner().invoke(APP, ["training", "import-events", "packages/3", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "at byte 3: the checksum of the record is wrong" in result.output.replace("\n", "")
    assert "2 points taken" in result.output
    sent = [request.json for request in gateway.requests]
    assert [base64.b64decode(one["data"]) for one in sent] == [content, content[10:]]
    assert [one.get("offset", "0") for one in sent] == ["0", "10"]
    assert {request.path for request in gateway.requests} == {f"/v1/{RUN}:importEventFile"}


def test_a_folder_without_event_files_is_said(gateway: FakeGateway, tmp_path: Path) -> None:
    result = CliRunner().invoke(APP, ["training", "import-events", "packages/3", str(tmp_path)])
    assert result.exit_code == 2
    assert "tfevents" in result.output
    assert not gateway.requests
