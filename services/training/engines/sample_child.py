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
        request: `spec` (`TrainingSpec.to_json`), `version` and optionally `base`, each `{grant, manifest_digest}`,
            `rows` and `seconds`: how much is looked at, at most.

    Returns:
        `rows` that were looked at of `row_count`, `seconds`, `lengths` (`Lengths`) of the phases, `faults`
        (`RowFault`), the first ones; `error` where tokenizer or template cannot be used.
    """
    began, spec = time.monotonic(), TrainingSpec.from_json(request["spec"])
    source = _source(request["version"])
    names = sorted({column for phase in spec.phases for column in phase.columns})
    measure = Measure(request.get("base"))
    lengths: dict[str, list[int]] = {name: [] for name in spec.phase_names}
    faults: list[RowFault] = []
    for first, columns in _sample(source, names, request["rows"]):
        for place in range(len(next(iter(columns.values())))):
            row = {name: columns[name][place] for name in names}
            for name, phase in zip(spec.phase_names, spec.phases, strict=True):
                fault = row_fault(first + place + 1, name, phase, row)
                if fault is None:
                    try:
                        lengths[name].append(measure.length(phase, row))
                    except TemplateError as error:
                        problem = f"the chat template does not take it: {error}"
                        fault = RowFault(first + place + 1, name, phase.messages_column, True, problem)
                if fault is not None and len(faults) < _MOST_FAULTS:
                    faults.append(fault)
        if time.monotonic() - began > request["seconds"]:
            break
    found = [
        histogram(
            name,
            spec.architecture.sequence_length,
            lengths[name],
            estimated=measure.estimates,
            packed=phase.method is Method.PRETRAIN,
        )
        for name, phase in zip(spec.phase_names, spec.phases, strict=True)
        if lengths[name]
    ]
    return {
        "rows": source.rows_read,
        "row_count": source.row_count,
        "seconds": time.monotonic() - began,
        "lengths": [asdict(each) for each in found],
        "faults": [asdict(each) for each in faults],
    }


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
            self._tokenizer = Tokenizer.from_str(store.read_sync(files["tokenizer.json"]).decode())
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
            answers = (pair.chosen, pair.rejected)
            return max(self._count(self._template.render([*pair.prompt, *answer])) for answer in answers)
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
    except (EngineError, DomainError) as error:
        found = {"error": error.message}
    # Parsers of strangers' files raise everything that Python has; whatever it is, the file is at fault.
    except BaseException as fault:
        found = {"error": f"The sample could not be looked at: {str(fault)[:200] or type(fault).__name__}."}
    answers.write(json.dumps(found).encode())
    answers.flush()


if __name__ == "__main__":
    main()
