"""The ledger of what was used."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class UsageEntry:
    """One request to a model. Times in seconds, tokens as the model counted them."""

    id: str
    org: str
    subject: str
    api_key: str
    model: str
    model_version: str
    prompt_tokens: int
    completion_tokens: int
    time: datetime
    request_id: str
    outcome: str
    duration_seconds: float
    time_to_first_token_seconds: float


@dataclass(frozen=True, kw_only=True)
class UsageSum:
    """Sums over the entries with one key."""

    key: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    errors: int
