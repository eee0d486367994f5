"""HTTP into messages and back, compared with what protobuf's own JSON does."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.errors import ArgosyError
from services.gateway.http.json_message import MAX_DEPTH, Faults, fill
from services.gateway.http.routes import default_table
from services.gateway.http.transcode import build_request, parse_json, to_json

TABLE = default_table()


def build(method: str, path: str, query: bytes = b"", body: bytes = b"") -> Any:
    match = TABLE.match(method, path)
    assert match is not None
    return build_request(match, query, body)


def empty(path: str) -> Any:
    match = TABLE.match("POST", path)
    assert match is not None
    return match.route.request_class()


def violations(method: str, path: str, query: bytes = b"", body: bytes = b"") -> dict[str, str]:
    with pytest.raises(ArgosyError) as caught:
        build(method, path, query, body)
    return dict(caught.value.violations)


def test_query_of_all_kinds():
    request = build(
        "GET",
        "/v1/orgs/a/traces",
        b"pageSize=7&errors_only=true&min_duration_seconds=0.5&start_time=2026-01-02T03:04:05Z",
    )
    assert (request.parent, request.page_size, request.errors_only) == ("orgs/a", 7, True)
    assert request.min_duration_seconds == 0.5
    assert request.start_time.seconds == 1767323045
    repeated = build("GET", "/v1/orgs/a/datasets/d/versions/v:read", b"projection=a&projection=b%26c")
    assert list(repeated.projection) == ["a", "b&c"]
    assert build("GET", "/v1/orgs/a/eval/tasks", b"state=STATE_FAILED").state == 5
    assert build("GET", "/v1/orgs/a/eval/tasks", b"state=5").state == 5


def test_body_of_one_field_leaves_the_rest_to_the_query():
    request = build(
        "PATCH", "/v1/orgs/a/datasets/d", b"update_mask=display_name,labels&request_id=r", b'{"displayName":"N"}'
    )
    assert request.dataset.name == "orgs/a/datasets/d"
    assert list(request.update_mask.paths) == ["display_name", "labels"]
    assert request.request_id == "r"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (b"nope=1", "nope"),
        (b"page_size=1&page_size=2", "page_size"),
        (b"page_size=1.5", "page_size"),
        (b"page_size=99999999999", "page_size"),
        (b"page_size=", "page_size"),
        (b"show_deleted=yes", "show_deleted"),
        (b"parent=orgs/b", "parent"),
        (b"page_token=a%00b", "page_token"),
        (b"page_token.x=1", "page_token.x"),
    ],
)
def test_faults_of_the_query(query, field):
    assert set(violations("GET", "/v1/orgs/a/datasets", query)) == {field}


def test_faults_of_the_body():
    body = (
        b'{"sampling":{"maxTokens":"x","temperature":"warm","stop":"a"},"messages":[{"role":5},7],"variables":{"a":1}}'
    )
    assert set(violations("POST", "/v1/orgs/a/applications/x:chat", b"", body)) == {
        "sampling.max_tokens",
        "sampling.temperature",
        "sampling.stop",
        "messages[0].role",
        "messages[1]",
        "variables[a]",
    }
    assert violations("POST", "/v1/orgs/a/datasets", b"request_id=r", b"{}") == {"request_id": "belongs into the body"}


@pytest.mark.parametrize("number", [2**32 + 4, 4 - 2**32, 77, -1])
def test_numbers_that_are_no_value_of_an_enumeration(number):
    body = f'{{"dataset":{{"secrecy":{number}}}}}'.encode()
    assert set(violations("POST", "/v1/orgs/a/datasets", b"", body)) == {"dataset.secrecy"}


def test_a_field_in_both_spellings_is_given_twice():
    assert "dataset_id" in violations("POST", "/v1/orgs/a/datasets", b"", b'{"datasetId":"a","dataset_id":"b"}')


def test_position_of_a_fault_in_json():
    with pytest.raises(ArgosyError) as caught:
        parse_json(b'{"a": 1,\n "b": }')
    assert caught.value.metadata == {"line": "2", "column": "7", "position": "15"}


def test_deep_structures_are_refused():
    deep: object = 1
    for _ in range(300):
        deep = {"a": deep}
    message = empty("/v1/orgs/a/evaluations")
    faults = Faults()
    fill(message, {"evaluation": deep}, faults)
    assert faults.found
    assert MAX_DEPTH < 100


_SAMPLING = st.fixed_dictionaries(
    {},
    optional={
        "maxTokens": st.integers(-(1 << 31), (1 << 31) - 1),
        "temperature": st.floats(allow_nan=False, allow_infinity=False),
        "seed": st.integers(-(1 << 63), (1 << 63) - 1).map(str),
        "stop": st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))),
        "jsonSchema": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    },
)


@settings(deadline=None)
@given(_SAMPLING)
def test_the_same_as_protobuf_for_what_is_right(sampling):
    body = {"sampling": sampling, "messages": [{"role": "user", "content": "x"}]}
    ours = build("POST", "/v1/orgs/a/applications/x:chat", b"", json.dumps(body).encode())
    theirs = json_format.ParseDict(body, type(ours)(name="orgs/a/applications/x"))
    assert ours == theirs
    assert json.loads(to_json(ours)) == json_format.MessageToDict(theirs)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_NAMES = st.sampled_from(["dataset", "datasetId", "parent", "request_id", "labels", "createTime", "lineage", "secrecy"])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(_NAMES, _JSON | st.dictionaries(_NAMES, _JSON, max_size=4), max_size=5))
def test_whatever_json_only_ever_names_fields(body):
    message = empty("/v1/orgs/a/datasets")
    faults = Faults()
    fill(message, body, faults)
    if not faults.found:
        message.SerializeToString()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_whatever_query_only_ever_names_fields(query):
    with suppress(ArgosyError):
        build("GET", "/v1/orgs/a/datasets", query)
