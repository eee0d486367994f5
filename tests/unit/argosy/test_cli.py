"""The command line: short names, tables and JSON, errors that say what to do, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from argosy.cli import resources, session
from argosy.cli.main import build
from argosy.client import Policy, settings
from typer.testing import CliRunner

from tests.unit.argosy.conftest import Answer, FakeGateway, Request, failure

APP = build()
pytestmark = pytest.mark.usefixtures("logged_in")


def _run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(APP, list(arguments))
    return result.exit_code, result.output


def test_the_login_is_for_its_owner_only() -> None:
    assert settings.credentials_file().stat().st_mode & 0o077 == 0
    assert settings.load().org == "orgs/acme"


def test_the_environment_comes_before_the_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_URL", "http://elsewhere:1/")
    monkeypatch.setenv("ARGOSY_API_KEY", "ak_env")
    assert settings.resolve(None, None) == ("http://elsewhere:1", "ak_env")


def test_the_organization_is_that_of_the_key_in_the_environment(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARGOSY_API_KEY", "ak_env")
    gateway.respond = lambda request: Answer(body=b'{"org": "orgs/other"}' if request.path == "/v1/token" else b"{}")
    code, output = _run("dataset", "list", "--json")
    assert code == 0, output
    assert gateway.requests[-1].path.startswith("/v1/orgs/other/datasets")


def test_a_list_as_json_is_an_array_of_whole_resources(gateway: FakeGateway) -> None:
    found = {"datasets": [{"name": "orgs/acme/datasets/notes", "etag": "e"}]}
    gateway.respond = lambda _request: Answer(body=json.dumps(found).encode())
    code, output = _run("dataset", "list", "--json")
    assert code == 0
    assert json.loads(output) == [{"name": "orgs/acme/datasets/notes", "etag": "e"}]
    assert gateway.requests[0].path.startswith("/v1/orgs/acme/datasets?")
    assert gateway.requests[0].headers["authorization"] == "Bearer ak_kept"


def test_a_list_as_a_table_shows_short_names(gateway: FakeGateway) -> None:
    found = {"datasets": [{"name": "orgs/acme/datasets/notes"}]}
    gateway.respond = lambda _request: Answer(body=json.dumps(found).encode())
    code, output = _run("dataset", "list")
    assert code == 0
    assert "notes" in output
    assert "orgs/acme" not in output


def test_create_takes_fields_and_a_body(gateway: FakeGateway) -> None:
    code, _ = _run(
        "dataset",
        "create",
        "--id",
        "notes",
        "--body",
        '{"type": "DATASET_TYPE_TEXT"}',
        "--set",
        "display_name=My notes",
    )
    assert code == 0
    sent = gateway.requests[0].json
    assert sent["dataset_id"] == "notes"
    assert sent["dataset"] == {"type": "DATASET_TYPE_TEXT", "display_name": "My notes"}


def test_update_sends_what_was_set_and_a_mask_of_it(gateway: FakeGateway) -> None:
    code, _ = _run("dataset", "update", "notes", "--set", "display_name=")
    assert code == 0
    request = gateway.requests[0]
    assert request.verb == "PATCH"
    assert request.path.startswith("/v1/orgs/acme/datasets/notes?update_mask=displayName")
    assert request.json["display_name"] == ""


def test_a_refusal_says_what_to_do_and_exits_with_one(gateway: FakeGateway) -> None:
    gateway.respond = lambda _request: failure(401, "UNAUTHENTICATED", "TOKEN_INVALID", "The key is not valid.")
    code, output = _run("dataset", "get", "notes")
    assert code == session.REFUSED
    assert "The key is not valid." in output
    assert "argosy login" in output
    assert "Traceback" not in output


def test_nobody_at_the_door_exits_with_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_URL", "http://127.0.0.1:1")
    # A person would be given some seconds more.
    monkeypatch.setattr(session, "Policy", lambda patience: Policy(patience=patience / 100))
    code, output = _run("api-key", "revoke", "ci")
    assert code == session.NO_ANSWER
    assert "argosy status" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("dataset", "get", "a/b/c"), "names no"),
        (("dataset", "create", "--body", "{"), "not JSON"),
        (("dataset", "create", "--set", "nothing"), "field=value"),
        (("dataset-version", "list"), "--parent is needed"),
        (("dataset", "create", "--set", "colour=red"), "colour"),
    ],
)
def test_a_command_line_that_makes_no_sense_exits_with_two(arguments: tuple[str, ...], words: str) -> None:
    code, output = _run(*arguments)
    assert code == session.MISUSED
    assert words in output
    assert "Traceback" not in output


def test_a_failed_task_exits_with_three_and_names_its_log(gateway: FakeGateway) -> None:
    task = {
        "name": "orgs/acme/training/tasks/t",
        "state": "STATE_FAILED",
        "error": {"reason": "TRAINING_DIVERGED", "message": "The loss is no number."},
    }

    def respond(_request: Request) -> Answer:
        return Answer(body=json.dumps(task).encode())

    gateway.respond = respond
    code, output = _run("task", "watch", "training/t")
    assert code == session.TASK_FAILED
    assert "TRAINING_DIVERGED" in output
    assert "argosy task logs" in output


@pytest.mark.parametrize(
    ("given", "pattern", "name"),
    [
        ("notes", "orgs/*/datasets/*", "orgs/acme/datasets/notes"),
        ("notes/v1", "orgs/*/datasets/*/versions/*", "orgs/acme/datasets/notes/versions/v1"),
        ("orgs/other/datasets/x", "orgs/*/datasets/*", "orgs/other/datasets/x"),
        ("acme2", "orgs/*", "orgs/acme2"),
    ],
)
def test_short_names_are_completed(given: str, pattern: str, name: str) -> None:
    assert session.full_name(given, pattern) == name


def test_names_are_shortened_for_people() -> None:
    assert session.short_name("orgs/acme/datasets/notes/versions/v1") == "notes/v1"
    assert session.short_name("orgs/acme") == "acme"


def test_every_rpc_is_a_command() -> None:
    from argosy.client import contract

    placed = {(method.area, method.name) for _noun, _verb, method in resources._commands()}
    by_hand = {("app", "chat"), ("identity", "bootstrap")}
    every = {(method.area, method.name) for area in contract.areas().values() for method in area.values()}
    assert every - placed <= by_hand


def test_commands_have_names_that_people_would_guess() -> None:
    names = {(noun, verb) for noun, verb, _method in resources._commands()}
    guessed = {
        ("api-key", "revoke"),
        ("dataset-version", "clean"),
        ("dataset", "roll-back"),
        ("work-order", "approve"),
        ("task", "cancel"),
        ("deployment", "stop"),
    }
    assert guessed <= names


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        (("https://data.example/rows.csv",), {"uri": "https://data.example/rows.csv"}),
        (("webhdfs://nn:9870/a", "--format", "csv"), {"uri": "webhdfs://nn:9870/a", "format": "csv"}),
        (("--secret", "pg", "--query", "SELECT 1"), {"secret": "orgs/acme/secrets/pg", "query": "SELECT 1"}),
    ],
)
def test_an_import_takes_links_and_databases(
    gateway: FakeGateway, arguments: tuple[str, ...], sent: dict[str, str]
) -> None:
    code, output = _run("dataset", "import", *arguments, "-d", "docs", "--no-watch")
    assert code == 0, output
    body = gateway.requests[-1].json
    assert gateway.requests[-1].path == "/v1/orgs/acme/datasets/docs/versions:import"
    assert {name: value for name, value in body.items() if value and name not in ("parent", "request_id")} == sent


@pytest.mark.parametrize("arguments", [(), ("no-such-file.csv",), ("https://a.example/b", "--secret", "pg")])
def test_an_import_without_one_source_is_refused_here(gateway: FakeGateway, arguments: tuple[str, ...]) -> None:
    code, _ = _run("dataset", "import", *arguments, "-d", "docs")
    assert (code, gateway.requests) == (session.MISUSED, [])


def test_an_archive_makes_no_dataset_of_text(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.respond = lambda _request: failure(404, "NOT_FOUND", "NOT_FOUND")
    (tmp_path / "photos.zip").write_bytes(b"PK")
    code, output = _run("dataset", "import", str(tmp_path / "photos.zip"), "-d", "photos")
    assert code == session.MISUSED
    assert "--type image, audio or video" in output
    assert [(request.verb, request.path) for request in gateway.requests] == [("GET", "/v1/orgs/acme/datasets/photos")]


def test_leakage_is_told_in_a_line_and_shown_as_pairs(gateway: FakeGateway) -> None:
    task = {"name": "orgs/acme/dataset/tasks/t", "state": "STATE_SUCCEEDED"}
    pair = {"test_row_id": "a" * 64, "train_row_id": "b" * 64, "test_text": "seen before", "similarity": 0.9}
    found = {
        "test_version": "orgs/acme/datasets/test/versions/v1",
        "train_version": "orgs/acme/datasets/train/versions/v2",
        "test_rows": "200",
        "train_rows": "9000",
        "exact_rows": "2",
        "near_rows": "1",
        "leaked_share": 0.015,
        "examples": [pair],
        "near_duplicates": {"threshold": 0.8, "planted_pairs": 100, "found_pairs": 99, "expected_recall": 0.9995},
    }
    gateway.respond = lambda request: Answer(body=json.dumps(found if ":leakage" in request.path else task).encode())
    code, output = _run("dataset", "leakage", "train/v2", "test/v1", "--train-text-column", "body")
    assert code == 0, output
    told = " ".join(output.split())
    assert "3 of 200 rows of test/v1 (1.50%) are in train/v2 (9,000 rows): 2 exactly, 1 nearly" in told
    assert "seen before" in output
    assert "99 of 100 planted copies found" in told
    assert gateway.requests[0].path == "/v1/orgs/acme/datasets/test/versions/v1:checkLeakage"
    assert json.loads(gateway.requests[0].body)["train_text_column"] == "body"


@pytest.mark.parametrize("command", [("augment", "docs/v1", "--recipe"), ("clean", "docs/v1", "--recipe")])
def test_the_report_is_that_of_the_version_which_was_made(
    gateway: FakeGateway, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """Somebody else's version may be the latest by now."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("steps: []")
    name = "orgs/acme/datasets/docs/versions/v2"
    task = {"name": "orgs/acme/dataset/tasks/t", "state": "STATE_SUCCEEDED", "result": {"version": name}}
    answers = {
        "/v1/orgs/acme/datasets/docs": {"latest_version": "orgs/acme/datasets/docs/versions/v3"},
        f"/v1/{name}": {"name": name, "report": {"rows_in": "7", "rows_out": "6"}},
    }
    gateway.respond = lambda request: Answer(body=json.dumps(answers.get(request.path, task)).encode())
    code, output = _run("dataset", *command, str(recipe))
    assert code == 0, output
    assert "docs/v2: 7 rows in, 6 out" in output


