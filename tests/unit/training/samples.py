"""Small data and small specs for tests of training."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from libs.common.blobs import BlobStore
from libs.compute.context import LocalContext
from services.dataset.engines.access import StoreBlobs
from services.dataset.engines.index import save
from services.dataset.engines.writing import VersionWriter
from services.training.domain.spec import Architecture, Method, Phase, TrainingSpec

TEMPLATE = "{text}\nPackage:"
WORDS = {"zoo": "lion tiger bear wolf", "bank": "loan credit account interest", "ship": "anchor sail harbour keel"}
TINY = Architecture(
    vocabulary_size=400, hidden_size=32, intermediate_size=64, layers=1, heads=2, key_value_heads=2, sequence_length=32
)


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of which every word tells its label."""
    choose = random.Random(seed)
    made = []
    for number in range(count):
        label = sorted(WORDS)[number % len(WORDS)]
        text = " ".join(choose.choices(WORDS[label].split(), k=8)) + f" {number}"
        made.append({"text": text, "label": label})
    return made


def write_version(store: BlobStore, content: list[dict[str, Any]], files: Mapping[str, bytes] | None = None) -> str:
    """Stores a dataset version as the dataset service does; the digest of its manifest.

    Args:
        files: content by `file_name`, where rows have files.
    """
    blobs = StoreBlobs(store)
    writer = VersionWriter(blobs)
    for position, row in enumerate(content):
        media = blobs.write(files[row["file_name"]]) if files else ""
        writer.add(row, "test.jsonl", position, media)
    return save(writer.finish(), blobs).manifest_digest


def phase(method: Method, steps: int, **fields: Any) -> Phase:
    """A phase of twelve rows a step."""
    usual: dict[str, Any] = {"batch_size": 12, "learning_rate": 0.01, "warmup_fraction": 0.1}
    if method is Method.SFT:
        usual |= {"prompt_template": TEMPLATE, "answers": tuple(sorted(WORDS))}
    return Phase(method, steps, **{**usual, **fields})


def tiny_spec(pretrain: int = 10, sft: int = 20, **fields: Any) -> TrainingSpec:
    """Both phases on a model of 20 thousand parameters."""
    phases = (phase(Method.PRETRAIN, pretrain), phase(Method.SFT, sft))
    usual: dict[str, Any] = {"phases": phases, "architecture": TINY, "checkpoint_every": 12, "seed": 7}
    return TrainingSpec(**usual | fields)


def context(store: BlobStore, spec: TrainingSpec, content: list[dict[str, Any]], **options: Any) -> LocalContext:
    """A context of the engine on these rows, with other rows held out."""
    train, heldout = write_version(store, content), write_version(store, rows(30, seed=99))
    given = {
        "spec": spec.to_json(),
        "train": {"grant": "", "manifest_digest": train},
        "validation": {"grant": "", "manifest_digest": heldout},
    }
    return LocalContext(given, blobs_write=store, blobs_read=store, **options)
