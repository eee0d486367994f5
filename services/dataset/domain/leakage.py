"""Checks of leakage: how much of a test version a training version has too."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from libs.common.domain import Resource
from services.dataset.domain.versions import DatasetVersion


@dataclass(kw_only=True)
class LeakageCheck(Resource):
    """What a check found about two manifests; its name says which, so that the same question finds it again.

    Attributes:
        figures: fields of `argosy.dataset.v1.LeakageCheck` that do not depend on what the versions are called.
        task: that compared them.
    """

    figures: dict[str, Any] = field(default_factory=dict[str, Any])
    task: str = ""


def check_name(
    test: DatasetVersion, train: DatasetVersion, text_column: str, train_text_column: str, threshold: float
) -> str:
    """The name of the check of these rows, in the organization of the test version."""
    asked = [test.manifest_digest, train.manifest_digest, text_column, train_text_column, threshold]
    return f"orgs/{test.org}/leakageChecks/lc-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:40]}"
