"""The process in which a sample of rows becomes lengths: a request (JSON) from standard input, an answer to standard
output. Tokenizer and template are a stranger's, so its memory, processor time and files are limited; the wall clock is
its parent's (`clients/samples.py`).
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from libs.common.blobs import BlobStore
from libs.common.domain import DomainError
from libs.compute import confine
from libs.compute.context import EngineError
from services.training.domain.conversations import parse_conversation, parse_preference
from services.training.domain.lengths import histogram
from services.training.domain.row_faults import RowFault, row_fault
from services.training.domain.spec import PLACEHOLDER, Method, Phase, TrainingSpec
from services.training.engines.chat_template import ChatTemplate, TemplateError, own_template, template_of
from services.training.engines.data import Columns, Source
from services.training.engines.order import ANSWER_ROWS, row_order
from services.training.engines.patterns import check_patterns

Json = dict[str, Any]

# Arrow reserves far more address space than it uses.
_MEMORY_BYTES = 8 * 1024**3
_OPEN_FILES = 256
# Places of the version that rows are taken from.
_WINDOWS = 8
_MOST_FAULTS = 20
# A byte-level BPE of a few thousand tokens: characters of English prose a token. Measured 3.5 on docstrings.
_CHARACTERS_A_TOKEN = 3.5


def look(request: Json) -> Json:
    """Lengths and faults of a sample.

    Args:
        request: `spec` (`TrainingSpec.to_json`), `versions` (`dataset_version` and optionally `validation_version`) and
            optionally `base`, each of them `{grant, manifest_digest}`, `rows` and `seconds`: how much is looked at, at
            most.

    Returns:
        `rows` that were looked at of `row_count`, `seconds`, `lengths` (`Lengths`) of the phases, `faults`
        (`RowFault`), those that a run ends at first.

    Raises:
        EngineError: CONTENT_INVALID, a run would end by it too: tokenizer, template or a pattern cannot be used.
    """
    began, spec = time.monotonic(), TrainingSpec.from_json(request["spec"])
    check_patterns(spec)
    measure = Measure(request.get("base"))
    looks = [_Look(spec, version, _source(given), measure) for version, given in sorted(request["versions"].items())]
    for each in looks:
        each.take(request["rows"], began + request["seconds"])
    first = looks[0]
    found = [
        histogram(
            name,
            spec.architecture.sequence_length,
            first.lengths[name],
            estimated=measure.estimates,
            packed=phase.method is Method.PRETRAIN,
        )
        for name, phase in zip(spec.phase_names, spec.phases, strict=True)
        if first.lengths[name]
    ]
    faults = [fault for stops in (True, False) for each in looks for fault in each.faults[stops]]
    return {
        "rows": first.source.rows_read,
        "row_count": first.source.row_count,
        "seconds": time.monotonic() - began,
        "lengths": [asdict(each) for each in found],
        "faults": [asdict(fault) for fault in faults[:_MOST_FAULTS]],
    }


class _Look:
    """Rows of one of the versions.

    Attributes:
        lengths: tokens of the rows that each phase can learn.
        faults: the first rows at fault, by whether a run ends at them.
    """

    def __init__(self, spec: TrainingSpec, version: str, source: Source, measure: Measure) -> None:
        self.source = source
        self.lengths: dict[str, list[int]] = {name: [] for name in spec.phase_names}
        self.faults: dict[bool, list[RowFault]] = {True: [], False: []}
        self._version = version
        self._heldout = version != "dataset_version"
        # Lengths are of what is learned; held out, only a conversation stops a run.
        self._phases = [
            (number, name, phase)
            for number, (name, phase) in enumerate(zip(spec.phase_names, spec.phases, strict=True))
            if phase.messages_column or not self._heldout
        ]
        self._seed = spec.seed
        self._measure = measure
        self._read: dict[int, np.ndarray] = {}

    def take(self, rows: int, until: float) -> None:
        """Looks at so many rows, or until a moment of the monotonic clock."""
        names = sorted({column for _, _, phase in self._phases for column in phase.columns})
        if not names:
            return
        for first, columns in _sample(self.source, names, rows):
            for place in range(len(columns[names[0]])):
                row = {name: columns[name][place] for name in names}
                for number, name, phase in self._phases:
                    fault = self._look(first + place, number, name, phase, row)
                    if fault is not None and len(self.faults[fault.blocking]) < _MOST_FAULTS:
                        self.faults[fault.blocking].append(fault)
            if time.monotonic() > until:
                return

    def _look(self, at: int, number: int, name: str, phase: Phase, row: dict[str, str]) -> RowFault | None:
        fault = row_fault(self._version, at + 1, name, phase, row)
        if fault is not None:
            return fault
        try:
            self.lengths[name].append(self._measure.length(phase, row))
        except TemplateError as error:
            # A run renders what it reads, and no other row.
            if self._reads(at, number, phase):
                problem = f"the chat template does not take it: {error}"
                return RowFault(self._version, at + 1, name, phase.messages_column, True, problem)
        return None

    def _reads(self, at: int, number: int, phase: Phase) -> bool:
        """Whether the phase reads a row, counted from 0."""
        if number not in self._read:
            wanted = ANSWER_ROWS if self._heldout else phase.steps * phase.batch_size
            self._read[number] = row_order(self.source.row_count, self._seed, number, self._heldout)[:wanted]
        return at in self._read[number]


class Measure:
    """Counts the tokens of a row, as far as they are known before a run.

    Args:
        base: the model to start from; None: none, and the tokenizer is still to be learned.
    """

    def __init__(self, base: dict[str, str] | None) -> None:
        self.estimates = base is None
        self._tokenizer: Tokenizer | None = None
        self._template: ChatTemplate = own_template()
        self._opening = 1
        if base is not None:
            store, digest = BlobStore.from_grant(base["grant"]), base["manifest_digest"]
            files = {entry["path"]: entry["sha256"] for entry in store.load_manifest_sync(digest)["blobs"]}
            if "tokenizer.json" not in files:
                raise EngineError("CONTENT_INVALID", "The base model has no tokenizer.json.", detail="tokenizer.json")
            self._tokenizer = _tokenizer(store.read_sync(files["tokenizer.json"]))
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            mask = self._tokenizer.encode("a").special_tokens_mask
            self._opening = mask.index(0) if 0 in mask else len(mask)
            self._template = template_of(store, digest) or own_template()

    def length(self, phase: Phase, row: dict[str, str]) -> int:
        """Tokens of prompt, answer and end; of a pair, those of the longer one.

        Raises:
            TemplateError: The chat template refuses the conversation.
        """
        texts = tuple(row[column] for column in phase.columns)
        if phase.messages_column and phase.compares:
            pair = parse_preference(texts, phase.columns)
            prompt, *answers = self._template.continued(pair.prompt, (pair.chosen, pair.rejected))
            return self._count(prompt) + max(self._count(answer) for answer in answers)
        if phase.messages_column:
            segments = self._template.segments(parse_conversation(texts[0], phase.messages_column))
            return self._count("".join(text for text, _ in segments))
        if phase.method is Method.PRETRAIN:
            return self._count(texts[0]) + 1
        prompt = self._opening + self._count(phase.prompt_template.replace(PLACEHOLDER, texts[0]))
        return prompt + max((self._count(answer) for answer in texts[1:]), default=0) + 1

    def _count(self, text: str) -> int:
        if self._tokenizer is None:
            return round(len(text) / _CHARACTERS_A_TOKEN)
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _tokenizer(content: bytes) -> Tokenizer:
    try:
        return Tokenizer.from_str(content.decode())
    except Exception as error:  # the tokenizers library raises bare exceptions
        message = f"The base model's tokenizer.json cannot be loaded: {str(error)[:200]}."
        raise EngineError("CONTENT_INVALID", message, detail="tokenizer.json") from error


def _source(given: dict[str, str]) -> Source:
    return Source(BlobStore.from_grant(given["grant"]), given["manifest_digest"])


def _sample(source: Source, names: list[str], rows: int) -> Iterator[tuple[int, Columns]]:
    """Rows from places spread over the version, the first ones among them."""
    source.require(names)
    each = max(1, min(rows, source.row_count) // _WINDOWS)
    step = max(each, source.row_count // _WINDOWS)
    for start in range(0, source.row_count, step):
        yield from source.window(names, start, min(source.row_count, start + each))


def main() -> None:
    """Answers one request."""
    answers = confine.private_output()
    request: Json = json.loads(sys.stdin.buffer.read())
    confine.limit_resources(_MEMORY_BYTES, _OPEN_FILES, 0)
    seconds = 2 * int(request["seconds"]) + 5
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    try:
        found = look(request)
    except EngineError as error:
        found = {"error": error.message, "stops": True}
    except DomainError as error:
        found = {"error": error.message}
    # Parsers of strangers' files raise everything that Python has; whatever it is, the file is at fault.
    except BaseException as fault:
        found = {"error": f"The sample could not be looked at: {str(fault)[:200] or type(fault).__name__}."}
    answers.write(json.dumps(found).encode())
    answers.flush()


if __name__ == "__main__":
    main()
