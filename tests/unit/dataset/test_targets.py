"""Reading requests by rules, in English and Chinese."""

from __future__ import annotations

import json

import pytest

from libs.common.domain import DomainError
from services.dataset.domain.target_lists import parse_answer
from services.dataset.domain.targets import MAX_REQUEST, Target, read_target, read_targets

RED_STAR, BLUE_CIRCLE = Target("red", "star"), Target("blue", "circle")
TRIANGLE = Target("", "triangle")


@pytest.mark.parametrize(
    ("request_", "targets", "excluded"),
    [
        ("Mark every red star and all blue circles, but not triangles", [RED_STAR, BLUE_CIRCLE], [TRIANGLE]),
        ("标注图中所有红色的五角星和蓝色圆形", [RED_STAR, BLUE_CIRCLE], []),
        ("除了三角形以外的所有红色图形", [Target("red")], [TRIANGLE]),
        ("框出椭圆和圆环，不要三角形", [Target("", "ellipse"), Target("", "ring")], [TRIANGLE]),
        ("red and blue circles", [Target("red", "circle"), BLUE_CIRCLE], []),
        ("red circles and squares", [Target("red", "circle"), Target("", "square")], []),
        ("not triangles, but crosses", [Target("", "cross")], [TRIANGLE]),
        ("everything except black boxes of red", [Target()], [Target("black"), Target("red")]),
        ("Stars. Red stars, stars", [Target("", "star"), RED_STAR], []),
        ("everything red", [Target("red")], []),
        ("everything but red stars", [Target()], [RED_STAR]),
        ("除了红色以外的所有图形", [Target()], [Target("red")]),
    ],
)
def test_requests_are_read(request_: str, targets: list[Target], excluded: list[Target]) -> None:
    reading = read_targets(request_)
    assert list(reading.targets) == targets
    assert list(reading.excluded) == excluded


def test_unknown_words_are_told() -> None:
    assert read_targets("large red stars near the 桥").unread == ("large", "near", "桥")
    assert read_targets("red stars").unread == ()


@pytest.mark.parametrize("request_", ["", "  ", "find the cars", "not triangles", "a" * (MAX_REQUEST + 1)])
def test_nothing_to_find_is_refused(request_: str) -> None:
    with pytest.raises(DomainError, match="request") as refused:
        read_targets(request_)
    assert refused.value.reason == "INVALID_FIELD"


def test_labels() -> None:
    assert [target.label for target in (RED_STAR, TRIANGLE, Target("red"), Target())] == [
        "red star",
        "triangle",
        "red",
        "object",
    ]


def test_the_answer_of_a_model_is_read_as_it_should_be() -> None:
    given = {"targets": [" red  car", "red car", "person"], "excluded": ["toy"], "unread": []}
    found = parse_answer(json.dumps(given), "reader")
    assert (found.targets, found.excluded, found.unread, found.reader) == (
        ("red car", "person"),
        ("toy",),
        (),
        "reader",
    )


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I see a car",
        "[]",
        "{}",
        '{"targets": [], "excluded": [], "unread": []}',
        '{"targets": "car", "excluded": [], "unread": []}',
        '{"targets": [1], "excluded": [], "unread": []}',
        '{"targets": ["car"], "excluded": [null], "unread": []}',
        '{"targets": ["car"], "excluded": []}',
        json.dumps({"targets": ["x" * 81], "excluded": [], "unread": []}),
        json.dumps({"targets": [str(n) for n in range(51)], "excluded": [], "unread": []}),
        '{"targets": ["car"',
    ],
)
def test_the_answer_of_a_model_that_is_no_list_of_targets_is_refused(answer: str) -> None:
    with pytest.raises(DomainError, match="The answer of reader is no list of targets") as refused:
        parse_answer(answer, "reader")
    assert refused.value.reason == "PREFLIGHT_FAILED"


@pytest.mark.parametrize("prompt", ["red stars and circles", "stars but not red", "a shiny star", "car"])
def test_the_built_in_detector_is_asked_for_one_thing_at_a_time(prompt: str) -> None:
    with pytest.raises(DomainError) as refused:
        read_target(prompt, "targets[0]")
    assert (refused.value.reason, refused.value.metadata["field"]) == ("INVALID_FIELD", "targets[0]")
