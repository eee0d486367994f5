"""Rows into a stream at the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from argosy.cli.main import build
from typer.testing import CliRunner

from tests.unit.argosy.conftest import FakeGateway

APP = build()
pytestmark = pytest.mark.usefixtures("logged_in")


@pytest.mark.parametrize("pipe", [True, False])
def test_lines_are_sent_in_batches(gateway: FakeGateway, tmp_path: Path, pipe: bool) -> None:
    lines = "".join(json.dumps({"n": number}) + "\n\n" for number in range(5))
    file = tmp_path / "rows.jsonl"
    file.write_text(lines)
    source = "-" if pipe else str(file)
    result = CliRunner().invoke(APP, ["dataset-stream", "send", "logs/live", source, "--batch", "2"], input=lines)
    assert result.exit_code == 0, result.output
    assert "5 rows sent" in result.output
    assert {one.path for one in gateway.requests} == {"/v1/orgs/acme/datasets/logs/streams/live:append"}
    assert [json.loads(one.body)["rows"] for one in gateway.requests] == [
        [{"n": 0}, {"n": 1}],
        [{"n": 2}, {"n": 3}],
        [{"n": 4}],
    ]
    assert len({json.loads(one.body)["request_id"] for one in gateway.requests}) == 3


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"n": 1}\n{"n"\n', "line 2"),
        (b"[1]\n", "is no JSON object"),
        (b'{"n": "\xff"}\n', "UTF-8"),
        (None, "No such"),
    ],
)
def test_what_cannot_be_sent_is_named(gateway: FakeGateway, tmp_path: Path, content: bytes | None, told: str) -> None:
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_bytes(content)
    result = CliRunner().invoke(APP, ["dataset-stream", "send", "logs/live", str(file)])
    assert result.exit_code != 0
    assert told in result.output
    assert not gateway.requests


def test_a_stream_is_made_with_its_source(gateway: FakeGateway) -> None:
    options = ["--parent", "logs", "--id", "live", "--set", "nats_source.uri=tls://nats.example:4222"]
    command = ["dataset-stream", "create", *options, "--set", "nats_source.subject=logs.>"]
    result = CliRunner().invoke(APP, command)
    assert result.exit_code == 0, result.output
    (request,) = gateway.requests
    assert request.path == "/v1/orgs/acme/datasets/logs/streams"
    source = {"uri": "tls://nats.example:4222", "subject": "logs.>"}
    assert json.loads(request.body)["dataset_stream"] == {"nats_source": source}
