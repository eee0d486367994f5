"""Data of which every row has two answers: a firm one, which is better, and a doubtful one."""

from __future__ import annotations

from typing import Any

from libs.common.blobs import BlobStore
from libs.compute.context import LocalContext
from services.training.domain.spec import TrainingSpec
from tests.unit.training.samples import WORDS, rows, write_version

FIRM, DOUBTFUL = ".", "?"


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts whose label has the doubtful ending twice as often as the firm one."""
    return [
        row
        | {
            "label": row["label"] + (DOUBTFUL, FIRM, DOUBTFUL)[number // 3 % 3],
            "chosen": row["label"] + FIRM,
            "rejected": row["label"] + DOUBTFUL,
        }
        for number, row in enumerate(rows(count, seed))
    ]


def right_and_wrong(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of which the better answer is their label, the worse one another label: only the text tells which."""
    labels = sorted(WORDS)
    return [
        row | {"chosen": row["label"], "rejected": labels[(labels.index(row["label"]) + 1 + number // 3 % 2) % 3]}
        for number, row in enumerate(rows(count, seed))
    ]


def context(
    store: BlobStore,
    spec: TrainingSpec,
    content: list[dict[str, Any]],
    *,
    base: dict[str, Any] | None = None,
    frozen: dict[str, dict[str, Any]] | None = None,
    heldout: list[dict[str, Any]] | None = None,
    **options: Any,
) -> LocalContext:
    """A context of the engine on these rows, with other rows held out.

    Args:
        base: result of the run that made the base model.
        frozen: results of the runs that made teacher or reward model, by version.
        heldout: not given: other pairs.
    """

    def granted(digest: str) -> dict[str, str]:
        return {"grant": "", "manifest_digest": digest}

    given: dict[str, Any] = {
        "spec": spec.to_json(),
        "train": granted(write_version(store, content)),
        "validation": granted(write_version(store, heldout or pairs(48, seed=99))),
        "frozen": {name: granted(result["manifest_digest"]) for name, result in (frozen or {}).items()},
    }
    if base is not None:
        given["base"] = granted(base["manifest_digest"])
    return LocalContext(given, blobs_write=store, blobs_read=store, **options)
