"""Profiles: figures about what is in a version."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from libs.common.domain import Resource


@dataclass(kw_only=True)
class Profile(Resource):
    """The newest profile of a version, under the version's own name.

    Attributes:
        figures: fields of `argosy.dataset.v1.VersionProfile`.
        task: that counted them.
    """

    figures: dict[str, Any] = field(default_factory=dict[str, Any])
    task: str = ""
