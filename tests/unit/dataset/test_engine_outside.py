"""Files from outside become versions: whole, continued where they broke, and never another file's rest."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from libs.common.blobs import BlobStore
from libs.common.domain import DomainError
from libs.compute.context import EngineCancelled, EngineError, LocalContext
from services.dataset.engines import fetching, importing, outside
from tests.unit.common.web import Answering, answer, giving, web

ROWS = b"".join(b'{"n": %d}\n' % number for number in range(500))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pieces, no pauses, and no wait for the disk."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr(fetching, "_PIECE_BYTES", 1000)
    monkeypatch.setattr(fetching, "_FIRST_PAUSE", 0.0)


def spec(uri: str, **fields: Any) -> dict[str, Any]:
    limits = {"networks": ["127.0.0.1/32"], "max_bytes": 1_000_000, "max_seconds": 5.0, "sqlite_folder": ""}
    return {"uri": uri, "format": "", **limits, **fields}


def context(folder: Path, uri: str, resume: Any = None, **fields: Any) -> LocalContext:
    return LocalContext(spec(uri, **fields), blobs_write=BlobStore(f"file://{folder}"), resume=resume)


def reason(caught: pytest.ExceptionInfo[Any]) -> str:
    return caught.value.reason


class Ranged:
    """Serves bytes with ranges, and breaks off after so many bytes of each answer.

    Args:
        data: of the file.
        breaks: bytes after which answers end, one by one; the ones after that are whole.
        tag: entity tag; empty: none.
    """

    def __init__(self, data: bytes, breaks: list[int], tag: str = '"v1"') -> None:
        self.data = data
        self.tag = tag
        self._breaks = iter(breaks)

    def __call__(self, connection: socket.socket, head: str) -> None:
        asked = re.search(r"Range: bytes=(\d+)-\r\nIf-Range: (.*)\r\n", head)
        start = int(asked[1]) if asked and asked[2] == self.tag else 0
        headers = {"ETag": self.tag} if self.tag else {}
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(self.data) - 1}/{len(self.data)}"
        whole = answer(self.data[start:], "206 Partial Content" if start else "200 OK", **headers)
        end = next(self._breaks, None)
        connection.sendall(whole if end is None else whole[: len(whole) - len(self.data[start:]) + end])


def ranges(heads: list[str]) -> list[str]:
    """What each request asked for."""
    return [found[1] if (found := re.search(r"Range: bytes=(\d+)-", head)) else "" for head in heads]


def imported(folder: Path, answering: Answering, path: str = "/rows.jsonl", **fields: Any) -> tuple[Any, list[str]]:
    """The result of an import, and what the server was asked."""
    with web(answering) as server:
        result = importing.run(context(folder, server.url(path), **fields))
        result["origin"]["address"] = result["origin"]["address"].replace(f":{server.port}", "")
        return result, server.heads


def test_a_link_becomes_a_version(tmp_path: Path) -> None:
    result, _ = imported(tmp_path, giving(answer(ROWS)), "/data/rows.jsonl?signature=hidden")
    assert (result["row_count"], result["report"]["line_error_count"]) == (500, 0)
    assert result["origin"]["address"] == "http://127.0.0.1/data/rows.jsonl"
    assert "hidden" not in str(result)
    assert result["origin"]["digest"] == hashlib.sha256(ROWS).hexdigest()


def test_a_broken_connection_goes_on_where_it_stood(tmp_path: Path) -> None:
    result, heads = imported(tmp_path, Ranged(ROWS, [1500, 1500]))
    assert result["row_count"] == 500
    assert ranges(heads) == ["", "1500", "3000"]


def test_without_a_validator_it_begins_again(tmp_path: Path) -> None:
    result, heads = imported(tmp_path, Ranged(ROWS, [1500], tag=""))
    assert (result["row_count"], ranges(heads)) == (500, ["", ""])


def test_a_file_that_changed_begins_again(tmp_path: Path) -> None:
    """Never the beginning of one file with the end of another."""
    other = b"".join(b'{"m": %d}\n' % number for number in range(500))
    server = Ranged(ROWS, [1500])

    def changing(connection: socket.socket, head: str) -> None:
        if "Range" in head:
            server.data, server.tag = other, '"v2"'
        server(connection, head)

    result, heads = imported(tmp_path, changing)
    assert ([column["name"] for column in result["columns"]], ranges(heads)) == (["m"], ["", "1500"])


@pytest.mark.parametrize(
    "part",
    [
        {"status": "206 Partial Content", "Content_Range": "bytes 0-99/5000"},
        {"status": "206 Partial Content", "Content_Range": f"bytes 1500-9999/{len(ROWS) + 1}"},
        {"status": "206 Partial Content"},
        {"status": "416 Range Not Satisfiable"},
    ],
)
def test_a_part_that_was_not_asked_for_is_not_taken(tmp_path: Path, part: dict[str, str]) -> None:
    server = Ranged(ROWS, [1500])

    def lying(connection: socket.socket, head: str) -> None:
        if "Range" in head:
            connection.sendall(answer(b"{}\n" * 50, **part))
        else:
            server(connection, head)

    result, heads = imported(tmp_path, lying)
    assert (result["row_count"], ranges(heads)) == (500, ["", "1500", ""])


def test_a_killed_attempt_is_continued_by_the_next(tmp_path: Path) -> None:
    with web(Ranged(ROWS, [1500, 1000])) as server:
        killed = context(tmp_path, server.url())
        killed._cancel_when = lambda recorded: len(recorded.checkpoints) == 2
        with pytest.raises(EngineCancelled):
            importing.run(killed)
        checkpoint = json.loads(json.dumps(killed.recorded.checkpoints[-1]))
        result = importing.run(context(tmp_path, server.url(), resume=checkpoint))
        assert (result["row_count"], ranges(server.heads)) == (500, ["", "1500", "2500"])


def test_pieces_that_the_sweep_took_are_fetched_again(tmp_path: Path) -> None:
    gone = {"pieces": [{"sha256": "0" * 64, "size": 1500}], "validator": '"v1"', "file_name": "a.jsonl", "total": 0}
    with web(Ranged(ROWS, [])) as server:
        result = importing.run(context(tmp_path, server.url(), resume=gone))
        assert (result["row_count"], ranges(server.heads)) == (500, [""])


def test_what_was_complete_is_not_asked_for_again(tmp_path: Path) -> None:
    with web(giving(answer(ROWS, ETag='"v1"'))) as server:
        first = context(tmp_path, server.url())
        importing.run(first)
        importing.run(context(tmp_path, server.url(), resume=first.recorded.checkpoints[-1]))
        assert server.connections == 1


def test_a_server_that_always_breaks_is_left_to_a_later_attempt(tmp_path: Path) -> None:
    with web(giving(answer(b"", Content_Length="5"))) as server:
        with pytest.raises(DomainError) as caught:
            importing.run(context(tmp_path, server.url()))
        assert (reason(caught), server.connections) == ("PEER_UNAVAILABLE", fetching._MOST_BREAKS)


def test_a_server_that_gives_byte_by_byte_is_given_up(tmp_path: Path) -> None:
    """Each break leaves a piece that the checkpoint names."""
    with web(Ranged(ROWS, list(range(1, 100)))) as server:
        ctx = context(tmp_path, server.url())
        with pytest.raises(DomainError):
            importing.run(ctx)
        assert len(ctx.recorded.checkpoints[-1]["pieces"]) == fetching._MOST_BREAKS


def test_progress_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_REPORT_SECONDS", 0.0)
    with web(giving(answer(ROWS))) as server:
        ctx = context(tmp_path, server.url())
        importing.run(ctx)
    shares = [share for share, _ in ctx.recorded.progress]
    assert shares == sorted(shares)
    assert any("MB of rows.jsonl fetched" in text for _, text in ctx.recorded.progress)


@pytest.mark.parametrize("status", ["404 Not Found", "403 Forbidden", "401 Unauthorized", "204 No Content"])
def test_an_answer_that_is_no_file_ends_at_once(tmp_path: Path, status: str) -> None:
    with web(giving(answer(status=status))) as server:
        with pytest.raises(DomainError) as caught:
            importing.run(context(tmp_path, server.url()))
        assert (reason(caught), server.connections) == ("CONTENT_INVALID", 1)
        assert status[:3] in caught.value.message


def test_a_busy_server_is_asked_again(tmp_path: Path) -> None:
    answers = itertools.chain([answer(status="503 Busy"), answer(status="429 Slow")], itertools.repeat(answer(ROWS)))
    result, heads = imported(tmp_path, lambda connection, _: connection.sendall(next(answers)))
    assert (result["row_count"], len(heads)) == (500, 3)


@pytest.mark.parametrize(
    ("path", "headers", "source"),
    [
        ("/rows.jsonl", {}, "rows.jsonl"),
        ("/download", {"Content_Disposition": 'attachment; filename="../../etc/r%20ows.jsonl"'}, "r%20ows.jsonl"),
        ("/download", {"Content_Disposition": "attachment; filename*=UTF-8''..%2F%E2%82%AC.jsonl"}, "€.jsonl"),
        ("/download", {"Content_Disposition": 'attachment; filename="C:\\\\temp\\\\a.jsonl"'}, "a.jsonl"),
        ("/r%C3%BCws%2Fa%00b.jsonl", {"Content_Disposition": "inline"}, "ab.jsonl"),
        ("/rows.jsonl", {"Content_Disposition": "attachment; filename=download"}, "rows.jsonl"),
    ],
)
def test_the_file_is_named_by_the_server_or_the_path(
    tmp_path: Path, path: str, headers: dict[str, str], source: str
) -> None:
    with web(giving(answer(b"bad\n" + ROWS, **headers))) as server:
        ctx = context(tmp_path, server.url(path))
        importing.run(ctx)
        assert ctx.recorded.checkpoints[-1]["file_name"] == source


def test_a_format_that_no_name_tells_must_be_said(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        imported(tmp_path, giving(answer(ROWS)), "/download")
    assert (reason(caught), caught.value.metadata) == ("INVALID_FIELD", {"field": "format"})
    assert imported(tmp_path, giving(answer(ROWS)), "/download", format="jsonl")[0]["row_count"] == 500


def test_gzip_as_a_file_and_on_the_way(tmp_path: Path) -> None:
    packed = gzip.compress(ROWS)
    for headers in ({}, {"Content_Encoding": "gzip"}):
        result, _ = imported(tmp_path, giving(answer(packed, **headers)), "/rows.jsonl.gz")
        assert result["row_count"] == 500


def test_limits_hold_over_all_answers(tmp_path: Path) -> None:
    with pytest.raises(DomainError) as caught:
        imported(tmp_path, Ranged(ROWS, [1500]), max_bytes=len(ROWS) - 1)
    assert reason(caught) == "TOO_LARGE"


def test_time_ends(tmp_path: Path) -> None:
    def forever(connection: socket.socket, head: str) -> None:
        connection.sendall(answer(ROWS[:100], Content_Length="1000"))
        connection.recv(1)

    with pytest.raises(EngineError) as caught:
        imported(tmp_path, forever, max_seconds=0.2)
    assert reason(caught) == "DEADLINE_EXCEEDED"


def test_links_inside_are_refused_by_the_task(tmp_path: Path) -> None:
    with web(giving(answer(ROWS))) as server:
        with pytest.raises(DomainError, match="ARGOSY_DATASET_IMPORT_NETWORKS") as caught:
            importing.run(context(tmp_path, server.url(), networks=[]))
        assert (reason(caught), server.connections) == ("INVALID_FIELD", 0)


# WebHDFS.


class NameNode:
    """The REST interface of HDFS with one file, whose bytes a data node has."""

    def __init__(self, data: bytes, data_node: str, kind: str = "FILE") -> None:
        self._data_node = data_node
        self._status = {"FileStatus": {"type": kind, "length": len(data), "modificationTime": 7}}

    def __call__(self, connection: socket.socket, head: str) -> None:
        target = head.split()[1]
        if "op=GETFILESTATUS" in target:
            connection.sendall(answer(json.dumps(self._status).encode()))
        else:
            connection.sendall(answer(status="307 Temporary Redirect", Location=f"{self._data_node}{target}"))


class DataNode:
    """Gives the bytes from an offset on; the first answer breaks off."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.offsets: list[int] = []

    def __call__(self, connection: socket.socket, head: str) -> None:
        start = int(re.findall(r"offset=(\d+)", head)[0])
        self.offsets.append(start)
        whole = answer(self._data[start:])
        connection.sendall(whole[:1600] if len(self.offsets) == 1 else whole)