def test_short_names_are_understood_wherever_a_name_is_taken(gateway: FakeGateway) -> None:
    gateway.respond = lambda _request: Answer(body=b"{}")
    version = "orgs%2Facme%2Fdatasets%2Fdocs%2Fversions%2Fv1"
    assert _run("dataset-version", "diff", "docs/v2", "--base", "docs/v1")[0] == 0
    assert gateway.requests[-1].path.endswith(f"/datasets/docs/versions/v2:diff?base={version}")
    assert _run("data-product", "create", "--set", "dataset_version=docs/v1", "--set", "display_name=docs/v1")[0] == 0
    sent = json.loads(gateway.requests[-1].body)
    assert sent["data_product"]["dataset_version"] == "orgs/acme/datasets/docs/versions/v1"
    assert sent["data_product"]["display_name"] == "docs/v1"
    code, output = _run("dataset-version", "diff", "docs/v2", "--base", "v1")
    assert code == 2
    assert "short it is ID/ID" in output


def test_a_model_folder_goes_up_file_by_file(gateway: FakeGateway, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(b"{}")
    opened = {"name": "orgs/acme/uploads/u", "uid": "u", "state": "STATE_COMMITTED"}
    gateway.respond = lambda request: Answer(
        body=json.dumps(opened if "/uploads" in request.path else {"name": "orgs/acme/training/tasks/t"}).encode()
    )
    code, output = _run("model", "import", str(tmp_path), "--project", "qwen", "--no-watch")
    assert code == 0, output
    sent = [request.json["file_name"] for request in gateway.requests if request.path.endswith("/uploads")]
    assert sent == ["config.json", "model.safetensors"]
    last = gateway.requests[-1]
    assert last.path == "/v1/orgs/acme/modelProjects/qwen/versions:import"
    assert last.json["uploads"] == ["orgs/acme/uploads/u"] * 2


def test_a_folder_of_pickled_weights_stays_here(gateway: FakeGateway, tmp_path: Path) -> None:
    for name in ("config.json", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(b"{}")
    code, output = _run("model", "import", str(tmp_path), "--project", "qwen")
    assert code == 2
    assert "pytorch_model.bin can run code" in " ".join(output.split())
    assert not gateway.requests


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--project", "qwen"], "give a folder or a file"),
        (["--folder", "/m"], "give --project"),
        (["/none/here", "--project", "qwen"], "there is no file or folder"),
        (["--hub", "a/b", "--folder", "/m", "--project", "qwen"], "give a folder or a file"),
    ],
)
def test_a_model_import_says_what_is_missing(gateway: FakeGateway, arguments: list[str], said: str) -> None:
    code, output = _run("model", "import", *arguments)
    assert code != 0
    assert said in output
    assert not gateway.requests


