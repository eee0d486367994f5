"""Reading requests by rules, in English and Chinese."""

from __future__ import annotations

import pytest

from libs.common.domain import DomainError
from services.dataset.domain.targets import MAX_REQUEST, Target, read_targets

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
