"""Forms, consensus, and what may happen to items and assignments."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from libs.common.domain import DomainError
from services.dataset.domain.consensus import agreement, consensus, iou, is_right, matches
from services.dataset.domain.forms import BUILT_IN, Field, FieldKind, Form, built_in
from services.dataset.domain.human_work import (
    GOLD_LEAST,
    AssignmentState,
    ItemState,
    Review,
    WorkAssignment,
    WorkItem,
    WorkProject,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MOOD = Field("mood", FieldKind.CHOICE, choices=("good", "bad"))
TAGS = Field("tags", FieldKind.CHOICES, choices=("a", "b", "c"))
STARS = Field("stars", FieldKind.RATING, min=1, max=5)
NOTE = Field("note", FieldKind.TEXT, optional=True)
BOXES = Field("objects", FieldKind.BOXES, choices=("cat", "dog"))
FORM = Form((MOOD, TAGS, STARS, NOTE))
ANSWER = {"mood": "good", "tags": ["a"], "stars": 3}


def box(x: float, y: float, width: float = 10, height: float = 10, label: str = "cat") -> dict[str, Any]:
    return {"label": label, "box": [x, y, width, height]}


def test_built_in_templates_are_sound_and_survive_the_database() -> None:
    for template in BUILT_IN:
        template.form.require_sound("form")
        assert Form.from_json(template.form.to_json()) == built_in(template.name)
    with pytest.raises(DomainError, match="sentiment"):
        built_in("moods")


@pytest.mark.parametrize(
    ("field", "fault"),
    [
        (Field("x", FieldKind.CHOICE), "needs choices"),
        (Field("x", FieldKind.TEXT, choices=("a",)), "has no choices"),
        (Field("x", FieldKind.RATING, min=3, max=3), "min below max"),
        (Field("x", FieldKind.RATING, min=0, max=1000), "more than 256 ratings"),
        (Field("x", FieldKind.PREFERENCE, choices=("a",)), "two choices"),
    ],
)
def test_faulty_questions_are_named(field: Field, fault: str) -> None:
    with pytest.raises(DomainError, match=fault) as caught:
        Form((MOOD, field)).require_sound("form")
    assert caught.value.metadata["field"] == "form.fields[1]"
    with pytest.raises(DomainError, match="twice"):
        Form((MOOD, MOOD)).require_sound("form")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"mood": "angry"}, "mood"),
        ({"mood": ["good"]}, "mood"),
        ({"mood": None}, "mood"),
        ({"tags": "a"}, "tags"),
        ({"tags": ["a", "a"]}, "tags"),
        ({"tags": [["a"]]}, "tags"),
        ({"stars": 6}, "stars"),
        ({"stars": 2.5}, "stars"),
        ({"stars": True}, "stars"),
        ({"stars": "3"}, "stars"),
        ({"note": "  "}, "note"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_a_wrong_answer_names_its_question(change: dict[str, Any], field: str) -> None:
    FORM.require_answered(ANSWER)
    with pytest.raises(DomainError) as caught:
        FORM.require_answered({**ANSWER, **change})
    assert caught.value.metadata["field"] == f"answer.{field}"


@pytest.mark.parametrize(
    "wrong",
    [
        {"label": "cat"},
        {"label": "bird", "box": [0, 0, 1, 1]},
        {"label": "cat", "box": [0, 0, 0, 1]},
        {"label": "cat", "box": [0, 0, 1]},
        {"label": "cat", "box": [0, 0, float("nan"), 1]},
        "cat",
    ],
)
def test_wrong_boxes_are_named(wrong: Any) -> None:
    with pytest.raises(DomainError, match=r"\[1\]"):
        Form((BOXES,)).require_answered({"objects": [box(0, 0), wrong]})


def test_agreement_is_the_mean_over_pairs_and_questions() -> None:
    form = Form((MOOD, TAGS))
    answers = [{"mood": "good", "tags": ["a"]}, {"mood": "good", "tags": ["a", "b"]}, {"mood": "bad", "tags": []}]
    # mood: 1, 0, 0; tags by Jaccard: 1/2, 0, 0
    assert agreement(form, answers) == pytest.approx((1 + 0.5) / 6)
    assert agreement(form, answers[:1]) == 1
    assert agreement(Form((NOTE,)), [{"note": "A  b"}, {"note": "a B"}]) == 1


def test_boxes_agree_by_what_they_cover() -> None:
    assert iou([0, 0, 10, 10], [5, 0, 10, 10]) == pytest.approx(1 / 3)
    assert iou([0, 0, 10, 10], [10, 0, 10, 10]) == 0
    left, right = [box(0, 0), box(50, 50)], [box(51, 50), box(1, 0), box(0, 0, label="dog")]
    assert sorted(matches(left, right)) == [(0, 1), (1, 0)]
    assert agreement(Form((BOXES,)), [{"objects": left}, {"objects": right}]) == pytest.approx(0.8)
    assert agreement(Form((BOXES,)), [{"objects": []}, {"objects": []}]) == 1


def test_what_most_say_is_the_consensus() -> None:
    answers = [
        {"mood": "good", "tags": ["a", "b"], "stars": 3, "note": "Fine"},
        {"mood": "bad", "tags": ["a"], "stars": 4},
        {"mood": "bad", "tags": ["c", "a"], "stars": 5, "note": "fine "},
    ]
    assert consensus(FORM, answers) == {"mood": "bad", "tags": ["a"], "stars": 3, "note": "Fine"}
    seen = [{"objects": [box(0, 0), box(80, 80)]}, {"objects": [box(2, 0)]}, {"objects": [box(1, 0), box(40, 0)]}]
    assert consensus(Form((BOXES,)), seen) == {"objects": [box(1, 0)]}


def test_known_answers_count_in_what_they_answer() -> None:
    assert is_right(FORM, ANSWER, {"mood": "good"})
    assert not is_right(FORM, ANSWER, {"mood": "good", "stars": 4})
    assert is_right(Form((BOXES,)), {"objects": [box(0, 0)]}, {"objects": [box(1, 1)]})
    assert not is_right(Form((BOXES,)), {"objects": [box(0, 0), box(50, 0)]}, {"objects": [box(1, 1)]})


def project(**rules: Any) -> WorkProject:
    given: dict[str, Any] = {"overlap": 2, "form": Form((MOOD,)).to_json(), "creator": "users/boss", **rules}
    return WorkProject(uid="p", name="orgs/acme/workProjects/p", create_time=NOW, update_time=NOW, **given)


def item(**state: Any) -> WorkItem:
    given: dict[str, Any] = {"state": ItemState.OPEN, **state}
    return WorkItem(uid="i", name="orgs/acme/workProjects/p/items/1", create_time=NOW, update_time=NOW, **given)


def held(annotator: str, mood: str = "", **state: Any) -> WorkAssignment:
    given: dict[str, Any] = {
        "state": AssignmentState.HELD, "lease_expire_time": NOW + timedelta(hours=1), **state
    }  # fmt: skip
    made = WorkAssignment(
        uid=annotator, name=f"{item().name}/assignments/{annotator[6:]}", create_time=NOW, update_time=NOW,
        annotator=annotator, **given,
    )  # fmt: skip
    if mood:
        made.submit(Form((MOOD,)), item(), {"mood": mood}, 1.0, NOW)
    return made


@pytest.mark.parametrize(
    ("review", "moods", "state", "answer"),
    [
        (Review.NONE, ["good", "bad"], ItemState.ACCEPTED, {"mood": "good"}),
        (Review.DISAGREEMENTS, ["good", "good"], ItemState.ACCEPTED, {"mood": "good"}),
        (Review.DISAGREEMENTS, ["good", "bad"], ItemState.IN_REVIEW, None),
        (Review.ALL, ["good", "good"], ItemState.IN_REVIEW, None),
        (Review.NONE, ["good"], ItemState.OPEN, None),
    ],
)
def test_the_last_answer_settles_an_item(review: Review, moods: list[str], state: str, answer: Any) -> None:
    made = item()
    made.settle(project(review=review), [held(f"users/u{n}", mood) for n, mood in enumerate(moods)])
    assert (made.state, made.answer) == (state, answer)


def test_an_item_left_behind_has_a_place_again() -> None:
    made, ann, bob = item(), held("users/ann"), held("users/bob")
    made.renew([ann, bob])
    assert not made.has_place_for("users/cid", 2)
    assert not ann.is_overdue(NOW + timedelta(minutes=59))
    assert ann.is_overdue(NOW + timedelta(hours=1))
    ann.expire()
    made.renew([ann, bob])
    assert made.has_place_for("users/cid", 2)
    assert made.has_place_for("users/ann", 2)
    assert not made.has_place_for("users/bob", 2)
    with pytest.raises(DomainError, match="left behind"):
        ann.submit(Form((MOOD,)), made, {"mood": "good"}, 1, NOW)


def test_who_gives_an_item_back_does_not_get_it_again() -> None:
    made, ann = item(), held("users/ann")
    ann.release("too dark")
    made.renew([ann])
    assert not made.has_place_for("users/ann", 2)
    assert made.has_place_for("users/bob", 1)


def test_a_return_and_its_dispute() -> None:
    made, ann, bob = item(), held("users/ann", "good"), held("users/bob", "bad")
    made.settle(project(), [ann, bob])
    ann.send_back("look again", NOW)
    made.open_again("users/rev", [ann, bob])
    assert (made.state, made.submitted, made.holders) == (ItemState.OPEN, 1, ["users/ann", "users/bob"])
    assert not made.has_place_for("users/cid", 2)
    ann.dispute("I looked")
    made.dispute([ann, bob])
    assert (made.state, made.excluded_reviewer, made.submitted) == (ItemState.DISPUTED, "users/rev", 2)
    made.settle(project(review=Review.NONE), [ann, bob])
    assert made.state == ItemState.DISPUTED
    with pytest.raises(DomainError, match="only a returned answer"):
        bob.dispute("me too")
    made.accept({"mood": "good"})
    with pytest.raises(DomainError, match="final"):
        made.dispute([ann, bob])
    assert made.state == ItemState.ACCEPTED


def test_only_who_holds_the_review_decides() -> None:
    made = item(state=ItemState.IN_REVIEW, reviewer="users/rev", review_expire_time=NOW + timedelta(hours=1))
    made.require_reviewed_by("users/rev", NOW)
    for subject, now in (("users/bob", NOW), ("users/rev", NOW + timedelta(hours=1))):
        with pytest.raises(DomainError, match="TakeReview"):
            made.require_reviewed_by(subject, now)


def test_roles_in_a_project() -> None:
    made = project(annotators=["users/ann", "users/bob"], reviewers=["users/rev"])
    made.require_annotator("users/ann", 1)
    made.require_reviewer("users/rev", 1)
    made.require_manager("users/boss", 2)
    made.require_manager("users/admin", 4)
    for subject, refuse, reason in (
        ("users/rev", made.require_annotator, "ROLE_MISSING"),
        ("users/ann", made.require_reviewer, "ROLE_MISSING"),
        ("users/rev", made.require_manager, "ROLE_MISSING"),
        ("users/eve", made.require_annotator, "NOT_FOUND"),
        ("users/eve", made.require_reviewer, "NOT_FOUND"),
        ("users/eve", made.require_manager, "NOT_FOUND"),
    ):
        with pytest.raises(DomainError) as caught:
            refuse(subject, 2)
        assert caught.value.reason == reason
    made.paused = True
    with pytest.raises(DomainError, match="paused"):
        made.require_annotator("users/ann", 1)


def test_rules_that_nobody_could_follow() -> None:
    with pytest.raises(DomainError, match="as many annotators"):
        project(overlap=3, annotators=["users/a", "users/b"]).require_sound()
    with pytest.raises(DomainError, match="currency"):
        project(price_micros=1).require_sound()


def test_known_answers_are_mixed_in_by_their_share_and_stop_who_guesses() -> None:
    made = project(gold_share=0.05, gold_min_accuracy=0.7)
    drawn = sum(made.gives_gold("users/ann", taken) for taken in range(4000))
    assert 150 < drawn < 250
    assert [made.gives_gold("users/ann", 7)] * 3 == [made.gives_gold("users/ann", 7) for _ in range(3)]
    assert not any(project().gives_gold("users/ann", taken) for taken in range(100))
    made.require_trusted("users/ann", GOLD_LEAST - 1, 0)
    made.require_trusted("users/ann", 10, 7)
    with pytest.raises(DomainError, match="6 of 10"):
        made.require_trusted("users/ann", 10, 6)
