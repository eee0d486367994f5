"""Trainings as YAML files and own code from a folder, on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.argosy.conftest import Answer, FakeGateway, Request
from tests.unit.argosy.test_cli import _run

pytestmark = pytest.mark.usefixtures("logged_in")

TRAINING = {"name": "orgs/acme/trainings/mine"}
DRAFT = "/v1/orgs/acme/algorithms/prices/draft"


def answering(gateway: FakeGateway, *answers: tuple[str, dict[str, Any]]) -> None:
    """Answers by how the path of a request ends."""

    def respond(request: Request) -> Answer:
        found = next(answer for ending, answer in answers if request.path.split("?")[0].endswith(ending))
        return Answer(body=json.dumps(found).encode())

    gateway.respond = respond


def test_a_file_is_applied(gateway: FakeGateway, tmp_path: Path) -> None:
    file = tmp_path / "training.yaml"
    file.write_text("name: mine\n")
    answering(gateway, (":apply", {"training": TRAINING, "changed_fields": ["spec"]}))
    code, output = _run("training", "apply", "-f", str(file), "--json")
    assert code == 0, output
    assert gateway.requests[0].path == "/v1/orgs/acme/trainings:apply"
    assert gateway.requests[0].json["yaml"] == "name: mine\n"
    assert "mine: changed spec" in output


@pytest.mark.parametrize("search", [{}, {"search": {"training": TRAINING["name"]}}])
def test_what_the_file_describes_is_started(search: dict[str, Any], gateway: FakeGateway, tmp_path: Path) -> None:
    file = tmp_path / "training.yaml"
    file.write_text("name: mine\n")
    answering(
        gateway,
        (":apply", {"training": TRAINING, "created": True, **search}),
        (":run", {"name": "orgs/acme/trainings/mine/runs/1"}),
        ("/runs/1", {"name": "orgs/acme/trainings/mine/runs/1"}),
        ("/searches", {"name": "orgs/acme/searches/s"}),
        ("/searches/s", {"name": "orgs/acme/searches/s"}),
    )
    code, output = _run("training", "apply", "-f", str(file), "--run", "--no-watch")
    assert code == 0, output
    assert gateway.requests[1].path == ("/v1/orgs/acme/searches" if search else "/v1/orgs/acme/trainings/mine:run")


def test_an_export_is_the_bare_document(gateway: FakeGateway) -> None:
    answering(gateway, (":export", {"yaml": "name: mine\n"}))
    assert _run("training", "export", "mine") == (0, "name: mine\n")
    assert gateway.requests[0].path == "/v1/orgs/acme/trainings/mine:export"


def test_a_folder_becomes_the_draft(gateway: FakeGateway, tmp_path: Path) -> None:
    folder = tmp_path / "code"
    for name in ("main.py", "lib/parts.py", "__pycache__/main.pyc", ".hidden"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    draft = {"name": DRAFT.removeprefix("/v1/"), "etag": "e", "files": [{"path": "old.py"}, {"path": "main.py"}]}
    version = {"name": "orgs/acme/algorithms/prices/versions/1"}
    answering(gateway, ("/draft", draft), (":deleteFile", draft), (":putFile", draft), (":publish", version))
    code, output = _run("algorithm", "push", "prices", str(folder), "--publish")
    assert code == 0, output
    sent = [(request.path, request.json.get("path")) for request in gateway.requests[1:]]
    assert sent == [
        (f"{DRAFT}:deleteFile", "old.py"),
        (f"{DRAFT}:putFile", "lib/parts.py"),
        (f"{DRAFT}:putFile", "main.py"),
        (f"{DRAFT}:publish", None),
    ]
    assert {request.json["etag"] for request in gateway.requests[1:]} == {"e"}
    assert "prices" in output
    (folder / "weights.bin").write_bytes(b"\xff\xfe")
    code, output = _run("algorithm", "push", "prices", str(folder))
    assert (code, "weights.bin is no text in UTF-8" in output) == (2, True)


def test_a_draft_has_commands_of_its_own(gateway: FakeGateway) -> None:
    assert _run("algorithm-draft", "get", "prices")[0] == 0
    assert gateway.requests[-1].path == DRAFT
    body = '{"limits": {"max_seconds": "60"}}'
    assert _run("algorithm-draft", "update", "prices", "--body", body)[0] == 0
    assert (gateway.requests[-1].verb, gateway.requests[-1].json["limits"]) == ("PATCH", {"max_seconds": "60"})
    assert _run("algorithm-draft-file", "get", "prices", "--path", "main.py")[0] == 0
    assert gateway.requests[-1].path == f"{DRAFT}:getFile?path=main.py"
