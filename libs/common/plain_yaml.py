"""YAML of callers: plain values and nothing else."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import yaml

from libs.common.errors import invalid_field


def load(text: str, field: str) -> object:
    """Plain values.

    Args:
        text: of a bounded length.
        field: that it came in, for errors.

    Raises:
        ArgosyError: INVALID_FIELD that names line and column.
    """
    with _told(field):
        return _Loader(text).get_single_data()


def compose(text: str, field: str) -> yaml.Node | None:
    """The same as a tree that knows where everything stands; None: there is nothing."""
    with _told(field):
        return _Loader(text).get_single_node()


@contextmanager
def _told(field: str) -> Generator[None]:
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise invalid_field(field, f"is no YAML{place}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise invalid_field(field, "is no YAML that can be read") from None


class _Loader(yaml.SafeLoader):
    """Plain values only; no aliases, by which a few lines could mean billions."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event: yaml.Event = self.peek_event()
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=event.start_mark)
        return super().compose_node(parent, index)
