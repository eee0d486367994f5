"""The search over datasets: which ones may have all words and labels that somebody looks for.

Row-level security keeps PostgreSQL from using an index of words: the words would be compared before the tenant is. So
the words lie beside the datasets in a table without text: 32-bit hashes of short runs of characters, salted with the
organization. They give candidates, a few too many; the query of the datasets themselves decides.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert

from libs.common.db.uow import UnitOfWork
from services.dataset.domain.datasets import Dataset
from services.dataset.store import tables

# Where there are more, what is looked for is frequent, and the newest ones are found quickly without.
_MOST_CANDIDATES = 2_000
# Long enough to be rare.
_RUN = 3


async def remember(uow: UnitOfWork, dataset: Dataset) -> None:
    """Stores what a dataset is found by, in place of what it was found by before."""
    # What `Datasets.list_visible` compares with.
    text = " ".join((dataset.id, dataset.display_name, dataset.description, dataset.source))
    row = {"uid": dataset.uid, "terms": terms_of(dataset.org, text, dataset.labels)}
    change = upsert(tables.dataset_terms).values(row)
    change = change.on_conflict_do_update(index_elements=["uid"], set_={"terms": change.excluded.terms})
    await (await uow.connection()).execute(change)


async def candidates(uow: UnitOfWork, org: str, search: str, labels: Mapping[str, str]) -> list[str] | None:
    """Uids of all datasets that may have every word and label, and of some that do not; None: too many to name."""
    columns = tables.dataset_terms.c
    wanted = sorted(_wanted(org, search, labels))
    query = select(columns.uid).where(columns.terms.contains(wanted)).limit(_MOST_CANDIDATES + 1)
    found = list((await (await uow.connection()).execute(query)).scalars())
    return found if len(found) <= _MOST_CANDIDATES else None


def terms_of(org: str, text: str, labels: Mapping[str, str]) -> list[int]:
    """All that a dataset with this text and these labels is found by."""
    runs = {
        word[start : start + length]
        for word in set(text.lower().split())
        for length in range(1, _RUN + 1)
        for start in range(len(word) - length + 1)
    }
    return sorted({_hash(org, run) for run in runs} | _labels(org, labels))


def _wanted(org: str, search: str, labels: Mapping[str, str]) -> set[int]:
    runs: set[str] = set()
    for word in search.lower().split():
        length = min(_RUN, len(word))
        runs |= {word[start : start + length] for start in range(len(word) - length + 1)}
    return {_hash(org, run) for run in runs} | _labels(org, labels)


def _labels(org: str, labels: Mapping[str, str]) -> set[int]:
    # A run has no white space.
    return {_hash(org, f"{name}\n{value}") for name, value in labels.items()}


def _hash(org: str, term: str) -> int:
    return zlib.crc32(f"{org}/{term}".encode()) - 2**31
