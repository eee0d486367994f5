"""The clients against a gateway that fails in every way: they repeat what may be repeated, and nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from argosy.client import AsyncClient, Client, Conflict, InvalidRequest, NotFound, Policy, Unavailable, uploads

from tests.unit.argosy.conftest import Answer, FakeGateway, Request, failure

_POLICY = Policy(timeout=5, patience=5)
_AWAY = failure(503, "UNAVAILABLE", "PEER_UNAVAILABLE")


def _in_turn(answers: Iterable[Answer]) -> Callable[[Request], Answer]:
    waiting = iter(answers)
    return lambda _request: next(waiting)


def _json(**fields: object) -> Answer:
    return Answer(body=json.dumps(fields).encode())


def test_a_read_is_repeated_while_the_platform_is_away(gateway: FakeGateway) -> None:
    gateway.respond = _in_turn([_AWAY, _AWAY, _json(name="orgs/a/datasets/b")])
    with Client(gateway.url, "ak_x", _POLICY) as client:
        assert client.dataset.get_dataset(name="orgs/a/datasets/b").name == "orgs/a/datasets/b"
    assert len(gateway.requests) == 3
    assert gateway.requests[0].headers["authorization"] == "Bearer ak_x"


def test_a_mutation_is_repeated_under_the_same_request_id(gateway: FakeGateway) -> None:
    gateway.respond = _in_turn([_AWAY, _json(name="orgs/a/datasets/b")])
    with Client(gateway.url, "k", _POLICY) as client:
        client.dataset.create_dataset(parent="orgs/a", dataset_id="b", dataset={})
    first, second = (request.json["request_id"] for request in gateway.requests)
    assert first == second


def test_a_refusal_is_not_repeated(gateway: FakeGateway) -> None:
    gateway.respond = lambda _request: failure(404, "NOT_FOUND", "NOT_FOUND", "there is none", name="orgs/a/datasets/b")
    with Client(gateway.url, "k", _POLICY) as client, pytest.raises(NotFound) as caught:
        client.dataset.get_dataset(name="orgs/a/datasets/b")
    assert len(gateway.requests) == 1
    assert (caught.value.reason, caught.value.request_id) == ("NOT_FOUND", "r1")
    assert caught.value.metadata == {"name": "orgs/a/datasets/b"}


def test_a_used_up_quota_is_not_repeated_but_a_rate_limit_is(gateway: FakeGateway) -> None:
    gateway.respond = _in_turn([failure(429, "RESOURCE_EXHAUSTED", "RATE_LIMITED"), _json()])
    with Client(gateway.url, "k", _POLICY) as client:
        client.dataset.get_dataset(name="orgs/a/datasets/b")
        gateway.respond = lambda _request: failure(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
        with pytest.raises(Exception, match="QUOTA_EXCEEDED"):
            client.dataset.get_dataset(name="orgs/a/datasets/b")
    assert len(gateway.requests) == 3


def test_what_may_not_be_repeated_is_never_sent_twice(gateway: FakeGateway) -> None:
    gateway.respond = lambda _request: _AWAY
    with Client(gateway.url, "k", _POLICY) as client, pytest.raises(Unavailable):
        client.send("POST", "/v1/things", repeatable=False)
    assert len(gateway.requests) == 1


def test_patience_has_an_end() -> None:
    with (
        Client("http://127.0.0.1:1", "k", Policy(timeout=1, patience=0.5)) as client,
        pytest.raises(Unavailable) as caught,
    ):
        client.dataset.get_dataset(name="orgs/a/datasets/b")
    assert caught.value.reason == "GATEWAY_UNREACHABLE"
    assert "argosy status" in str(caught.value)


def test_every_field_at_fault_is_named(gateway: FakeGateway) -> None:
    violations = [{"field": "page_size", "description": "must not be negative"}, {"field": "x", "description": "no"}]
    details = [{"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations}]
    error = {"code": 400, "status": "INVALID_ARGUMENT", "message": "bad", "reason": "INVALID_FIELD", "details": details}
    gateway.respond = lambda _request: Answer(400, json.dumps({"error": error}).encode())
    with Client(gateway.url, "k", _POLICY) as client, pytest.raises(InvalidRequest) as caught:
        client.dataset.list_datasets(parent="orgs/a")
    assert caught.value.violations == [("page_size", "must not be negative"), ("x", "no")]
    scope = "quota.scope: must lie in the same organization"
    assert str(InvalidRequest(400, "INVALID_FIELD", scope, violations=[("quota.scope", scope)])).count("scope") == 1
    assert "page_size: must not be negative" in str(caught.value)


def test_an_answer_that_is_no_json_is_an_error_without_a_traceback(gateway: FakeGateway) -> None:
    gateway.respond = lambda _request: Answer(500, b"<html>oh no</html>")
    with Client(gateway.url, "k", _POLICY) as client, pytest.raises(Exception, match="HTTP_500: <html>"):
        client.dataset.get_dataset(name="orgs/a/datasets/b")


def test_pages_are_walked_to_the_end(gateway: FakeGateway) -> None:
    gateway.respond = _in_turn(
        [
            _json(datasets=[{"name": "orgs/a/datasets/1"}, {"name": "orgs/a/datasets/2"}], nextPageToken="t"),
            _json(datasets=[{"name": "orgs/a/datasets/3"}]),
        ]
    )
    with Client(gateway.url, "k", _POLICY) as client:
        from argosy.client import contract

        method = contract.areas()["dataset"]["list_datasets"]
        names = [item.name[-1] for item in client.pages(method, {"parent": "orgs/a"})]
    assert names == ["1", "2", "3"]
    assert "page_token=t" in gateway.requests[1].path


def _event(sequence: int) -> bytes:
    body = json.dumps({"sequence": str(sequence), "task": {"progress": sequence / 10}})
    return f"id: {sequence}\ndata: {body}\n\n".encode()


_STREAM = {"content-type": "text/event-stream"}
_END = b"event: end\ndata: {}\n\n"


def test_a_cut_stream_goes_on_behind_the_last_event(gateway: FakeGateway) -> None:
    gateway.respond = _in_turn(
        [
            Answer(body=_event(1) + b": keep-alive\n\n" + _event(2), headers=_STREAM, cut=True),
            _AWAY,
            Answer(body=_event(3) + _END, headers=_STREAM),
        ]
    )
    with Client(gateway.url, "k", _POLICY) as client:
        seen = [event.sequence for event in client.task.watch_task(name="orgs/a/training/tasks/t")]
    assert seen == [1, 2, 3]
    assert [request.headers.get("last-event-id") for request in gateway.requests] == [None, "2", "2"]


def test_an_error_inside_a_stream_is_raised(gateway: FakeGateway) -> None:
    gone = b"event: error\ndata: " + failure(404, "NOT_FOUND", "NOT_FOUND").body + b"\n\n"
    gateway.respond = lambda _request: Answer(body=_event(1) + gone, headers=_STREAM)
    with Client(gateway.url, "k", _POLICY) as client, pytest.raises(NotFound):
        list(client.task.watch_task(name="orgs/a/training/tasks/t"))


async def test_the_asynchronous_client_does_the_same(gateway: FakeGateway) -> None:
    gateway.respond = _in_turn(
        [
            _AWAY,
            _json(name="orgs/a/datasets/b"),
            Answer(body=_event(1), headers=_STREAM, cut=True),
            Answer(body=_event(2) + _END, headers=_STREAM),
            failure(409, "ALREADY_EXISTS", "ALREADY_EXISTS"),
        ]
    )
    async with AsyncClient(gateway.url, "k", _POLICY) as client:
        assert (await client.dataset.get_dataset(name="orgs/a/datasets/b")).name == "orgs/a/datasets/b"
        assert [event.sequence async for event in client.task.watch_task(name="orgs/a/training/tasks/t")] == [1, 2]
        with pytest.raises(Conflict):
            await client.dataset.create_dataset(parent="orgs/a", dataset_id="b", dataset={})


def test_the_calls_of_a_block_are_one_trace(gateway: FakeGateway) -> None:
    with Client(gateway.url, "k", _POLICY) as client:
        with client.trace() as trace_id:
            client.dataset.get_dataset(name="orgs/a/datasets/b")
        client.dataset.get_dataset(name="orgs/a/datasets/b")
    sent = [request.headers.get("traceparent", "") for request in gateway.requests]
    assert re.fullmatch(rf"00-{trace_id}-[0-9a-f]{{16}}-01", sent[0])
    assert sent[1] == ""


class _Store:
    """Takes an upload, and loses an answer where a test wants it."""

    def __init__(self, file: Path, lose: set[int]) -> None:
        self.size, self.data, self._lose, self._puts = file.stat().st_size, bytearray(), lose, 0

    def __call__(self, request: Request) -> Answer:
        if request.verb == "PUT":
            self._puts += 1
            start = int(re.match(r"bytes (\d+)-", request.headers["content-range"])[1])  # type: ignore[index]
            if start > len(self.data):
                return failure(416, "OUT_OF_RANGE", "OFFSET_MISMATCH", received=str(len(self.data)))
            self.data[start:] = request.body
            if self._puts in self._lose:
                return Answer(503, b"lost")
        if request.path.endswith(":commit") and request.json["sha256"] != hashlib.sha256(self.data).hexdigest():
            return failure(400, "INVALID_ARGUMENT", "DIGEST_MISMATCH")
        state = "STATE_COMMITTED" if request.path.endswith(":commit") else "STATE_OPEN"
        return _json(name="orgs/a/uploads/u", uid="1", state=state, size=str(self.size), offset=str(len(self.data)))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(uploads, "PART_BYTES", 1000)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(bytes(range(256)) * 20)
    return path


@pytest.mark.parametrize("lose", [set(), {1}, {2, 3}])
def test_a_file_arrives_whole_though_answers_are_lost(gateway: FakeGateway, file: Path, lose: set[int]) -> None:
    store = _Store(file, lose)
    gateway.respond = store
    seen: list[int] = []
    with Client(gateway.url, "k", _POLICY) as client:
        state = client.upload("orgs/a", file, progress=lambda done, _size: seen.append(done))
    assert bytes(store.data) == file.read_bytes()
    assert state.state == state.STATE_COMMITTED
    assert seen == sorted(seen)
    assert seen[-1] == file.stat().st_size


def test_an_upload_that_was_begun_goes_on_where_it_stands(gateway: FakeGateway, file: Path) -> None:
    store = _Store(file, set())
    store.data += file.read_bytes()[:2500]

    def respond(request: Request) -> Answer:
        if request.path.endswith("/uploads"):
            return failure(409, "ALREADY_EXISTS", "ALREADY_EXISTS")
        return store(request)

    gateway.respond = respond
    with Client(gateway.url, "k", _POLICY) as client:
        client.upload("orgs/a", file, upload_id="u")
    assert bytes(store.data) == file.read_bytes()
    first = next(request for request in gateway.requests if request.verb == "PUT")
    assert first.headers["content-range"].startswith("bytes 2500-")
