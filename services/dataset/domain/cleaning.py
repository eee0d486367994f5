"""Which rules clean a version. How they work is in `services.dataset.engines.rules`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from libs.common.domain import DomainError


@dataclass(frozen=True)
class CleaningRules:
    """The fields of `argosy.dataset.v1.CleaningRules`."""

    strip_html: bool = False
    normalise: bool = False
    min_chars: int = 0
    max_chars: int = 0
    min_words: int = 0
    min_alpha_ratio: float = 0.0
    max_repeated_line_ratio: float = 0.0
    max_symbol_ratio: float = 0.0
    exact_duplicates: bool = False
    near_duplicate_threshold: float = 0.0
    banned_words: tuple[str, ...] = ()
    drop_personal_data: bool = False

    def check(self) -> None:
        """Raises INVALID_FIELD for rules that cannot be meant."""
        if self == CleaningRules():
            raise DomainError("INVALID_FIELD", "rules: no rule is switched on", field="rules")
        if self.max_chars and self.max_chars < self.min_chars:
            raise DomainError("INVALID_FIELD", "rules.max_chars: is less than min_chars", field="rules.max_chars")

    def to_json(self) -> dict[str, Any]:
        """For the task's input and the engine."""
        return {**dataclasses.asdict(self), "banned_words": list(self.banned_words)}


# For text of any kind, so looser than Gopher's (arXiv 2112.11446, appendix A1.1), which are for whole web pages:
# documentation, questions and messages are shorter than 50 words. Banned words and personal data are for those who ask.
DEFAULT_RULES = CleaningRules(
    strip_html=True,
    normalise=True,
    min_chars=20,
    max_chars=100_000,
    min_words=3,
    min_alpha_ratio=0.5,
    max_repeated_line_ratio=0.3,
    max_symbol_ratio=0.1,
    exact_duplicates=True,
    near_duplicate_threshold=0.8,
)