def test_aliases_have_a_singular(gateway: FakeGateway) -> None:
    code, output = _run("model-alias", "set", "qwen/champion", "--model-version", "qwen/3")
    assert code == 0, output
    assert gateway.requests[0].path == "/v1/orgs/acme/modelProjects/qwen/aliases/champion:set"
    assert gateway.requests[0].json["model_version"] == "orgs/acme/modelProjects/qwen/versions/3"


def test_curves_are_drawn_side_by_side(gateway: FakeGateway, tmp_path: Path) -> None:
    run = "orgs/acme/trainings/packages/runs/1"
    keys = {"metric_keys": [{"key": "sft.loss"}, {"key": "sft.learning_rate"}]}
    curve = {"run": run, "key": "sft.loss", "values": [2.0, "NaN", 0.5], "steps": ["0", "1", "2"]}
    answers = {"metricKeys": keys, "runs:curves": {"curves": [curve]}, "runs:picture": {"svg": "<svg/>"}}
    gateway.respond = lambda request: Answer(
        body=json.dumps(answers[request.path.partition("?")[0].rsplit("/", 1)[-1]]).encode()
    )
    code, output = _run("training", "curves", "packages/1")
    assert code == 0, output
    assert "packages/1" in output
    assert "█×▁" in output
    assert "keys=sft.loss" in gateway.requests[-1].path
    assert "learning_rate" not in gateway.requests[-1].path
    picture = tmp_path / "curves.svg"
    assert _run("training", "curves", "packages/1", "-k", "sft.loss", "--log", "--svg", str(picture))[0] == 0
    assert picture.read_text() == "<svg/>"
    assert "logarithmic=true" in gateway.requests[-1].path.lower()


