"""Files that are fetched: whole or not at all, resumed where they broke."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from argosy.cli.main import build
from argosy.client import Client, NotFound, Policy, contract, settings
from argosy.client.downloads import Damaged
from typer.testing import CliRunner

from tests.unit.argosy.conftest import Answer, FakeGateway, Request, failure

DATA = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(DATA).hexdigest()
EXPORT = "orgs/acme/datasets/docs/versions/v1/exports/ex-1"


def offset_of(request: Request) -> int:
    return int(parse_qs(urlsplit(request.path).query).get("offset", ["0"])[0])


def serving(data: bytes, cut_after: int = 0) -> Callable[[Request], Answer]:
    """Serves ranges of the data; cuts every answer after so many bytes."""

    def respond(request: Request) -> Answer:
        rest = data[offset_of(request) :]
        return Answer(body=rest[:cut_after] if cut_after else rest, cut=bool(cut_after) and len(rest) > cut_after)

    return respond


def fetch(gateway: FakeGateway, target: Path, sha256: str = DIGEST) -> list[int]:
    seen: list[int] = []
    method = contract.areas()["dataset"]["download_version_export"]
    with Client(gateway.url, "k", Policy(timeout=5, patience=2)) as client:
        client.download(
            method,
            {"name": EXPORT, "path": "rows.jsonl"},
            target,
            size=len(DATA),
            sha256=sha256,
            progress=lambda done, _size: seen.append(done),
        )
    return seen


def test_a_stream_that_is_cut_goes_on_where_it_stood(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.respond = serving(DATA, cut_after=400_000)
    target = tmp_path / "new" / "rows.jsonl"
    seen = fetch(gateway, target)
    assert target.read_bytes() == DATA
    assert [offset_of(request) for request in gateway.requests] == [0, 400_000, 800_000]
    assert (seen, seen[-1]) == (sorted(seen), len(DATA))
    assert [path.name for path in target.parent.iterdir()] == ["rows.jsonl"]


def test_what_an_earlier_command_fetched_is_taken_up(gateway: FakeGateway, tmp_path: Path) -> None:
    target = tmp_path / "rows.jsonl"
    gateway.respond = serving(DATA[:300_000])
    with pytest.raises(Exception, match="GATEWAY_UNREACHABLE"):
        fetch(gateway, target)
    assert not target.exists()
    gateway.requests.clear()
    gateway.respond = serving(DATA)
    fetch(gateway, target)
    assert offset_of(gateway.requests[0]) == 300_000
    assert target.read_bytes() == DATA


def test_damage_never_gets_the_final_name(gateway: FakeGateway, tmp_path: Path) -> None:
    target = tmp_path / "rows.jsonl"
    target.write_bytes(b"the one before")
    gateway.respond = serving(DATA[:-1] + b"x")
    with pytest.raises(Damaged, match="arrived instead of"):
        fetch(gateway, target)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    assert target.read_bytes() == b"the one before"


def test_a_refusal_is_not_repeated(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.respond = lambda _request: failure(404, "NOT_FOUND", "NOT_FOUND")
    with pytest.raises(NotFound):
        fetch(gateway, tmp_path / "rows.jsonl")
    assert len(gateway.requests) == 1


@pytest.fixture
def platform(gateway: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGateway:
    """Exports at once; the files are those of `files`."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("ARGOSY_API_KEY", raising=False)
    monkeypatch.delenv("ARGOSY_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    settings.keep(settings.Login(gateway.url, "ak_kept", "orgs/acme"))
    return gateway


def answering(paths: list[str]) -> Callable[[Request], Answer]:
    files = [{"path": path, "size": str(len(DATA)), "sha256": DIGEST} for path in paths]
    loss = {"reason": "no [text]", "leftOut": "2", "rowIds": ["ab" * 32]}
    export = {"name": EXPORT, "files": files, "report": {"rowsIn": "9", "rowsOut": "7", "losses": [loss]}}
    task = {"name": "orgs/acme/dataset/tasks/t", "state": "STATE_SUCCEEDED", "result": {"export": EXPORT}}
    download = serving(DATA)

    def respond(request: Request) -> Answer:
        path = urlsplit(request.path).path
        if path.endswith(":download"):
            return download(request)
        found = export if "/exports/" in path else task if "/tasks/" in path or path.endswith(":export") else {}
        return Answer(body=json.dumps(found).encode())

    return respond


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(build(), ["dataset", "export", "docs/v1", *arguments])
    return result.exit_code, result.output


def test_a_version_is_exported_to_a_file(platform: FakeGateway, tmp_path: Path) -> None:
    platform.respond = answering(["docs-v1.jsonl"])
    code, output = run("--output", "mine.jsonl")
    assert code == 0, output
    assert (tmp_path / "mine.jsonl").read_bytes() == DATA
    assert "7 of 9 rows" in output
    assert "2 left out: no [text]" in output
    code, output = run("--output", "mine.jsonl")
    assert (code, "--force" in output) == (2, True)
    assert run("--output", "mine.jsonl", "--force")[0] == 0


def test_a_folder_is_laid_out_as_it_is(platform: FakeGateway, tmp_path: Path) -> None:
    platform.respond = answering(["data/train-00000-of-00001.parquet", "README.md"])
    code, output = run("--format", "datasets", "--split", "test=docs/v2")
    assert code == 0, output
    assert (tmp_path / "docs-v1/data/train-00000-of-00001.parquet").read_bytes() == DATA
    sent = next(request.json for request in platform.requests if request.path.endswith(":export"))
    assert sent["other_splits"] == [{"split": "test", "version": "orgs/acme/datasets/docs/versions/v2"}]


def test_no_file_is_written_outside_the_folder(platform: FakeGateway, tmp_path: Path) -> None:
    platform.respond = answering(["a", "../../escaped"])
    code, output = run()
    assert (code, "outside" in output) == (2, True)
    assert not [path for path in tmp_path.rglob("*") if path.name in ("a", "escaped")]


ROW = "5f" * 32


def file_of_a_row(request: Request) -> Answer:
    about = {"contentType": "image/png", "size": str(len(DATA)), "sha256": DIGEST}
    if request.headers["accept"] == "text/event-stream":
        return Answer(body=f"data: {json.dumps(about)}\n\nevent: end\ndata: {{}}\n\n".encode())
    return serving(DATA, cut_after=600_000)(request)


def test_the_file_of_a_row_is_fetched(platform: FakeGateway, tmp_path: Path) -> None:
    platform.respond = file_of_a_row
    command = ["dataset", "media", "docs/v1", ROW, "-o", "cat.png"]
    result = CliRunner().invoke(build(), command)
    assert result.exit_code == 0, result.output
    assert "cat.png: image/png, 1,024,000 bytes" in result.output
    assert (tmp_path / "cat.png").read_bytes() == DATA
    paths = {urlsplit(request.path).path for request in platform.requests}
    assert paths == {f"/v1/orgs/acme/datasets/docs/versions/v1/rows/{ROW}:media"}
    assert [offset_of(request) for request in platform.requests] == [0, 0, 600_000]
    assert CliRunner().invoke(build(), command).exit_code == 2
    assert CliRunner().invoke(build(), [*command, "--force"]).exit_code == 0


def test_a_row_has_an_id(platform: FakeGateway) -> None:
    result = CliRunner().invoke(build(), ["dataset", "media", "docs/v1", "../../x", "-o", "cat.png"])
    assert (result.exit_code, "64 digits" in result.output) == (2, True)
    assert not platform.requests
