"""The leaderboard of AutoML as a picture: of any state, and of whatever columns are called."""

from __future__ import annotations

from xml.etree import ElementTree

from argosy.training.v1 import automl_pb2, search_pb2

from services.training.handlers.leaderboard_picture import picture

_FINISHED = search_pb2.SearchTrial.STATE_FINISHED
_PRUNED = search_pb2.SearchTrial.STATE_PRUNED


def board(**fields: object) -> automl_pb2.Leaderboard:
    entries = [
        automl_pb2.LeaderboardEntry(rank=1, number=3, family="boosting", state=_FINISHED, score=0.2, low=0.1, high=0.3),
        automl_pb2.LeaderboardEntry(number=4, family="linear", state=_PRUNED),
    ]
    given = {"target_column": "<b>", "task": "regression", "metric": "rmse", "entries": entries}
    return automl_pb2.Leaderboard(**{**given, **fields})  # type: ignore[arg-type]


def test_models_that_finished_have_a_line_each() -> None:
    svg = picture(board())
    ElementTree.fromstring(svg)
    assert svg.count("<circle") == 1
    assert "1 of 2 models finished" in svg
    assert "&lt;b&gt;" in svg
    assert "small is good" in svg


def test_figures_and_importances_come_with_the_end() -> None:
    figure = automl_pb2.LeaderboardFigure(name="rmse", value=0.2, low=0.1, high=0.3)
    svg = picture(board(figures=[figure], importances={"a & b": 0.5, "useless": -0.1}))
    ElementTree.fromstring(svg)
    assert "together rmse 0.2 (0.1 to 0.3)" in svg
    assert svg.index("a &amp; b") < svg.index("useless")
    assert svg.count("class='bar'") == 2
    ElementTree.fromstring(picture(board(importances={"useless": -0.1})))


def test_nothing_yet_is_a_picture_too() -> None:
    ElementTree.fromstring(picture(automl_pb2.Leaderboard()))
