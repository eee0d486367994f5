"""Searches and trials to messages, and the parts of requests to values of the domain."""

from __future__ import annotations

from argosy.training.v1 import search_pb2 as pb
from google.protobuf.struct_pb2 import Value as ProtoValue

from libs.common.db.mapping import to_proto
from services.training.domain.search_space import Dimension, Kind, Space
from services.training.domain.searches import (
    EarlyStopping,
    HyperparameterSearch,
    Objective,
    SearchMethod,
    SearchPlan,
    Trial,
    trial_spec,
)
from services.training.domain.spec import invalid
from services.training.domain.spec_paths import Value
from services.training.handlers.messages import spec_message

_METHODS = {
    SearchMethod.GRID: pb.HyperparameterSearch.METHOD_GRID,
    SearchMethod.RANDOM: pb.HyperparameterSearch.METHOD_RANDOM,
    SearchMethod.TPE: pb.HyperparameterSearch.METHOD_TPE,
    SearchMethod.GP: pb.HyperparameterSearch.METHOD_GP,
}


def search_message(search: HyperparameterSearch) -> pb.HyperparameterSearch:
    plan = search.plan
    message = pb.HyperparameterSearch(
        display_name=search.display_name,
        training=search.training,
        space=[_dimension_message(dimension) for dimension in plan.space.dimensions],
        method=_METHODS[plan.method],
        early_stopping=_early_stopping_message(plan.early_stopping),
        objective=pb.Objective(
            result=plan.objective.result,
            direction=pb.Objective.DIRECTION_MAXIMIZE if plan.objective.maximize else pb.Objective.DIRECTION_MINIMIZE,
        ),
        budget=pb.SearchBudget(
            max_trials=plan.max_trials,
            max_parallel=plan.max_parallel,
            max_seconds=plan.max_seconds,
            max_tokens=plan.max_tokens,
        ),
        seed=plan.seed,
        task=search.task,
        spec=spec_message(search.spec),
        dataset_version=search.dataset_version,
        dataset_digest=search.dataset_digest,
        trial_count=search.trial_count,
        training_run=search.training_run,
        model_version=search.model_version,
        importances=search.importances,
        algorithm_version=search.algorithm_version,
    )
    message.parameters.update(search.parameters)
    if search.best_trial is not None and search.best_value is not None:
        message.best_trial, message.best_value = f"{search.name}/trials/{search.best_trial}", search.best_value
    return to_proto(search, message)


def trial_message(search: HyperparameterSearch, trial: Trial) -> pb.SearchTrial:
    message = pb.SearchTrial(
        name=f"{search.name}/trials/{trial.number}",
        number=trial.number,
        state=f"STATE_{trial.state}",
        value=trial.value or 0.0,
        rungs=trial.rungs,
        results=trial.results,
        reason=trial.reason,
        message=trial.message,
        tokens=trial.tokens,
        seconds=trial.seconds,
        end_seconds=trial.end_seconds,
    )
    message.parameters.update(trial.parameters)
    # Values that do not fit each other have no specification; `message` says why. Algorithms have none either.
    if trial.reason != "INVALID_FIELD" and not search.algorithm_version:
        message.spec.CopyFrom(spec_message(trial_spec(search.spec, trial.parameters, bool(search.base_model_version))))
    return message


def plan_from(given: pb.HyperparameterSearch) -> SearchPlan:
    """A plan with its defaults written out."""
    space = Space(tuple(_dimension_from(each, f"search.space[{index}]") for index, each in enumerate(given.space)))
    method = next(method for method, number in _METHODS.items() if number == given.method)
    budget, most = given.budget, given.budget.max_trials
    # Nothing is tried twice, so more trials than points would only mislead the progress.
    points = space.grid_size if method is SearchMethod.GRID else space.size
    if points is not None and (most > points or (method is SearchMethod.GRID and not most)):
        most = points
    return SearchPlan(
        space=space,
        method=method,
        objective=Objective(given.objective.result, given.objective.direction == pb.Objective.DIRECTION_MAXIMIZE),
        max_trials=most,
        max_parallel=budget.max_parallel or 1,
        max_seconds=budget.max_seconds,
        max_tokens=budget.max_tokens,
        early_stopping=_early_stopping_from(given.early_stopping),
        seed=given.seed,
    )


def _dimension_message(dimension: Dimension) -> pb.SearchDimension:
    message = pb.SearchDimension(path=dimension.path)
    match dimension.kind:
        case Kind.UNIFORM:
            message.uniform.CopyFrom(_real_range(dimension))
        case Kind.LOG_UNIFORM:
            message.log_uniform.CopyFrom(_real_range(dimension))
        case Kind.INTEGER:
            low, high = int(dimension.low), int(dimension.high)
            message.integer.CopyFrom(pb.IntegerRange(low=low, high=high, step=dimension.step))
        case Kind.CATEGORICAL:
            for choice in dimension.choices:
                message.categorical.values.append(_proto_value(choice))
    return message


def _real_range(dimension: Dimension) -> pb.RealRange:
    return pb.RealRange(low=dimension.low, high=dimension.high, points=dimension.points)


def _dimension_from(given: pb.SearchDimension, field: str) -> Dimension:
    kind = Kind(given.WhichOneof("values") or Kind.CATEGORICAL)
    match kind:
        case Kind.UNIFORM | Kind.LOG_UNIFORM:
            reals = given.uniform if kind is Kind.UNIFORM else given.log_uniform
            return Dimension(given.path, kind, reals.low, reals.high, points=reals.points or 3)
        case Kind.INTEGER:
            whole = given.integer
            return Dimension(given.path, kind, whole.low, whole.high, step=whole.step or 1)
        case Kind.CATEGORICAL:
            choices = tuple(_choice(value, field) for value in given.categorical.values)
            return Dimension(given.path, kind, choices=choices)


def _choice(value: ProtoValue, field: str) -> Value:
    match value.WhichOneof("kind"):
        case "number_value":
            # JSON has one kind of number: 4 comes as 4.0, and is a whole number where a whole number stands.
            return int(value.number_value) if value.number_value.is_integer() else value.number_value
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            raise invalid(f"{field}.categorical.values", "must be numbers, texts or booleans")


def _proto_value(choice: Value) -> ProtoValue:
    if isinstance(choice, bool):
        return ProtoValue(bool_value=choice)
    return ProtoValue(string_value=choice) if isinstance(choice, str) else ProtoValue(number_value=choice)


def _early_stopping_message(stopping: EarlyStopping | None) -> pb.EarlyStopping:
    if stopping is None:
        return pb.EarlyStopping(method=pb.EarlyStopping.METHOD_NONE)
    return pb.EarlyStopping(
        method=pb.EarlyStopping.METHOD_ASHA,
        reduction_factor=stopping.reduction_factor,
        first_rung=stopping.first_rung,
    )


def _early_stopping_from(given: pb.EarlyStopping) -> EarlyStopping | None:
    if given.method != pb.EarlyStopping.METHOD_ASHA:
        return None
    usual = EarlyStopping()
    if given.reduction_factor == 1:
        raise invalid("search.early_stopping.reduction_factor", "must be at least 2")
    return EarlyStopping(given.reduction_factor or usual.reduction_factor, given.first_rung or usual.first_rung)
