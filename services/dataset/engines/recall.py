"""What share of near-duplicates the bands find, measured on the texts themselves: copies are planted and looked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from services.dataset.engines.minhash import Banding, band_hashes, jaccard
from services.dataset.engines.shingles import SHINGLE_WORDS, shingle_hashes, shingle_sets

# Texts that a copy is planted of, at most; of fewer words a changed one means too much.
PLANTED = 200
_LEAST_WORDS = 50
_SEED = 0
_CURVE = np.linspace(0, 1, 21)


def near_duplicate_report(texts: Sequence[str], threshold: float, banding: Banding) -> dict[str, Any]:
    """Fields of `argosy.dataset.v1.NearDuplicateReport`.

    Args:
        texts: Some that stayed.
        threshold: Jaccard similarity.
        banding: That they were looked for with.
    """
    planted, found = _plant(texts, threshold, banding)
    curve = [{"similarity": float(at), "probability": banding.recall(float(at))} for at in _CURVE]
    return {
        "threshold": threshold,
        "bands": banding.bands,
        "rows_per_band": banding.rows,
        "expected_recall": banding.recall(threshold),
        "curve": curve,
        "planted_pairs": planted,
        "found_pairs": found,
    }


def _plant(texts: Sequence[str], threshold: float, banding: Banding) -> tuple[int, int]:
    """Pairs of a text and a changed copy that are alike enough, and those of them that share a band."""
    rng = np.random.default_rng(_SEED)
    originals = [text for text in texts if len(text.split()) >= _LEAST_WORDS]
    vocabulary = sorted({word for text in originals for word in text.split()})
    # A share c of changed words leaves (1 - c)^5 of the shingles, which is s = that / (2 - that) by Jaccard.
    most = 1 - (2 * threshold / (1 + threshold)) ** (1 / SHINGLE_WORDS)
    copies = [_changed(text, rng.uniform(0, most), vocabulary, rng) for text in originals]
    pairs = zip(shingle_sets(originals), shingle_sets(copies), strict=True)
    alike = np.array([jaccard(one, other) >= threshold for one, other in pairs], bool)
    same = band_hashes(*shingle_hashes(originals), banding) == band_hashes(*shingle_hashes(copies), banding)
    return int(alike.sum()), int((alike & same.any(axis=0)).sum())


def _changed(text: str, share: float, vocabulary: Sequence[str], rng: np.random.Generator) -> str:
    words = text.split()
    for at in np.flatnonzero(rng.random(len(words)) < share):
        words[at] = vocabulary[int(rng.integers(len(vocabulary)))]
    return " ".join(words)
