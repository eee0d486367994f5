"""From keyword arguments to an HTTP request, for every RPC that there is."""

from __future__ import annotations

import pytest
from argosy.client import contract
from argosy.client.contract import Method
from argosy.dataset.v1 import dataset_pb2

METHODS = [method for area in contract.areas().values() for method in area.values()]


def _request(area: str, rpc: str, /, **arguments: object) -> contract.HttpRequest:
    method = contract.areas()[area][rpc]
    return contract.transcode(method, contract.build(method, arguments))


def _filled(method: Method) -> dict[str, object]:
    """Arguments that fill the path."""
    arguments: dict[str, object] = {}
    for path in method.path_fields():
        first, _, rest = path.partition(".")
        arguments[first] = {rest: "orgs/acme/things/one"} if rest else "orgs/acme/things/one"
    return arguments


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.area}.{method.name}")
def test_every_method_has_a_path_without_holes(method: Method) -> None:
    request = contract.transcode(method, contract.build(method, _filled(method)))
    assert request.path.startswith("/v1/")
    assert "{" not in request.path
    assert (request.json is None) == (method.body == "")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.area}.{method.name}")
def test_every_mutation_can_be_repeated_without_happening_twice(method: Method) -> None:
    if method.reads or "request_id" not in method.request.fields_by_name:
        return
    message = contract.build(method, _filled(method))
    assert len(message.request_id) >= 32  # type: ignore[attr-defined]
    given = contract.build(method, {**_filled(method), "request_id": "mine"})
    assert given.request_id == "mine"  # type: ignore[attr-defined]


def test_a_body_holds_what_the_path_does_not() -> None:
    request = _request(
        "dataset", "create_dataset", parent="orgs/acme", dataset_id="x", dataset={"type": 2}, request_id="r"
    )
    assert (request.verb, request.path) == ("POST", "/v1/orgs/acme/datasets")
    assert request.json == {"dataset_id": "x", "dataset": {"type": "DATASET_TYPE_TEXT"}, "request_id": "r"}


def test_messages_are_taken_as_dictionaries_are() -> None:
    by_message = _request(
        "dataset",
        "create_dataset",
        parent="orgs/a",
        dataset=dataset_pb2.Dataset(type="DATASET_TYPE_TEXT"),
        request_id="r",
    )
    by_dict = _request(
        "dataset", "create_dataset", parent="orgs/a", dataset={"type": "DATASET_TYPE_TEXT"}, request_id="r"
    )
    assert by_message == by_dict


def test_a_read_without_a_body_has_its_fields_in_the_query() -> None:
    request = _request("dataset", "list_datasets", parent="orgs/acme", page_size=3, show_deleted=True)
    assert request.query == [("page_size", "3"), ("show_deleted", "true")]
    assert request.json is None


@pytest.mark.parametrize("mask", ["display_name,project_space", ["display_name", "project_space"]])
def test_an_update_sends_a_field_that_becomes_empty(mask: object) -> None:
    dataset = {"name": "orgs/a/datasets/b", "display_name": "", "project_space": "x"}
    request = _request("dataset", "update_dataset", dataset=dataset, update_mask=mask, request_id="r")
    assert (request.verb, request.path) == ("PATCH", "/v1/orgs/a/datasets/b")
    assert request.json == dataset
    assert ("update_mask", "displayName,projectSpace") in request.query


def test_an_unknown_argument_is_named_with_those_that_there_are() -> None:
    with pytest.raises(TypeError, match=r"no argument 'colour'; it takes .*page_size"):
        _request("dataset", "list_datasets", parent="orgs/a", colour="red")


def test_a_value_of_the_wrong_kind_is_named() -> None:
    with pytest.raises(ValueError, match="page_size"):
        _request("dataset", "list_datasets", parent="orgs/a", page_size="many")


def test_a_path_that_nothing_fills_is_named() -> None:
    with pytest.raises(ValueError, match="needs name"):
        _request("dataset", "get_dataset")


def test_odd_characters_of_a_name_are_escaped() -> None:
    assert _request("dataset", "get_dataset", name="orgs/a/datasets/b c?d").path == "/v1/orgs/a/datasets/b%20c%3Fd"


def test_fields_of_a_newer_server_are_skipped() -> None:
    answer = contract.areas()["dataset"]["get_dataset"].answer
    assert contract.parse(answer, {"name": "orgs/a/datasets/b", "fromTheFuture": 1}).name == "orgs/a/datasets/b"  # type: ignore[attr-defined]