@pytest.fixture
def hdfs() -> Iterator[tuple[str, DataNode, list[str]]]:
    node = DataNode(ROWS)
    with web(node) as data, web(NameNode(ROWS, data.url(""))) as name:
        yield name.url("/lake/rows.jsonl").replace("http", "webhdfs"), node, name.heads


def test_a_file_of_hdfs_is_read_through_its_data_node(tmp_path: Path, hdfs: tuple[str, DataNode, list[str]]) -> None:
    uri, node, heads = hdfs
    result = importing.run(context(tmp_path, f"{uri}?user.name=ada"))
    assert result["row_count"] == 500
    assert result["origin"]["address"] == uri
    assert "GET /webhdfs/v1/lake/rows.jsonl?user.name=ada&op=GETFILESTATUS HTTP/1.1" in heads[0]
    assert (node.offsets[0], len(node.offsets)) == (0, 2)
    assert node.offsets[1] > 1000


def test_a_file_of_hdfs_that_changed_begins_again(tmp_path: Path, hdfs: tuple[str, DataNode, list[str]]) -> None:
    uri, node, _ = hdfs
    old = BlobStore(f"file://{tmp_path}").put_sync(b"x" * 100).sha256
    stale = {"pieces": [{"sha256": old, "size": 100}], "validator": "6/900", "file_name": "rows.jsonl", "total": 900}
    assert importing.run(context(tmp_path, uri, resume=stale))["row_count"] == 500
    assert node.offsets[0] == 0


