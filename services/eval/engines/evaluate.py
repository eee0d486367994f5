"""The engine of an evaluation: rows, baselines, answers of an evaluation replica, figures.

It computes the same for the same rows, model and seed, so running it twice after a kill harms nothing: the report and
the verdict become rows once, when the task's result is applied.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson
from tokenizers import Tokenizer

from libs.common.rpc.client import Channels
from libs.compute.context import EngineContext, EngineError, EngineInterrupted
from libs.compute.mesh import MeshAccess
from services.eval.clients.leakage import leakage_of
from services.eval.clients.replicas import Replica, ReplicaLost, leased_replica, tokenizer_file
from services.eval.domain.answers import is_right, masked, masker
from services.eval.domain.evaluations import Leakage, decide
from services.eval.domain.statistics import compare, wilson
from services.eval.engines import baselines
from services.eval.engines.prompts import fit
from services.eval.engines.rows import Question, questions, sample

# Prompts of one call: large enough to keep the batch of the engine full, small enough for smooth progress.
_BATCH = 128
_CALLS = 2
_EXAMPLES = 20
_EXAMPLE_CHARACTERS = 500
# Fewer rows give intervals too wide to decide anything.
_FEWEST_ROWS = 10


@dataclass(frozen=True, slots=True)
class Spec:
    """The evaluation's spec with defaults filled in; see EvaluationSpec in eval.proto."""

    text_column: str
    answer_column: str
    prompt_template: str
    max_rows: int
    max_tokens: int
    answers: list[str]
    masked_words: list[str]
    gate: str
    gate_margin: float
    seed: int

    @classmethod
    def of(cls, given: dict[str, Any]) -> Spec:
        return cls(
            text_column=given.get("text_column") or "text",
            answer_column=given.get("answer_column") or "label",
            prompt_template=given.get("prompt_template") or "{text}",
            max_rows=int(given.get("max_rows") or 0),
            max_tokens=int(given.get("max_tokens") or 16),
            answers=list(given.get("answers") or ()),
            masked_words=list(given.get("masked_words") or ()),
            gate=given.get("gate") or "",
            gate_margin=float(given.get("gate_margin") or 0.0),
            seed=int(given.get("seed") or 0),
        )


