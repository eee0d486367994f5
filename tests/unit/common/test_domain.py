"""The fields that every resource has, and their message."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from argosy.dataset.v1 import dataset_pb2
from argosy.training.v1 import training_pb2

from libs.common.db.mapping import from_proto, to_proto
from libs.common.domain import DomainError, Parent, Resource, Secrecy, inherit_secrecy

NOW = datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)


def make(**fields: object) -> Resource:
    values = {"uid": "u", "name": "orgs/acme/datasets/news", "create_time": NOW, "update_time": NOW, **fields}
    return Resource(**values)  # type: ignore[arg-type]


def test_parts_of_the_name() -> None:
    resource = make()
    assert (resource.org, resource.id, resource.parent) == ("acme", "news", "orgs/acme")
    assert make(name="orgs/acme").parent == ""


def test_the_etag_follows_the_version() -> None:
    first, second = make(version=1), make(version=2)
    assert first.etag == make(version=1).etag
    assert first.etag != second.etag
    assert make(version=1, uid="v").etag != first.etag
    first.require_etag("")
    first.require_etag(first.etag)
    with pytest.raises(DomainError) as caught:
        second.require_etag(first.etag)
    assert caught.value.reason == "ETAG_MISMATCH"


def test_secrecy_never_falls() -> None:
    assert inherit_secrecy(Secrecy.PUBLIC, Secrecy.SECRET, Secrecy.INTERNAL) is Secrecy.SECRET
    assert inherit_secrecy(Secrecy.CONFIDENTIAL, Secrecy.PUBLIC) is Secrecy.CONFIDENTIAL
    assert inherit_secrecy(0) is Secrecy.INTERNAL


def test_standard_fields_reach_the_message() -> None:
    lineage = [Parent("orgs/acme/datasets/raw", "ab" * 32, "cleaned_from")]
    resource = make(version=3, labels={"k": "v"}, secrecy=Secrecy.SECRET, lineage=lineage, creator="users/a")
    message = to_proto(resource, dataset_pb2.Dataset(display_name="News"))
    assert (message.name, message.etag, message.display_name) == (resource.name, resource.etag, "News")
    assert message.create_time.ToDatetime(UTC) == NOW
    assert not message.HasField("delete_time")
    assert from_proto(message) == {"labels": {"k": "v"}, "secrecy": Secrecy.SECRET, "lineage": lineage}


def test_states_are_named_without_their_prefix() -> None:
    version = to_proto(make(state="REGISTERED"), training_pb2.ModelVersion())
    assert version.state == training_pb2.ModelVersion.STATE_REGISTERED
    with pytest.raises(ValueError, match="no value of"):
        to_proto(make(state="LOST"), training_pb2.ModelVersion())
