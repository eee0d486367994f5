"""Findings: figures that a task counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from libs.common.domain import Resource


@dataclass(kw_only=True)
class Findings(Resource):
    """The newest figures about a version, a project of human work, or a pair of versions.

    A profile has the name of its version, a report about work that of its project; the name of a leakage check says
    which manifests it compared, so that the same question finds it again.

    Attributes:
        figures: fields of `argosy.dataset.v1.VersionProfile`, `WorkReport` or `LeakageCheck`.
        task: that counted them.
    """

    figures: dict[str, Any] = field(default_factory=dict[str, Any])
    task: str = ""
