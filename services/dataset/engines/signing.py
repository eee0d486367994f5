"""Hashes of the rows of a version, by which those that are alike are found."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from libs.compute.numbers import number_or_text
from libs.compute.versions import VersionReader
from services.dataset.engines.access import granted_version
from services.dataset.engines.minhash import band_hashes, choose_banding, set_hashes
from services.dataset.engines.rules import comparable
from services.dataset.engines.shingles import shingle_hashes

SHARD_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Signed:
    """Hashes of n rows.

    Attributes:
        rows: (n,) int64, their numbers.
        exact: n digests, equal for texts that differ in white space or the script of Chinese alone, and for a number
            and the text of it; empty for a row without text.
        sets: (n,) uint64, `minhash.set_hashes`.
        bands: (bands, n) uint64, `minhash.band_hashes`.
    """

    rows: np.ndarray
    exact: list[bytes]
    sets: np.ndarray
    bands: np.ndarray

    def select(self, chosen: np.ndarray) -> Signed:
        """Those of the rows at some places."""
        exact = [self.exact[at] for at in chosen]
        return Signed(self.rows[chosen], exact, self.sets[chosen], self.bands[:, chosen])


def sign_shard(grant: str, version: str, column: str, threshold: float, start: int, stop: int) -> Signed:
    """`sign` in a Ray worker, which opens the version by its grant."""
    return sign(granted_version(grant, version), column, threshold, start, stop)


def sign(reader: VersionReader, column: str, threshold: float, start: int, stop: int) -> Signed:
    """Hashes of rows [start, stop)."""
    rows = np.arange(start, stop)
    texts = reader.texts(column, rows)
    hashes, offsets = shingle_hashes(texts)
    bands = band_hashes(hashes, offsets, choose_banding(threshold))
    return Signed(
        rows, [_digest(comparable(number_or_text(text))) for text in texts], set_hashes(hashes, offsets), bands
    )


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest() if text else b""
