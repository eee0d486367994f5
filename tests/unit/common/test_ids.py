"""Ids and names."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.domain import DomainError
from libs.common.ids import NamePattern, org_of, resource_id, uuid7

VERSIONS = NamePattern("orgs/{org}/datasets/{dataset}/versions/{version}")


def test_uuid7_is_one_and_rises() -> None:
    ids = [uuid7() for _ in range(2000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    parsed = uuid.UUID(ids[0])
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)


def test_resource_ids_can_stand_in_names() -> None:
    ids = [resource_id("task") for _ in range(500)]
    assert len(set(ids)) == 500
    for each in ids:
        VERSIONS.format(org="acme", dataset="d", version=each)
    assert len(resource_id()) == 16
    with pytest.raises(ValueError, match="prefix"):
        resource_id("Not OK")


def test_names_there_and_back() -> None:
    name = VERSIONS.format(org="acme", dataset="news-2", version="v1")
    assert name == "orgs/acme/datasets/news-2/versions/v1"
    assert VERSIONS.parse(name) == {"org": "acme", "dataset": "news-2", "version": "v1"}
    assert VERSIONS.matches(name)
    assert org_of(name) == "acme"


@pytest.mark.parametrize("bad", ["", "A", "-a", "a-", "a/b", "a\n", "ü", "x" * 64, "..", "a b", "a\0"])
def test_ids_that_are_refused(bad: str) -> None:
    with pytest.raises(DomainError) as caught:
        VERSIONS.format(org="acme", dataset=bad, version="v1")
    assert (caught.value.reason, caught.value.metadata) == ("INVALID_FIELD", {"field": "dataset"})
    with pytest.raises(DomainError) as caught:
        VERSIONS.parse(f"orgs/acme/datasets/{bad}/versions/v1", field="parent")
    assert caught.value.metadata == {"field": "parent"}


@given(st.text())
def test_no_text_crashes_the_parser(text: str) -> None:
    for parse in (VERSIONS.parse, org_of):
        with pytest.raises(DomainError):
            parse(text)
