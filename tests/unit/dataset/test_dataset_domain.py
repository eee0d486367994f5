"""Who sees a dataset, what a version inherits, what an upload takes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from libs.common.domain import DomainError, Secrecy
from services.dataset.domain.datasets import UNDELETE_TIME, Dataset, Visibility
from services.dataset.domain.uploads import Upload, UploadPart, UploadState
from services.dataset.domain.versions import Content, new_version

NOW = datetime(2026, 1, 2, tzinfo=UTC)
CONTENT = Content("m", "c", 1, 2, [{"name": "text", "type": "string"}])


def dataset(**fields: object) -> Dataset:
    values = {"uid": "u", "name": "orgs/acme/datasets/d", "create_time": NOW, "update_time": NOW, "creator": "users/a"}
    return Dataset(**{**values, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("visibility", "org", "subject", "role", "seen"),
    [
        (Visibility.ORGANIZATION, "acme", "users/b", 1, True),
        (Visibility.ORGANIZATION, "umbrella", "users/a", 4, False),
        (Visibility.USER, "acme", "users/a", 2, True),
        (Visibility.USER, "acme", "users/b", 3, False),
        (Visibility.USER, "acme", "users/b", 4, True),
        (Visibility.USER, "acme", "services/training", 0, True),
        (Visibility.USER, "umbrella", "users/a", 4, False),
        (Visibility.PUBLIC, "umbrella", "users/b", 1, True),
        (Visibility.USER, "system", "users/root", 5, True),
    ],
)
def test_visibility(visibility: Visibility, org: str, subject: str, role: int, seen: bool) -> None:
    assert dataset(visibility=visibility).is_visible_to(org, subject, role) is seen


@pytest.mark.parametrize(
    ("share", "org", "subject", "department", "seen"),
    [
        ("orgs/acme/users/b", "acme", "users/b", "", True),
        ("orgs/acme/users/b", "acme", "users/c", "", False),
        ("orgs/acme/users/b", "umbrella", "users/b", "", False),
        ("orgs/acme/departments/x", "acme", "users/c", "orgs/acme/departments/x", True),
        ("orgs/acme/departments/x", "acme", "users/c", "orgs/acme/departments/y", False),
        ("orgs/umbrella", "umbrella", "users/z", "", True),
        ("orgs/umbrella/users/z", "umbrella", "users/y", "", False),
    ],
)
def test_a_share_reaches_whom_it_names(share: str, org: str, subject: str, department: str, seen: bool) -> None:
    private = dataset(visibility=Visibility.USER, shared_with=[share])
    assert private.is_visible_to(org, subject, 2, department) is seen
    if seen:
        with pytest.raises(DomainError, match="to be read"):
            private.require_writable(subject, 2)
    private.secrecy = Secrecy.CONFIDENTIAL
    assert private.is_visible_to(org, subject, 2, department) is (seen and org == "acme")


def test_what_is_confidential_never_leaves_the_organization() -> None:
    raised = dataset(visibility=Visibility.PUBLIC, secrecy=Secrecy.CONFIDENTIAL)
    assert not raised.is_visible_to("umbrella", "users/b", 1)
    assert raised.is_visible_to("acme", "users/b", 1)


def test_a_deleted_public_dataset_is_no_longer_shared() -> None:
    assert not dataset(visibility=Visibility.PUBLIC, delete_time=NOW).is_visible_to("umbrella", "users/b", 1)


def test_a_version_inherits_secrecy_and_raises_that_of_its_dataset() -> None:
    holder = dataset(secrecy=Secrecy.INTERNAL)
    parents = [Secrecy.PUBLIC, Secrecy.SECRET]
    version = new_version(holder, CONTENT, uid="v", now=NOW, creator="users/a", parents_secrecy=parents)
    assert (version.secrecy, holder.secrecy) == (Secrecy.SECRET, Secrecy.SECRET)
    assert holder.latest_version == version.name == "orgs/acme/datasets/d/versions/v1"
    with pytest.raises(DomainError, match="cannot be lowered"):
        holder.change_secrecy(Secrecy.INTERNAL)
    holder.locked = True
    with pytest.raises(DomainError, match="locked"):
        new_version(holder, CONTENT, uid="w", now=NOW, creator="users/a")
    assert holder.version_count == 1


def test_a_dataset_comes_back_for_thirty_days() -> None:
    gone = dataset(delete_time=NOW)
    gone.require_undeletable(NOW + UNDELETE_TIME)
    with pytest.raises(DomainError):
        gone.require_undeletable(NOW + UNDELETE_TIME + timedelta(seconds=1))


def upload(**fields: object) -> Upload:
    values = {
        "uid": "u",
        "name": "orgs/acme/uploads/u",
        "create_time": NOW,
        "update_time": NOW,
        "state": UploadState.OPEN,
        "expire_time": NOW + timedelta(days=1),
        "file_name": "a.csv",
    }
    return Upload(**{**values, **fields})  # type: ignore[arg-type]


def test_parts_come_in_order_and_not_beyond_the_size() -> None:
    open_upload = upload(size=10)
    open_upload.append(UploadPart(0, 6, "x"))
    for part, reason in ((UploadPart(0, 6, "x"), "OFFSET_MISMATCH"), (UploadPart(6, 5, "y"), "INVALID_FIELD")):
        with pytest.raises(DomainError) as caught:
            open_upload.append(part)
        assert caught.value.reason == reason
    with pytest.raises(DomainError, match="6 of the announced 10"):
        open_upload.require_complete()
    open_upload.append(UploadPart(6, 4, "z"))
    open_upload.require_complete()
    open_upload.commit("digest", "manifest", NOW)
    with pytest.raises(DomainError) as caught:
        open_upload.append(UploadPart(10, 1, "z"))
    assert caught.value.reason == "STATE_CONFLICT"


def test_an_expired_upload_is_not_there() -> None:
    with pytest.raises(DomainError) as caught:
        upload().require_alive(NOW + timedelta(days=1))
    assert caught.value.reason == "NOT_FOUND"
