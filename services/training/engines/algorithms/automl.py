"""AutoML: a table and the name of a column in, the mean of the models that foretell it best out.

Columns are looked at (`columns`), the task is read off the answers (`task`), models of several families are tried on
parts of the rows (`trials`), those that do best together are mixed (`ensemble`), and the mix is fitted to all rows and
asked the held-out ones. Everything that was found stands in `report.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from libs.compute.context import EngineError
from services.training.domain.searches import TrialState
from services.training.engines.algorithms.declared import declare
from services.training.engines.algorithms.features import feature_names, read_columns
from services.training.engines.algorithms.interface import Json, Predictor, Table, Trained, Watch
from services.training.engines.algorithms.tabular import TabularPredictor
from services.training.engines.automl import columns as table_columns
from services.training.engines.automl.budget import Budget
from services.training.engines.automl.columns import MOST_COLUMNS, Column, Columns, Kind
from services.training.engines.automl.ensemble import Member, mix
from services.training.engines.automl.figures import heldout_figures, importances
from services.training.engines.automl.folds import folds_of, sample_rows
from services.training.engines.automl.report import Report
from services.training.engines.automl.tables import Tables
from services.training.engines.automl.task import Answers, Task, deduce
from services.training.engines.automl.texts import TextPredictor, Texts
from services.training.engines.automl.trials import SEARCH_SHARE, Trials, Tried

Array = np.ndarray

# Fitting a model to all rows, writing its file, and comparing the two takes so many times what fitting it took in a
# trial, for as many rows.
_WRITING = 2.0
# Of a fit, which is measured in thousandths.
_LEAST_SECONDS = 1e-3


def train(train: Table, heldout: Table | None, parameters: Json, seed: int, watch: Watch) -> Trained:
    """Finds a model. See `Algorithm.train`.

    Raises:
        EngineError: PREFLIGHT_FAILED, nothing can be learned from these columns; CONTENT_INVALID, every model failed.
    """
    target: str = parameters["target_column"]
    watch.progress(0.0, "looking at the columns")
    columns, values = _read(train, target, parameters)
    before = watch.kept() or {"trials": [], "seconds": 0.0}
    budget = Budget(parameters["trials"], parameters["seconds"], before["seconds"])
    profiled = table_columns.profile(columns)
    used = table_columns.require_some(profiled, target)
    answers = deduce(target, values, used, parameters["task"])
    held = None if heldout is None else _held(heldout, used, target, answers)
    report = Report(target, profiled, answers, _warnings(used, columns, answers, target, seed))
    for line in report.lines():
        watch.log(line)
    whole = _problem(used, columns, answers)
    rows = sample_rows(answers.values, len(answers.classes), whole.search_rows, seed)
    problem = whole if len(rows) == len(values) else whole.sample(rows)
    tried, told = _search(problem, parameters["folds"], budget, seed, watch, report)
    watch.progress(SEARCH_SHARE, "mixing the best models")
    families = {family.name: family for family in problem.families}
    by_number = {each.number: each for each in tried}
    takes = {number: _last_seconds(by_number[number]) for number in told}
    weights = mix(told, problem.answers.values, takes, budget.left())
    last = _last(whole, problem, budget.left() / sum(takes[number] for number in weights), seed, watch, report)
    report.rows = len(last.answers.values)
    members = [
        Member(number, families[by_number[number].family], by_number[number].parameters, weight)
        for number, weight in weights.items()
    ]
    files = last.export(members, seed)
    results: dict[str, float] = {}
    if held is not None:
        watch.progress(0.92, "asking the held-out rows")
        best = min(members, key=lambda member: by_number[member.trial].score)
        single = last.questions(last.export([replace(best, weight=1.0)], seed), held)
        questions, right = last.questions(files, held), answers.read(target, held[target])
        results, report.figures = heldout_figures(questions.answers(), single.answers(), right, answers, seed)
        watch.progress(0.96, "asking with columns shuffled")
        report.importances = importances(questions, right, answers, seed, budget.left)
        missing = len(questions.names) - len(report.importances)
        if missing:
            watch.log(f"the seconds were over: how much {missing:,} columns matter was not measured")
    if answers.classes:
        files["labels.json"] = json.dumps(answers.classes, ensure_ascii=False).encode()
    files["report.json"] = json.dumps(report.to_json(tried, weights), ensure_ascii=False).encode()
    return Trained(files, results, sum(by_number[number].size // 4 for number in weights))


def load(files: dict[str, bytes]) -> Predictor:
    """The model behind its files: of texts where it has terms, else of a table."""
    return TextPredictor(files) if "model.safetensors" in files else TabularPredictor(files)


def _read(train: Table, target: str, parameters: Json) -> tuple[Columns, list[Any]]:
    names = parameters["feature_columns"] or feature_names(train, target)
    if len(names) > MOST_COLUMNS:
        message = f"There are {len(names):,} columns beside {target!r}, and at most {MOST_COLUMNS:,} are looked at: "
        message += "name those that matter in feature_columns."
        raise EngineError("PREFLIGHT_FAILED", message, check="columns", detail=message)
    columns = read_columns(train, [*names, target])
    values = columns.pop(target)
    return columns, values


def _held(heldout: Table, used: Sequence[Column], target: str, answers: Answers) -> Columns:
    """The held-out rows, before hours are spent on a model that could not be asked them."""
    names = [*(column.name for column in used), target]
    missing = next((name for name in names if name not in heldout.columns), None)
    if missing is not None:
        message = f"The validation version has no column {missing!r}."
        raise EngineError("CONTENT_INVALID", message, detail=missing)
    held = read_columns(heldout, names)
    for column in used:
        text = next((value for value in held[column.name] if isinstance(value, str) and value), None)
        if column.kind is Kind.NUMBER and not column.written and text is not None:
            message = (
                f"Column {column.name!r} of the validation version has the text {text[:50]!r}; it learns from numbers."
            )
            raise EngineError("CONTENT_INVALID", message, detail=column.name)
    answers.read(target, held[target])
    return held


def _warnings(used: Sequence[Column], columns: Columns, answers: Answers, target: str, seed: int) -> list[str]:
    found = table_columns.tells_alone(used, columns, answers.values, len(answers.classes), seed)
    return [
        f"column {name!r} tells {target!r} nearly all by itself: is it known before the answer is? If not, leave it "
        "out of feature_columns, or the model will be of no use"
        for name in found
    ]


def _problem(used: Sequence[Column], columns: Columns, answers: Answers) -> Tables | Texts:
    if answers.task is not Task.TEXT_CLASSIFICATION:
        return Tables(used, columns, answers)
    texts = [column.name for column in used if column.kind in (Kind.TEXT, Kind.CATEGORY)]
    if not texts:
        have = ", ".join(f"{column.name!r} ({column.kind})" for column in used)
        message = f"text-classification needs a column of texts, and there are {have}: classification takes them."
        raise EngineError("PREFLIGHT_FAILED", message, check="columns", detail=message)
    return Texts(texts, columns, answers)


def _last_seconds(tried: Tried) -> float:
    """What it takes to fit a model to all rows that it was tried on, and to write it."""
    return _WRITING * max(_LEAST_SECONDS, tried.seconds + tried.encoding_seconds)


def _last(
    whole: Tables | Texts, problem: Tables | Texts, times: float, seed: int, watch: Watch, report: Report
) -> Tables | Texts:
    """The rows that the mean learns from: all that there is room and time for.

    Args:
        problem: the rows that models were tried on.
        times: how often there is time to fit the mean to as many rows as these.
    """
    have, tried = len(whole.answers.values), len(problem.answers.values)
    count = max(tried, min(whole.most_rows, int(times * tried)))
    if count >= have:
        return whole
    said = f"the models learned from {count:,} of {have:,} rows: there was no room or time for more"
    watch.log(said)
    report.warnings.append(said)
    if count == tried:
        return problem
    return whole.sample(sample_rows(whole.answers.values, len(whole.answers.classes), count, seed))


def _search(
    problem: Tables | Texts, folds: int, budget: Budget, seed: int, watch: Watch, report: Report
) -> tuple[list[Tried], dict[int, Array]]:
    """All trials, and what the finished ones foretold of each row, the best one first."""
    classes = len(problem.answers.classes)
    parts = folds_of(problem.columns, problem.answers.values, classes, folds, seed)
    report.parts = int(parts.max()) + 1
    before = watch.kept() or {"trials": []}

    def keep(tried: list[Tried]) -> None:
        trials = [each.to_json() for each in tried]
        state = {"trials": trials, "seconds": budget.spent, "report": report.to_json(tried, {})}
        watch.keep(state, [each.answers for each in tried if each.answers])

    trials = Trials(problem, parts, budget, seed, watch, [Tried.from_json(each) for each in before["trials"]], keep)
    tried = trials.run()
    finished = sorted((each for each in tried if each.state is TrialState.FINISHED), key=lambda each: each.score)
    if not finished:
        message = f"No model could be fitted. Model {tried[-1].number}: {tried[-1].message}"
        raise EngineError("CONTENT_INVALID", message, detail="no model")
    shape = (len(parts), classes) if classes else (len(parts),)
    told = {each.number: np.frombuffer(watch.get(each.answers), np.float32).reshape(shape) for each in finished}
    return tried, told


ALGORITHM = declare("automl", train, load)
