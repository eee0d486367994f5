"""Which language a text is in, by py3langid: a model of byte n-grams that comes with the package."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from services.dataset.engines.rules import out_of_bounds

# A thousand characters are certain enough, and the time does not grow with the text.
_CHARACTERS = 1000


class Languages:
    """Texts in these languages stay.

    Args:
        keep: codes of ISO 639-1, or 639-3 where there is none.
        min_probability: of the most probable language; None: any.
    """

    def __init__(self, keep: Iterable[str], min_probability: float | None) -> None:
        self._keep = frozenset(code.lower() for code in keep)
        self._least = min_probability

    def fault(self, text: str) -> str | None:
        """Why the text goes."""
        language, probability = language_of(text)
        if language not in self._keep:
            return f"is {language} ({probability:.2f}), not {', '.join(sorted(self._keep))}"
        return out_of_bounds(probability, f"probability of {language}", self._least, None)


def language_of(text: str) -> tuple[str, float]:
    """The most probable language, and its probability."""
    language, probability = _identifier().classify(text[:_CHARACTERS].encode(errors="replace"))
    return str(language), float(probability)


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    # Takes a second; recipes without this operator do not pay for it.
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
