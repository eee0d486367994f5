"""What a run does before its workers start: rows to token arrays, the base looked at, all stored for the workers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedConfig

from libs.compute.context import EngineContext, EngineError
from libs.compute.scratch import scratch_folder
from services.training.domain.spec import Phase, TrainingSpec
from services.training.engines.adapters import check_targets
from services.training.engines.base import (
    ADAPTER_FOLDER,
    BaseText,
    bring,
    check_scorable,
    empty_model,
    read_adapter,
    read_config,
    read_text,
)
from services.training.engines.chat_template import ChatTemplate, own_template, template_of
from services.training.engines.data import Source, nothing_to_learn
from services.training.engines.encodings import Encodings, rows_key, tokenizer_key
from services.training.engines.frozen import Teacher, frozen_version, require_vocabulary, vocabulary_source
from services.training.engines.leakage import leaked_share
from services.training.engines.methods.conversational import LEFT_OUT, SHORTENED, plain_texts
from services.training.engines.methods.method import Reading, RowBatch
from services.training.engines.model import llama_config, sequence_length
from services.training.engines.order import row_order
from services.training.engines.patterns import check_patterns
from services.training.engines.phase_rows import PhaseEncoder, Shards, most_rows
from services.training.engines.prepared import BASE, Preparation, frozen_part
from services.training.engines.scorer import is_scorer
from services.training.engines.tokenizer import train_tokenizer

Json = dict[str, Any]

_TOKENIZER = "tokenizer.json"


def partly_prepared(ctx: EngineContext) -> Shards:
    """The shards that an earlier attempt has encoded; further ones become checkpoints."""

    def keep(known: dict[str, list[str]]) -> None:
        # The sweep leaves what `manifests` names.
        ctx.checkpoint({"shards": known, "manifests": [digest for each in known.values() for digest in each]})

    return Shards(ctx.blobs_write, (ctx.resume or {}).get("shards"), keep)


def prepare(ctx: EngineContext, spec: TrainingSpec, shards: Shards | None = None) -> Json:
    """Reads and encodes the data and stores it for the workers.

    Args:
        shards: what is complete already; None: nothing, and nothing is kept for another attempt.

    Returns:
        The plan: `prepared` (digest of the manifest), `config` of the model, `base` (name of the complete version that
        it starts from; empty: none), `rows`, `encodings` (see `Encodings.told`), and `leaked_share` if held-out rows
        were compared.
    """
    ctx.progress(0.0, "reading the dataset version")
    check_patterns(spec)
    columns = sorted({column for phase in spec.phases for column in phase.columns})
    versions = [_source(ctx, part) for part in ("train", "validation") if ctx.spec.get(part)]
    for version in versions:
        version.require(columns)
    making = Making(ctx, spec, versions, shards or Shards(ctx.blobs_write))
    if len(versions) < 2 or "comparison" not in ctx.spec:
        return making.plan()
    return asyncio.run(_encode_and_compare(ctx, spec, making))


async def _encode_and_compare(ctx: EngineContext, spec: TrainingSpec, making: Making) -> Json:
    """Both at once: dataset compares the versions while their rows are encoded here."""
    plan, share = await asyncio.gather(
        asyncio.to_thread(making.plan), leaked_share(ctx, spec, _source(ctx, "validation"))
    )
    return plan if share is None else {**plan, "leaked_share": share}


def _source(ctx: EngineContext, part: str) -> Source:
    given = ctx.spec[part]
    return Source(ctx.blobs_read(given["grant"]), given["manifest_digest"])


class Making:
    """Makes the plan of a run.

    Args:
        versions: to learn from and, where rows are held out, those.
        shards: what an earlier attempt has encoded.
    """

    def __init__(self, ctx: EngineContext, spec: TrainingSpec, versions: list[Source], shards: Shards) -> None:
        self._ctx = ctx
        self._spec = spec
        self._versions = versions
        self._shards = shards
        self._encodings = Encodings(ctx)
        self._preparation = Preparation(ctx.blobs_write)

    def plan(self) -> Json:
        """See `prepare`."""
        ctx, spec = self._ctx, self._spec
        text, config = self._start_point()
        length = sequence_length(spec, config)
        template, own = self._template(text)
        for number, (name, phase) in enumerate(zip(spec.phase_names, spec.phases, strict=True)):
            ctx.stop_if_cancelled()
            ctx.progress(0.0, f"encoding rows for {name}")
            self._encode_phase(
                number, name, Reading(text, phase, length, template if phase.messages_column else None), config
            )
        ctx.log(f"{sum(version.rows_read for version in self._versions):,} rows were read")
        base = ctx.spec.get("base", {}).get("name", "")
        plan: Json = {
            "prepared": self._preparation.commit(),
            "config": config.to_diff_dict(),
            "base": base,
            "rows": self._versions[0].row_count,
            "encodings": self._encodings.told,
        }
        return plan | ({"chat_template": template.source} if template is not None and own else {})

    def _template(self, text: BaseText) -> tuple[ChatTemplate | None, bool]:
        """What renders conversations, None where there are none; and whether it is the own one and not the base's."""
        if not any(phase.messages_column for phase in self._spec.phases):
            return None, False
        if not self._ctx.spec.get("base"):
            return own_template(), True
        source = _source(self._ctx, "base")
        template = template_of(source.store, source.manifest_digest)
        return (template, False) if template is not None else (own_template(text.opening, text.ending), True)

    def _start_point(self) -> tuple[BaseText, PreTrainedConfig]:
        """Tokenizer and configuration: new ones, or those of the base model, whose files then go along."""
        if self._ctx.spec.get("base"):
            self._ctx.progress(0.0, "looking at the base model")
            with scratch_folder("argosy-base-") as folder:
                return self._base(folder)
        text = self._new_text()
        self._preparation.add_file(_TOKENIZER, text.tokenizer.to_str().encode())
        return text, llama_config(self._spec.architecture, text.tokenizer.get_vocab_size())

    def _new_text(self) -> BaseText:
        """A tokenizer that is learned from the first phase's texts, unless a phase asks a model whose tokens must be
        the same."""
        ctx, spec, store = self._ctx, self._spec, self._ctx.blobs_write
        source = vocabulary_source(ctx, spec)
        if source is not None:
            ctx.log(f"tokenizer: that of {source[0]}")
            return source[1]
        key, dataset_digest = tokenizer_key(self._versions[0].manifest_digest, spec), self._versions[0].manifest_digest
        known = self._encodings.find(key, dataset_digest)
        if known is not None:
            ctx.log("tokenizer: that of an earlier run on the same version")
            (entry,), _ = known
            return BaseText(Tokenizer.from_str(store.read_sync(entry["sha256"]).decode()))
        ctx.progress(0.0, "learning the tokenizer")
        tokenizer = train_tokenizer(_texts(spec.phases[0], self._versions[0]), spec.architecture.vocabulary_size)
        ctx.log(f"tokenizer: {tokenizer.get_vocab_size()} tokens from {self._versions[0].row_count} rows")
        blob = store.put_sync(tokenizer.to_str().encode())
        entry = blob.entry(_TOKENIZER)
        self._encodings.keep(key, dataset_digest, [entry], {})
        return BaseText(tokenizer)

    def _base(self, folder: Path) -> tuple[BaseText, PreTrainedConfig]:
        """Reads and checks the base, and the adapter to go on with if there is one; all before a worker is started."""
        source = _source(self._ctx, "base")
        bring(source.store, source.manifest_digest, folder)
        config = read_config(folder)
        if is_scorer(config):
            message = "The base model is a reward model: it scores answers and cannot learn to write any."
            raise EngineError("CONTENT_INVALID", message, detail="base_model_version")
        if self._spec.scores:
            check_scorable(config)
        text = read_text(folder, config)
        adapter = self._spec.adapter
        if self._ctx.spec.get("base_adapter"):
            earlier = _source(self._ctx, "base_adapter")
            adapter = read_adapter(bring(earlier.store, earlier.manifest_digest, folder / ADAPTER_FOLDER))
        if adapter is not None:
            check_targets(empty_model(config), adapter)
        self._preparation.add_folder(BASE, folder)
        return text, config

    def _encode_phase(self, number: int, name: str, reading: Reading, config: PreTrainedConfig) -> None:
        phase = reading.phase
        if phase.frozen_version and not phase.copies_answers:
            # Put beside the rows: the phase asks it.
            with frozen_version(self._ctx, phase) as frozen:
                require_vocabulary(frozen, reading.text, config)
                self._preparation.add_folder(frozen_part(number), frozen.folder)
        for heldout, source in enumerate(self._versions):
            entries = self._arrays(number, name, reading, source, bool(heldout))
            if entries is not None:
                self._preparation.add_arrays(number, "heldout" if heldout else "train", entries)
            elif heldout:
                self._ctx.log(f"{name}: the validation version has no row for this phase", "WARNING")
            else:
                detail = nothing_to_learn(phase)
                raise EngineError("CONTENT_INVALID", f"Nothing to learn from in phase {name}: {detail}.", detail=detail)

    def _arrays(self, number: int, name: str, reading: Reading, source: Source, heldout: bool) -> list[Json] | None:
        """The files of the arrays of a phase: those that an earlier run has made, or new ones; None: no row fits."""
        ctx, phase, rows, seed = self._ctx, reading.phase, source.row_count, self._spec.seed
        teacher = ctx.spec["frozen"][phase.frozen_version]["manifest_digest"] if phase.copies_answers else ""
        key = rows_key(source.manifest_digest, rows, reading, seed, number, heldout, teacher)
        what = f"{name}/heldout" if heldout else f"{name}/train"
        wanted = most_rows(phase, heldout)
        known = self._encodings.find(key, source.manifest_digest)
        if known is not None:
            ctx.log(f"{what}: the rows are encoded already, by an earlier run")
            entries, notes = known
            self._tell(notes, min(wanted, rows), reading.length, heldout)
            return entries
        with ExitStack() as stack:
            folder = stack.enter_context(scratch_folder("argosy-rows-"))
            if phase.copies_answers:
                frozen = stack.enter_context(frozen_version(ctx, phase))
                reading = replace(reading, teacher=Teacher(ctx, frozen, phase).answers)
            encoder = PhaseEncoder(ctx, what, source, reading, self._shards)
            arrays = encoder.arrays(row_order(rows, seed, number, heldout), wanted, folder)
            self._tell(encoder.notes, min(wanted, rows), reading.length, heldout)
            if arrays is None:
                return None
            entries = self._preparation.store_arrays(arrays)
        self._encodings.keep(key, source.manifest_digest, entries, encoder.notes)
        return entries

    def _tell(self, notes: dict[str, int], rows: int, length: int, heldout: bool) -> None:
        what = "validation version" if heldout else "dataset version"
        if notes.get(SHORTENED):
            self._ctx.log(
                f"{notes[SHORTENED]} of {rows} conversations of the {what} are longer than {length} tokens; their "
                "oldest turns were left out",
                "WARNING",
            )
        if notes.get(LEFT_OUT):
            message = f"{notes[LEFT_OUT]} conversations of the {what} do not fit with an answer that counts"
            self._ctx.log(message, "WARNING")


def _texts(phase: Phase, source: Source) -> Iterator[str]:
    """What the tokenizer learns from."""
    if not phase.messages_column:
        for _, columns in source.batches(phase.columns[:1]):
            yield from filter(None, columns[phase.columns[0]])
        return
    for first, columns in source.batches(phase.columns):
        yield from plain_texts(own_template(), phase, RowBatch(first, columns, ()))
