"""Human work at the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from argosy.cli.main import build
from typer.testing import CliRunner

from tests.unit.argosy.conftest import Answer, FakeGateway, Request

APP = build()
pytestmark = pytest.mark.usefixtures("logged_in")
NAME = "orgs/acme/workProjects/moods"
FORM = {
    "fields": [
        {"name": "mood", "kind": "WORK_FIELD_KIND_CHOICE", "choices": ["good", "bad"]},
        {"name": "stars", "kind": "WORK_FIELD_KIND_RATING", "min": 1, "max": 5},
        {"name": "objects", "kind": "WORK_FIELD_KIND_BOXES", "choices": ["cat"], "optional": True},
    ]
}


def answers(gateway: FakeGateway, *bodies: dict[str, Any]) -> None:
    """Gives these one after the other."""
    left = list(bodies)

    def respond(_request: Request) -> Answer:
        return Answer(body=json.dumps(left.pop(0) if left else {}).encode())

    gateway.respond = respond


def test_what_is_typed_becomes_an_answer(gateway: FakeGateway) -> None:
    item = {"name": f"{NAME}/items/1", "payload": {"text": "so so"}}
    taken = {"assignment": {"name": f"{NAME}/items/1/assignments/a", "item": item, "form": FORM}}
    answers(gateway, taken, {})
    typed = "b\n9\n4\ncat 1 2 3\ncat 1 2 3 4; cat 5 5 5 5\n"
    result = CliRunner().invoke(APP, ["work", "annotate", "moods"], input=typed)
    assert result.exit_code == 0, result.output
    assert "so so" in result.output
    for hint in ("mood (1 good, 2 bad)", "stars (1 to 5)", "LABEL X Y WIDTH HEIGHT; ... of cat"):
        assert hint in result.output
    assert "a number from 1 to 5" in result.output
    submitted = next(one for one in gateway.requests if one.path.endswith(":submit"))
    boxes = [{"label": "cat", "box": [1, 2, 3, 4]}, {"label": "cat", "box": [5, 5, 5, 5]}]
    assert json.loads(submitted.body)["answer"] == {"mood": "bad", "stars": 4, "objects": boxes}


def test_an_empty_answer_gives_the_item_back(gateway: FakeGateway) -> None:
    taken = {"assignment": {"name": f"{NAME}/items/1/assignments/a", "item": {"name": f"{NAME}/items/1"}, "form": FORM}}
    answers(gateway, taken, {})
    assert CliRunner().invoke(APP, ["work", "annotate", "moods"], input="\n").exit_code == 0
    assert [one.path.rsplit(":", 1)[1] for one in gateway.requests if ":" in one.path] == ["take", "release", "take"]


def test_a_line_that_cannot_be_read_is_named(gateway: FakeGateway, tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text('{"text": "a"}\n{"payload": {"text": "b"}, "priority": 3}\n')
    answers(gateway, {"itemCount": 2})
    assert CliRunner().invoke(APP, ["work", "add", "moods", str(file)]).exit_code == 0
    sent = json.loads(gateway.requests[-1].body)["items"]
    assert sent == [{"payload": {"text": "a"}}, {"payload": {"text": "b"}, "priority": 3}]
    file.write_text('{"text": "a"}\n[1]\n')
    result = CliRunner().invoke(APP, ["work", "add", "moods", str(file)])
    assert result.exit_code != 0
    assert "line 2" in result.output


def test_a_value_that_a_preview_cuts_is_not_work(gateway: FakeGateway) -> None:
    answers(gateway, {"rows": [{"rowId": "r7", "fields": {"text": "x" * 20_000 + "…"}}]})
    result = CliRunner().invoke(APP, ["work", "add", "moods", "--version", "orgs/acme/datasets/d/versions/v1"])
    assert result.exit_code != 0
    assert "r7" in result.output
    assert "export" in result.output


def test_a_rating_may_be_zero_and_a_decision_not(gateway: FakeGateway) -> None:
    form = {"fields": [{"name": "trend", "kind": "WORK_FIELD_KIND_RATING", "min": -2, "max": 2}]}
    item = {"name": f"{NAME}/items/1", "payload": {"text": "flat"}}
    given = {"name": f"{item['name']}/assignments/a", "item": item, "form": form, "answer": {"trend": 0}}
    answers(gateway, {"assignment": given}, {})
    assert CliRunner().invoke(APP, ["work", "annotate", "moods"], input="0\n").exit_code == 0
    submitted = next(one for one in gateway.requests if one.path.endswith(":submit"))
    assert json.loads(submitted.body)["answer"] == {"trend": 0}
    answers(gateway, {"item": item, "form": form, "assignments": [given]}, {})
    result = CliRunner().invoke(APP, ["work", "review", "moods"], input="0\n1\n")
    assert result.exit_code == 0
    assert "a number from 1 to 1" in result.output
    assert "1 items decided" in result.output


def test_accepted_answers_come_out_as_rows(gateway: FakeGateway, tmp_path: Path) -> None:
    items = [
        {"name": f"{NAME}/items/2", "payload": {"text": "x"}, "gold": {"mood": "bad"}, "answer": {"mood": "bad"}},
        {"name": f"{NAME}/items/1", "payload": {"text": "y"}, "answer": {"mood": "good", "stars": 3}},
    ]
    answers(gateway, {"items": items})
    file = tmp_path / "out.jsonl"
    assert CliRunner().invoke(APP, ["work", "export", "moods", "-o", str(file)]).exit_code == 0
    assert [json.loads(line) for line in file.read_text().splitlines()] == [{"text": "y", "mood": "good", "stars": 3}]


def test_a_returned_answer_is_disputed_by_the_number_of_its_item(gateway: FakeGateway) -> None:
    item = {"name": f"{NAME}/items/7"}
    waiting = {"assignments": [{"name": f"{item['name']}/assignments/a", "item": item, "state": "STATE_RETURNED"}]}
    answers(gateway, waiting, {})
    assert CliRunner().invoke(APP, ["work", "dispute", "moods", "7", "--reason", "look again"]).exit_code == 0
    assert gateway.requests[-1].path.endswith("/items/7/assignments/a:dispute")
    assert json.loads(gateway.requests[-1].body)["reason"] == "look again"
    answers(gateway, waiting)
    result = CliRunner().invoke(APP, ["work", "dispute", "moods", "8", "--reason", "x"])
    assert result.exit_code == 2
    assert "argosy work pending" in result.output


def test_what_a_model_proposes_is_taken_with_a_sign(gateway: FakeGateway) -> None:
    form = {"fields": [{"name": "objects", "kind": "WORK_FIELD_KIND_BOXES", "choices": ["red car"]}]}
    proposal = {"objects": [{"label": "red car", "box": [1, 2, 3, 4], "score": 0.9}]}
    item = {"name": f"{NAME}/items/1", "payload": {"image": "a.png"}, "proposal": proposal}
    given = {"name": f"{item['name']}/assignments/a", "item": item, "form": form}
    for typed, expected in (
        ("=\n", proposal),
        ("red car 5 6 7 8\n", {"objects": [{"label": "red car", "box": [5, 6, 7, 8]}]}),
    ):
        answers(gateway, {"assignment": given}, {})
        result = CliRunner().invoke(APP, ["work", "annotate", "moods", "--limit", "1"], input=typed)
        assert result.exit_code == 0, result.output
        assert "proposed" in result.output
        assert json.loads(gateway.requests[-1].body)["answer"] == expected