@dataclass(frozen=True, slots=True)
class Baselines:
    """What they answer to each question."""

    majority: list[str]
    bag_of_words: list[str] | None


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model answers to each question, with words masked too if any are to be, and how fast."""

    plain: list[str]
    hidden: list[str] | None
    rows_per_second: float


def run(ctx: EngineContext) -> dict[str, Any]:
    """Evaluates; see `services.eval.jobs.evaluate` for what the spec holds and what becomes of the result."""
    spec = Spec.of(ctx.spec["spec"])
    ctx.progress(0.02, "reading rows")
    asked = sample(
        questions(ctx, ctx.spec["dataset"], spec.text_column, spec.answer_column, spec.answers),
        spec.max_rows,
        spec.seed,
    )
    if len(asked) < _FEWEST_ROWS:
        raise EngineError(
            "CONTENT_INVALID",
            f"{ctx.spec['dataset']['name']} has {len(asked)} rows with a text and a wanted answer; at least "
            f"{_FEWEST_ROWS} are needed",
        )
    try:
        return asyncio.run(_evaluate(ctx, spec, asked))
    except ReplicaLost as loss:
        raise EngineInterrupted(str(loss)) from loss


async def _evaluate(ctx: EngineContext, spec: Spec, asked: list[Question]) -> dict[str, Any]:
    model_version = ctx.spec["model_version"]
    async with MeshAccess(**ctx.spec["mesh"]).channels("eval") as channels:
        # The baselines are fitted while the replica starts.
        fitting = asyncio.get_running_loop().run_in_executor(None, _fit_baselines, ctx, spec, asked)
        tokenizer = Tokenizer.from_buffer(await tokenizer_file(channels, model_version))
        ctx.progress(0.05, "starting the evaluation replica, comparing the test rows with the training data")
        # The comparison needs no replica: dataset makes it meanwhile.
        given, leakage = await asyncio.gather(
            _ask(ctx, spec, asked, channels, tokenizer),
            leakage_of(
                channels, ctx.spec["dataset"]["name"], ctx.spec["trained_on"], spec.text_column, ctx.stop_if_cancelled
            ),
        )
        known = await fitting
    return _report(ctx, spec, asked, known, given, leakage)


async def _ask(
    ctx: EngineContext, spec: Spec, asked: list[Question], channels: Channels, tokenizer: Tokenizer
) -> Answers:
    async with leased_replica(channels, ctx.spec["model_version"], ctx.spec["evaluation"]) as replica:
        asker = _Asker(ctx, replica, tokenizer, spec)
        plain = await asker.ask([q.text for q in asked], 0.1, 0.6 if spec.masked_words else 0.95)
        pattern = masker(spec.masked_words)
        hidden = None
        if pattern is not None:
            hidden = await asker.ask([masked(q.text, pattern) for q in asked], 0.6, 0.95)
    return Answers(plain, hidden, asker.rows_per_second)


def _fit_baselines(ctx: EngineContext, spec: Spec, asked: list[Question]) -> Baselines:
    learned: list[Question] = []
    if ctx.spec.get("baseline"):
        learned = questions(ctx, ctx.spec["baseline"], spec.text_column, spec.answer_column, spec.answers)
    train_texts, train_answers = [q.text for q in learned], [q.answer for q in learned]
    most = baselines.majority([q.answer for q in asked])
    bag = baselines.bag_of_words(train_texts, train_answers, [q.text for q in asked], spec.seed) if learned else None
    return Baselines([most] * len(asked), bag)


class _Asker:
    """Asks the replica in batches, a few at a time, and reports how far it is."""

    def __init__(self, ctx: EngineContext, replica: Replica, tokenizer: Tokenizer, spec: Spec) -> None:
        self._ctx = ctx
        self._replica = replica
        self._tokenizer = tokenizer
        self._spec = spec
        self._limit = replica.context_length - self._room()
        self.rows = 0
        self.seconds = 0.0

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds if self.seconds else 0.0

    def _room(self) -> int:
        """Tokens kept free for the answer: as in training, that of the longest wanted one, else `max_tokens`."""
        if not self._spec.answers:
            return self._spec.max_tokens
        return 1 + max(len(e.ids) for e in self._tokenizer.encode_batch(self._spec.answers, add_special_tokens=False))

    async def ask(self, texts: Sequence[str], start: float, end: float) -> list[str]:
        """Answers to texts, in their order; progress goes from `start` to `end`."""
        prompts = fit(self._tokenizer, texts, self._spec.prompt_template, self._limit)
        answers: list[str] = [""] * len(prompts)
        begun, done = time.monotonic(), 0
        gate = asyncio.Semaphore(_CALLS)

        async def batch(first: int) -> None:
            nonlocal done
            async with gate:
                self._ctx.stop_if_cancelled()
                part = prompts[first : first + _BATCH]
                answers[first : first + len(part)] = await self._replica.generate(part, self._spec.max_tokens)
                done += len(part)
                share = start + (end - start) * done / len(prompts)
                self._ctx.progress(share, f"asked {done} of {len(prompts)} rows", rows=float(self.rows + done))

        try:
            async with asyncio.TaskGroup() as group:
                for first in range(0, len(prompts), _BATCH):
                    group.create_task(batch(first))
        except ExceptionGroup as failures:
            # The first one ended the others; what becomes of the task hangs on its type.
            raise failures.exceptions[0] from None
        self.rows += len(prompts)
        self.seconds += time.monotonic() - begun
        return answers


def _report(
    ctx: EngineContext,
    spec: Spec,
    asked: list[Question],
    known: Baselines,
    given: Answers,
    leakage: list[Leakage],
) -> dict[str, Any]:
    """The fields of EvaluationReport as JSON, and where the samples lie."""
    right = _marks(asked, given.plain)
    score = wilson(sum(right), len(asked))
    others = {"majority": _marks(asked, known.majority)}
    if known.bag_of_words is not None:
        others["bag_of_words"] = _marks(asked, known.bag_of_words)
    report: dict[str, Any] = {
        "rows": len(asked),
        "score": asdict(score),
        "baselines": {name: asdict(wilson(sum(marks), len(marks))) for name, marks in others.items()},
        "comparisons": [
            {"baseline": name, **asdict(compare(right, marks, spec.seed))} for name, marks in others.items()
        ],
        "classes": _classes(asked, given.plain, right),
        "mistakes": [
            _sample(q, actual, False, _EXAMPLE_CHARACTERS)
            for q, actual, ok in zip(asked, given.plain, right, strict=True)
            if not ok
        ][:_EXAMPLES],
        "leakage": [asdict(one) for one in leakage],
        "rows_per_second": given.rows_per_second,
    }
    if given.hidden is not None:
        marks = _marks(asked, given.hidden)
        report["masked_score"] = asdict(wilson(sum(marks), len(marks)))
    if spec.gate:
        verdict = decide(spec.gate, score, wilson(sum(others["majority"]), len(asked)), spec.gate_margin, leakage)
        report["verdict"] = asdict(verdict)
    blob = ctx.blobs_write.put_sync(_lines(asked, given.plain, right))
    report["samples_digest"] = blob.sha256
    ctx.progress(1.0, "done")
    return {"report": report, "samples": {"sha256": blob.sha256, "size": blob.size}}


def _marks(asked: list[Question], answers: Sequence[str]) -> list[bool]:
    return [is_right(q.answer, actual) for q, actual in zip(asked, answers, strict=True)]


def _sample(question: Question, actual: str, ok: bool, most: int) -> dict[str, Any]:
    return {
        "row_id": question.row_id,
        "input": question.text[:most],
        "expected": question.answer,
        "actual": actual[:most],
        "correct": ok,
    }


def _lines(asked: list[Question], answers: list[str], right: list[bool]) -> bytes:
    """Every sample in order, a JSON object a line."""
    rows = zip(asked, answers, right, strict=True)
    return b"".join(orjson.dumps(_sample(q, a, ok, 8192)) + b"\n" for q, a, ok in rows)


def _classes(asked: list[Question], answers: list[str], right: list[bool]) -> list[dict[str, Any]]:
    totals = Counter(q.answer for q in asked)
    correct = Counter(q.answer for q, ok in zip(asked, right, strict=True) if ok)
    names = {name.casefold(): name for name in totals}
    predicted = Counter(names.get(a.strip().casefold(), "") for a in answers)
    return [
        {"answer": name, "total": totals[name], "correct": correct[name], "predicted": predicted[name]}
        for name in sorted(totals, key=lambda name: (-totals[name], name))
    ]