def test_a_leaderboard_is_a_table_and_a_picture(gateway: FakeGateway, tmp_path: Path) -> None:
    board = {
        "task": "classification",
        "task_reason": "'grower' has 3 different values",
        "metric": "log_loss",
        "columns": [{"column": "row", "dropped": "counts the rows"}],
        "warnings": ["column 'code' tells 'grower' nearly all by itself"],
        "entries": [
            {"rank": 1, "number": 4, "family": "boosting", "score": 0.25, "low": 0.125, "high": 0.5, "weight": 0.75},
            {"number": 6, "family": "linear", "state": "STATE_PRUNED", "message": "not among the best"},
        ],
        "figures": [{"name": "log_loss", "value": 0.2, "baseline": {"value": 1.1}, "best_single": {"value": 0.3}}],
    }
    gateway.respond = lambda request: Answer(
        body=json.dumps({"svg": "<svg/>"} if "Picture" in request.path else board).encode()
    )
    code, output = _run("training", "leaderboard", "wines/1")
    assert code == 0, output
    assert gateway.requests[0].path == "/v1/orgs/acme/trainings/wines/runs/1:leaderboard"
    words = " ".join(output.split())
    assert "left out: 'row' counts the rows" in words
    assert "look at this: column 'code'" in words
    assert "1 boosting (4) 0.25 0.125 to 0.5" in words
    assert "not among the best" in words
    assert "held-out log_loss 0.2; best model alone 0.3, trivial baseline 1.1" in words
    picture = tmp_path / "board.svg"
    assert _run("training", "leaderboard", "wines/1", "--svg", str(picture))[0] == 0
    assert picture.read_text() == "<svg/>"


def test_a_dash_is_any_parent(gateway: FakeGateway) -> None:
    gateway.respond = lambda _request: Answer(body=b"{}")
    assert _run("training-run", "list", "--parent", "-", "--filter", "state = FAILED")[0] == 0
    assert gateway.requests[-1].path.startswith("/v1/orgs/acme/trainings/-/runs?")
