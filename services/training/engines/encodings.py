"""What earlier runs of the organization have encoded: found again by all that it depends on, and copied."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from libs.common.domain import DomainError
from libs.compute.context import EngineContext
from services.training.domain.spec import Method, Phase, TrainingSpec
from services.training.engines.chat_template import ChatTemplate
from services.training.engines.methods.method import Reading
from services.training.engines.phase_rows import most_rows

Json = dict[str, Any]

# Changes with everything that makes other arrays of the same rows.
_FORMAT = 2


class Encodings:
    """Encoded rows and tokenizers, by key.

    Args:
        ctx: its `spec` may have `encodings`: grants of what earlier runs have made, by key.

    Attributes:
        told: of each one that this run used: `key`, `dataset_digest` and, if it is new, `manifest_digest`.
    """

    def __init__(self, ctx: EngineContext) -> None:
        self._ctx = ctx
        self._given: dict[str, dict[str, str]] = ctx.spec.get("encodings", {})
        self.told: list[dict[str, str]] = []

    def find(self, key: str, dataset_digest: str) -> tuple[list[Json], dict[str, int]] | None:
        """The files of an entry as blobs of this task, `{path, sha256, size}` each, and what was told about its rows;
        None if it has to be made."""
        given = self._given.get(key)
        if given is None:
            return None
        try:
            theirs, ours = self._ctx.blobs_read(given["grant"]), self._ctx.blobs_write
            manifest = theirs.load_manifest_sync(given["manifest_digest"])
            found = [
                {**entry, "sha256": ours.put_sync(theirs.get_sync(entry["sha256"])).sha256}
                for entry in manifest["blobs"]
            ]
        except DomainError as error:
            if error.reason not in ("NOT_FOUND", "GRANT_DENIED"):
                raise
            return None
        self.told.append({"key": key, "dataset_digest": dataset_digest})
        # What was kept before there were notes has none.
        return found, manifest.get("notes", {})

    def keep(self, key: str, dataset_digest: str, blobs: list[Json], notes: dict[str, int]) -> None:
        """Tells of an entry that this run has made.

        Args:
            blobs: its files, `{path, sha256, size}` each.
            notes: sums of what was told about its rows.
        """
        entry = {"kind": "training.encoding", "blobs": blobs, "notes": notes}
        digest = self._ctx.blobs_write.commit_sync(entry)
        self.told.append({"key": key, "dataset_digest": dataset_digest, "manifest_digest": digest})


def tokenizer_key(dataset_digest: str, spec: TrainingSpec) -> str:
    """What a new tokenizer depends on."""
    phase = spec.phases[0]
    return _key(
        what="tokenizer",
        data=dataset_digest,
        columns=phase.columns if phase.messages_column else phase.columns[:1],
        conversations=bool(phase.messages_column),
        size=spec.architecture.vocabulary_size,
    )


def rows_key(
    dataset_digest: str, row_count: int, reading: Reading, seed: int, number: int, heldout: bool, teacher: str
) -> str:
    """What the arrays of a phase depend on: the rows, the tokenizer, the template and which rows are read.

    Args:
        number: of the phase.
        teacher: digest of the version whose answers are copied; empty: none.
    """
    phase, special = reading.phase, reading.text.special
    wanted = most_rows(phase, heldout)
    return _key(
        what="rows",
        data=dataset_digest,
        tokenizer=hashlib.sha256(reading.text.tokenizer.to_str().encode()).hexdigest(),
        special=[list(special.begin), special.end],
        template=_template(reading.template),
        phase=_written(phase),
        length=reading.length,
        teacher=teacher,
        order=[seed, number, heldout],
        # Sequences of pre-training may be many of a row.
        wanted=wanted if phase.method is Method.PRETRAIN else min(wanted, row_count),
    )


def _template(template: ChatTemplate | None) -> list[Any]:
    return [] if template is None else [template.source, template.tokens]


def _written(phase: Phase) -> Json:
    """The fields of a phase that its arrays depend on."""
    texts = {} if phase.messages_column else {"prompt": phase.prompt_template, "answers": phase.answers}
    rollouts = (
        {"room": phase.rollouts.max_new_tokens, "right": phase.has_answers} if phase.method is Method.GRPO else {}
    )
    copied = asdict(phase.distillation) if phase.copies_answers else {}
    return {
        # Answers of a reward model and of DPO are encoded in the same way.
        "method": Method.DPO if phase.compares else phase.method,
        "columns": phase.columns,
        "conversations": bool(phase.messages_column),
        **texts,
        **rollouts,
        "copied": copied,
    }


def _key(**parts: Any) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, parts], sort_keys=True, ensure_ascii=True).encode()).hexdigest()
