"""Checks of leakage: how much of a test version a training version has too."""

from __future__ import annotations

import hashlib
import json

from services.dataset.domain.versions import DatasetVersion

# Goes up when the same rows may get another answer than before, so that nobody is given the old one.
# 2: traditional and simplified Chinese are the same. 3: a number and the text of it are the same.
_RULES = 3


def check_name(
    test: DatasetVersion, train: DatasetVersion, text_column: str, train_text_column: str, threshold: float
) -> str:
    """The name of the check of these rows, in the organization of the test version."""
    asked = [_RULES, test.manifest_digest, train.manifest_digest, text_column, train_text_column, threshold]
    return f"orgs/{test.org}/leakageChecks/lc-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:40]}"
