"""What a replica refuses. The texts are for people and hold nothing of a prompt."""

from __future__ import annotations


class ModelRefused(Exception):
    """The model's files must not or cannot be served."""


class ResourcesMissing(Exception):
    """The machine lacks what the deployment asks for, such as a GPU."""


class RequestRefused(Exception):
    """A request that cannot be answered.

    Args:
        field: path of the field of GenerateRequest that is wrong.
        description: what is wrong with it.
    """

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class EngineGone(Exception):
    """The engine stopped while the request was running."""
