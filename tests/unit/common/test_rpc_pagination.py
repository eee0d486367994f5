"""Page tokens hold for one query and cannot be made up."""

from __future__ import annotations

import pytest
from argosy.dataset.v1.dataset_service_pb2 import ListDatasetsRequest

from libs.common.errors import ArgosyError
from libs.common.rpc.pagination import PageToken, page_size


def test_token_comes_back() -> None:
    request = ListDatasetsRequest(parent="orgs/acme", page_size=10)
    token = PageToken.encode(request, "position/1")
    following = ListDatasetsRequest(parent="orgs/acme", page_size=20, page_token=token)
    assert PageToken.decode(following) == "position/1"
    assert PageToken.decode(request) == ""
    assert PageToken.encode(request, "") == ""


@pytest.mark.parametrize("token", ["x", "!!!", "W10", "WyJhIiwiYiJd", "é", "A" * 1024, "bnVsbA", "WzEsMl0"])
def test_made_up_tokens(token: str) -> None:
    with pytest.raises(ArgosyError) as raised:
        PageToken.decode(ListDatasetsRequest(parent="orgs/acme", page_token=token))
    assert raised.value.reason == "PAGE_TOKEN_INVALID"
    assert raised.value.violations[0][0] == "page_token"


def test_token_of_another_query() -> None:
    token = PageToken.encode(ListDatasetsRequest(parent="orgs/acme"), "p")
    for other in ({"parent": "orgs/other"}, {"parent": "orgs/acme", "show_deleted": True}):
        with pytest.raises(ArgosyError):
            PageToken.decode(ListDatasetsRequest(page_token=token, **other))  # pyrefly: ignore[bad-argument-type]


def test_page_size() -> None:
    assert [page_size(asked) for asked in (0, 1, 1000, 5000)] == [50, 1, 1000, 1000]
    with pytest.raises(ArgosyError) as raised:
        page_size(-1)
    assert raised.value.reason == "INVALID_FIELD"