def test_a_data_node_inside_is_refused(tmp_path: Path) -> None:
    with web(giving(answer(ROWS))) as inside, web(NameNode(ROWS, inside.url("", "127.0.0.9"))) as name:
        with pytest.raises(DomainError, match=r"127\.0\.0\.9"):
            importing.run(context(tmp_path, name.url("/a.jsonl").replace("http", "webhdfs")))
        assert inside.connections == 0


@pytest.mark.parametrize(
    ("answering", "words"),
    [(NameNode(ROWS, "", "DIRECTORY"), "is a folder"), (giving(answer(b"<html>")), "does not speak WebHDFS")],
)
def test_what_is_no_file_of_hdfs_is_said(tmp_path: Path, answering: Answering, words: str) -> None:
    with web(answering) as server, pytest.raises(DomainError, match=words):
        importing.run(context(tmp_path, server.url("/lake").replace("http", "webhdfs")))


# Secrets.


def _answering(payload: str) -> Callable[[str, str], Awaitable[str]]:
    async def resolve_secret(_name: str, _identity: str) -> str:
        return payload

    return resolve_secret


@pytest.mark.parametrize(
    ("payload", "query", "words"),
    [
        ("sk-hidden", "", "neither a link"),
        ("hidden:key", "", "neither a link"),
        ("file:///hidden", "", "neither a link"),
        ("mysql://u:hidden@127.0.0.1/db", "SELECT 1", "mysql"),
        ("postgresql://u:hidden@10.0.0.1/db", "SELECT 1", "10.0.0.1 leads|10.0.0.1, which"),
        ("postgresql://u:hidden@10.0.0.1/db", "", "query: is missing"),
        ("https://127.0.0.1/rows.csv?key=hidden", "SELECT 1", "the secret holds a link"),
        ("https://u:hidden@127.0.0.1/rows.csv", "", "user name or password"),
    ],
)
def test_what_is_in_a_secret_is_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payload: str, query: str, words: str
) -> None:
    monkeypatch.setattr(outside, "resolve_secret", _answering(payload))
    ctx = context(tmp_path, "", secret="orgs/acme/secrets/s", query=query, identity="")
    del ctx.spec["uri"]
    with pytest.raises(DomainError, match=words) as caught:
        importing.run(ctx)
    assert reason(caught) == "INVALID_FIELD"
    assert "hidden" not in f"{caught.value.message} {ctx.recorded}"


def test_a_link_that_is_a_key_comes_from_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with web(giving(answer(ROWS))) as server:
        signed = server.url("/rows.jsonl?signature=hidden")
        monkeypatch.setattr(outside, "resolve_secret", _answering(signed))
        ctx = context(tmp_path, "", secret="orgs/acme/secrets/s", query="", identity="")
        del ctx.spec["uri"]
        result = importing.run(ctx)
        assert "GET /rows.jsonl?signature=hidden" in server.heads[0]
    assert result["row_count"] == 500
    assert "hidden" not in f"{result} {ctx.recorded}"
