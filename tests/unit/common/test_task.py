from __future__ import annotations

from libs.common.tasks.attempt import _task_error
from libs.common.tasks.task import storable


def test_text_is_as_postgresql_takes_it() -> None:
    assert storable("a\x00b\ud800c\udcff") == "a\ufffdb?c?"
    assert storable("\u4f60\u597d \U0001f600") == "\u4f60\u597d \U0001f600"
    assert len(storable("x" * 10_000)) == 2_000


def test_an_error_is_storable_as_a_whole() -> None:
    told = {"reason": "CONTENT_INVALID", "message": "a\ud800", "metadata": {"detail": "b\x00"}, "retryable": False}
    error = _task_error(told)
    assert (error.message, error.metadata) == ("a?", {"detail": "b\ufffd"})
