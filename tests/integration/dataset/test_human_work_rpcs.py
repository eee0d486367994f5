"""Human work as the people in it see it: over gRPC, with the real database."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from argosy.common.v1 import options_pb2, task_pb2
from argosy.dataset.v1 import human_work_pb2 as work_pb
from argosy.dataset.v1 import human_work_service_pb2 as pb
from dataset_client import Client, refusal
from google.protobuf import json_format, struct_pb2
from test_dataset_rpcs import publish

from libs.common.domain import Secrecy
from libs.common.ids import uuid7

NAME = "orgs/acme/workProjects/moods"
MOODS = ("positive", "neutral", "negative")


def struct(value: dict[str, Any]) -> struct_pb2.Struct:
    return json_format.ParseDict(value, struct_pb2.Struct())


def person(client: Client, name: str) -> Client:
    """Somebody who may only read, as most annotators are."""
    return client.other(subject=f"users/{name}", role=options_pb2.ROLE_VIEWER)


async def project(client: Client, items: int = 3, gold: int = 0, **rules: Any) -> work_pb.WorkProject:
    made = await client.CreateWorkProject(
        pb.CreateWorkProjectRequest(
            parent="orgs/acme",
            work_project_id="moods",
            template="sentiment",
            work_project=work_pb.WorkProject(display_name="Moods", **rules),
        )
    )
    texts = [work_pb.WorkItem(payload=struct({"text": f"text {n}"}), subject=f"rows/{n}") for n in range(items)]
    right = struct({"sentiment": "neutral"})
    known = [work_pb.WorkItem(payload=struct({"text": f"known {n}"}), gold=right) for n in range(gold)]
    await client.AddWorkItems(pb.AddWorkItemsRequest(parent=made.name, items=[*texts, *known]))
    return made


async def take(somebody: Client, another: bool = False) -> work_pb.WorkAssignment | None:
    answer = await somebody.TakeWork(pb.TakeWorkRequest(name=NAME, another=another))
    return answer.assignment if answer.HasField("assignment") else None


async def submit(somebody: Client, assignment: work_pb.WorkAssignment, mood: str) -> work_pb.WorkAssignment:
    request = pb.SubmitWorkRequest(name=assignment.name, answer=struct({"sentiment": mood}), active_seconds=4.5)
    return await somebody.SubmitWork(request)


async def state(client: Client, assignment: work_pb.WorkAssignment) -> str:
    item = await client.GetWorkItem(pb.GetWorkItemRequest(name=assignment.item.name))
    return work_pb.WorkItem.State.Name(item.state)


async def test_two_people_answer_blind_and_a_third_decides(client: Client) -> None:
    await project(client, items=2, overlap=2, reviewers=["users/rev"])
    ann, bob, rev = (person(client, name) for name in ("ann", "bob", "rev"))
    first = await take(ann)
    assert first is not None
    assert [field.name for field in first.form.fields] == ["sentiment"]
    assert dict(first.item.payload) == {"text": "text 0"}
    # The same one as long as it is held, so that a closed page loses nothing.
    assert (await take(ann)).name == first.name  # type: ignore[union-attr]
    await ann.SaveDraft(pb.SaveDraftRequest(name=first.name, answer=struct({"sentiment": "neutral"})))
    assert dict((await take(ann)).answer) == {"sentiment": "neutral"}  # type: ignore[union-attr]
    pending = await ann.ListPendingWork(pb.ListPendingWorkRequest(parent="orgs/acme"))
    assert [one.name for one in pending.assignments] == [first.name]

    error = await refusal(submit(ann, first, "angry"))
    assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", "answer.sentiment")
    await submit(ann, first, "positive")
    assert (await refusal(submit(ann, first, "positive"))).reason == "STATE_CONFLICT"
    assert not (await ann.ListPendingWork(pb.ListPendingWorkRequest(parent="orgs/acme"))).assignments

    other = await take(bob)
    assert other is not None
    assert other.item.name == first.item.name
    # Nothing of what others said, or what is known, reaches who answers.
    assert {field.name for field, _ in other.item.ListFields()} == {"name", "subject", "payload"}
    for request in (ann.GetWorkItem(pb.GetWorkItemRequest(name=first.item.name)), ann.ListWorkItems(
        pb.ListWorkItemsRequest(parent=NAME)
    )):  # fmt: skip
        assert (await refusal(request)).reason == "ROLE_MISSING"
    assert (await refusal(submit(bob, first, "positive"))).reason == "NOT_FOUND"
    await submit(bob, other, "negative")
    assert await state(client, first) == "STATE_IN_REVIEW"

    review = await rev.TakeReview(pb.TakeReviewRequest(name=NAME))
    assert review.item.agreement == 0
    assert [one.annotator for one in review.assignments] == ["users/ann", "users/bob"]
    decision = pb.DecideReviewRequest(name=review.item.name, answer=struct({"sentiment": "positive"}))
    assert (await refusal(client.DecideReview(decision))).reason == "STATE_CONFLICT"
    decided = await rev.DecideReview(decision)
    assert (decided.state, dict(decided.answer)) == (work_pb.WorkItem.STATE_ACCEPTED, {"sentiment": "positive"})

    for somebody in (ann, bob):
        last = await take(somebody)
        assert last is not None
        await submit(somebody, last, "neutral")
    assert await take(ann) is None
    progress = (await client.GetWorkProject(pb.GetWorkProjectRequest(name=NAME))).progress
    assert (progress.items, progress.accepted, progress.answers) == (2, 2, 4)
    accepted = pb.ListWorkItemsRequest(parent=NAME, state=work_pb.WorkItem.STATE_ACCEPTED)
    assert len((await client.ListWorkItems(accepted)).items) == 2
    assert not (await client.ListWorkItems(pb.ListWorkItemsRequest(parent=NAME, state="STATE_OPEN"))).items


async def test_a_returned_answer_is_disputed_before_another_reviewer(client: Client) -> None:
    await project(client, items=1, reviewers=["users/rev", "users/ref"], review="WORK_REVIEW_ALL")
    ann, rev, ref = (person(client, name) for name in ("ann", "rev", "ref"))
    work = await take(ann)
    assert work is not None
    await submit(ann, work, "positive")
    await rev.TakeReview(pb.TakeReviewRequest(name=NAME))
    assert not (await ref.TakeReview(pb.TakeReviewRequest(name=NAME))).HasField("item")
    back = pb.ReturnedAnswer(assignment=work.name, reason="It is irony.")
    await rev.DecideReview(pb.DecideReviewRequest(name=work.item.name, returns=[back]))
    pending = (await ann.ListPendingWork(pb.ListPendingWorkRequest(parent="orgs/acme"))).assignments
    assert [(one.reason, one.state) for one in pending] == [("It is irony.", work_pb.WorkAssignment.STATE_RETURNED)]
    again = await take(ann)
    assert again is not None
    assert (again.name, again.reason) == (work.name, "It is irony.")
    await ann.DisputeReturn(pb.DisputeReturnRequest(name=work.name, reason="It is not."))
    assert await state(client, work) == "STATE_DISPUTED"
    assert not (await rev.TakeReview(pb.TakeReviewRequest(name=NAME))).HasField("item")
    assert (await ref.TakeReview(pb.TakeReviewRequest(name=NAME))).item.name == work.item.name
    decided = await ref.DecideReview(pb.DecideReviewRequest(name=work.item.name))
    assert dict(decided.answer) == {"sentiment": "positive"}


async def test_an_item_left_behind_returns_to_the_queue(client: Client) -> None:
    await project(client, items=1, lease_seconds=3)
    ann, bob = person(client, "ann"), person(client, "bob")
    left = await take(ann)
    assert left is not None
    assert await take(bob) is None
    await asyncio.sleep(3.1)
    found = await take(bob)
    assert found is not None
    assert found.item.name == left.item.name
    # Too late: the item is in other hands, and what was drafted is still there.
    error = await refusal(submit(ann, left, "positive"))
    assert (error.reason, error.metadata["state"]) == ("STATE_CONFLICT", "EXPIRED")
    await submit(bob, found, "neutral")
    assert await state(client, left) == "STATE_ACCEPTED"


async def test_who_gives_back_gets_the_next_one(client: Client) -> None:
    await project(client, items=2)
    ann, bob = person(client, "ann"), person(client, "bob")
    first = await take(ann)
    assert first is not None
    await ann.ReleaseWork(pb.ReleaseWorkRequest(name=first.name, reason="no text"))
    second = await take(ann)
    assert second is not None
    assert second.item.name != first.item.name
    assert (await take(bob)).item.name == first.item.name  # type: ignore[union-attr]


async def test_many_people_at_once_never_share_an_item(client: Client) -> None:
    await project(client, items=30, overlap=2)
    people = [person(client, f"p{n}") for n in range(6)]

    async def work(somebody: Client) -> list[str]:
        done: list[str] = []
        while (assignment := await take(somebody)) is not None:
            await submit(somebody, assignment, MOODS[len(done) % 2])
            done.append(assignment.item.name)
        return done

    done = await asyncio.gather(*(work(somebody) for somebody in people))
    assert all(len(set(names)) == len(names) for names in done)
    everything = [name for names in done for name in names]
    assert len(everything) == 60
    assert all(everything.count(name) == 2 for name in set(everything))


async def test_the_same_request_gives_the_same_item(client: Client) -> None:
    await project(client, items=5)
    ann = person(client, "ann")
    request = pb.TakeWorkRequest(name=NAME, another=True, request_id="r1")
    names = {(await ann.TakeWork(request)).assignment.name for _ in range(3)}
    assert len(names) == 1
    for _ in range(6):
        await take(ann, another=True)
    pending = pb.ListPendingWorkRequest(parent="orgs/acme")
    assert len((await ann.ListPendingWork(pending)).assignments) == 5
    await client.DeleteWorkProject(pb.DeleteWorkProjectRequest(name=NAME))
    assert not (await ann.ListPendingWork(pending)).assignments


async def test_who_is_wrong_where_the_answer_is_known_gets_no_more(client: Client) -> None:
    await project(client, items=100, gold=10, gold_share=0.5, gold_min_accuracy=0.6)
    ann, bob = person(client, "ann"), person(client, "bob")
    for _ in range(60):
        try:
            work = await ann.TakeWork(pb.TakeWorkRequest(name=NAME))
        except grpc.RpcError:
            break
        await submit(ann, work.assignment, "negative")
    error = await refusal(ann.TakeWork(pb.TakeWorkRequest(name=NAME)))
    assert error.reason == "STATE_CONFLICT"
    assert "0 of 5" in error.message
    for _ in range(20):
        await submit(bob, (await bob.TakeWork(pb.TakeWorkRequest(name=NAME))).assignment, "neutral")
    assert await take(bob) is not None


async def test_others_see_nothing(client: Client) -> None:
    await project(client, annotators=["users/ann"], reviewers=["users/rev"])
    eve, ann, rev = (person(client, name) for name in ("eve", "ann", "rev"))
    stranger = client.other(org="globex", subject="users/ann")
    for somebody in (eve, stranger):
        for call in (
            somebody.GetWorkProject(pb.GetWorkProjectRequest(name=NAME)),
            somebody.TakeWork(pb.TakeWorkRequest(name=NAME)),
            somebody.TakeReview(pb.TakeReviewRequest(name=NAME)),
        ):
            assert (await refusal(call)).reason in ("NOT_FOUND", "ROLE_MISSING")
    for somebody, seen in ((eve, 0), (ann, 1), (rev, 1)):
        listed = await somebody.ListWorkProjects(pb.ListWorkProjectsRequest(parent="orgs/acme"))
        assert len(listed.work_projects) == seen
    assert (await refusal(rev.TakeWork(pb.TakeWorkRequest(name=NAME)))).reason == "ROLE_MISSING"
    assert (await refusal(ann.TakeReview(pb.TakeReviewRequest(name=NAME)))).reason == "ROLE_MISSING"


@pytest.mark.parametrize(
    ("payload", "gold", "field"),
    [
        ({"text": "a\0b"}, None, "items[0].payload"),
        ({"text": float("nan")}, None, "items[0].payload"),
        ({"text": "x" * (300 << 10)}, None, "items[0].payload"),
        ({}, {"sentiment": "angry"}, "items[0].gold.sentiment"),
        ({}, {"mood": "good"}, "items[0].gold.mood"),
    ],
)
async def test_bad_items_are_named_and_none_is_added(client: Client, payload: Any, gold: Any, field: str) -> None:
    await project(client, items=1)
    message = struct_pb2.Struct()
    message.update(payload)
    bad = work_pb.WorkItem(payload=message, gold=struct(gold) if gold else None)
    request = pb.AddWorkItemsRequest(parent=NAME, items=[bad, work_pb.WorkItem()])
    error = await refusal(client.AddWorkItems(request))
    assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", field)
    assert (await client.GetWorkProject(pb.GetWorkProjectRequest(name=NAME))).progress.items == 1


async def test_forms_projects_and_templates(client: Client) -> None:
    built_in = await client.DescribeWorkTemplates(pb.DescribeWorkTemplatesRequest())
    assert "preference" in [one.name for one in built_in.work_templates]
    form = work_pb.WorkForm(fields=[work_pb.WorkField(name="stars", kind="WORK_FIELD_KIND_RATING", min=1, max=5)])
    request = pb.CreateWorkTemplateRequest(
        parent="orgs/acme", work_template_id="stars", work_template=work_pb.WorkTemplate(form=form)
    )
    template = await client.CreateWorkTemplate(request)
    assert template.form == form
    made = await client.CreateWorkProject(
        pb.CreateWorkProjectRequest(
            parent="orgs/acme", work_project_id="rate", template=template.name, work_project=work_pb.WorkProject()
        )
    )
    await client.DeleteWorkTemplate(pb.DeleteWorkTemplateRequest(name=template.name))
    assert (await client.GetWorkProject(pb.GetWorkProjectRequest(name=made.name))).form == form
    changed = await client.UpdateWorkProject(
        pb.UpdateWorkProjectRequest(work_project=work_pb.WorkProject(name=made.name, etag=made.etag, paused=True))
    )
    assert changed.paused
    error = await refusal(client.TakeWork(pb.TakeWorkRequest(name=made.name)))
    assert (error.reason, error.metadata["state"]) == ("STATE_CONFLICT", "paused")
    both = pb.CreateWorkProjectRequest(
        parent="orgs/acme", template="sentiment", work_project=work_pb.WorkProject(form=form)
    )
    assert (await refusal(client.CreateWorkProject(both))).metadata["field"] == "template"
    none = pb.CreateWorkProjectRequest(parent="orgs/acme", work_project=work_pb.WorkProject())
    assert (await refusal(client.CreateWorkProject(none))).metadata["field"] == "work_project.form.fields"
    await client.DeleteWorkProject(pb.DeleteWorkProjectRequest(name=made.name))
    assert (await refusal(client.TakeWork(pb.TakeWorkRequest(name=made.name)))).reason == "NOT_FOUND"


async def test_work_on_a_version_is_as_confidential_as_the_version(client: Client) -> None:
    await client.dataset("docs", secrecy="SECRECY_SECRET")
    version = await publish(client, [{"text": "a"}])
    source = pb.CreateWorkProjectRequest(
        parent="orgs/acme", template="sentiment", work_project=work_pb.WorkProject(source=version.name)
    )
    made = await client.CreateWorkProject(source)
    assert made.secrecy == Secrecy.SECRET
    assert [(parent.name, parent.relation) for parent in made.lineage.parents] == [(version.name, "annotates")]
    source.work_project.source = f"{version.name[:-1]}7"
    assert (await refusal(client.CreateWorkProject(source))).reason == "NOT_FOUND"


@pytest.mark.slow
async def test_a_report_says_who_agrees(worker: Client) -> None:
    await project(worker, items=40, overlap=3, review="WORK_REVIEW_NONE", price_micros=50_000, currency="EUR")
    assert (await refusal(worker.GetWorkReport(pb.GetWorkReportRequest(name=NAME)))).reason == "NOT_FOUND"
    for name in ("ann", "bob", "guesser"):
        somebody, number = person(worker, name), 0
        while (work := await take(somebody)) is not None:
            true = MOODS[int(work.item.name.rsplit("/", 1)[1]) % 3]
            await submit(somebody, work, MOODS[number % 3] if name == "guesser" else true)
            number += 1 + number % 2
    # Two at once: neither finds a report of the other.
    tasks = [await worker.ReportWork(pb.ReportWorkRequest(name=NAME, request_id=uuid7())) for _ in range(2)]
    for task in await asyncio.gather(*(worker.finish(task) for task in tasks)):
        assert task.state == task_pb2.Task.STATE_SUCCEEDED, task
    report = await worker.GetWorkReport(pb.GetWorkReportRequest(name=NAME))
    [field] = report.fields
    alpha = next(one for one in field.measures if one.measure == "krippendorff_alpha")
    assert alpha.low < alpha.value < alpha.high < 0.9
    by_name = {one.worker: one for one in report.workers}
    assert by_name["users/ann"].cost_micros == 40 * 50_000
    assert by_name["users/ann"].reliability[0].accuracy > 0.9 > by_name["users/guesser"].reliability[0].accuracy
