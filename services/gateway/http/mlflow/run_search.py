"""MLflow's searches for runs as searches of training."""

from __future__ import annotations

from argosy.training.v1 import outside_run_service_pb2 as pb

from services.gateway.domain import mlflow_names as names
from services.gateway.http.mlflow.errors import ParameterError
from services.gateway.http.mlflow.filters import Comparison, parse_filter, parse_order
from services.gateway.http.mlflow.given import Given
from services.gateway.http.mlflow.run_answers import STATES

# The client asks for the runs of all experiments by naming each.
MOST_EXPERIMENTS = 1_000
_MOST_RESULTS = 50_000
# A page of training.
_PAGE = 1000
_FIELDS = {
    "metric": pb.RunCondition.FIELD_METRIC,
    "param": pb.RunCondition.FIELD_PARAMETER,
    "tag": pb.RunCondition.FIELD_TAG,
    "attribute": pb.RunCondition.FIELD_ATTRIBUTE,
}
_OPERATORS = {
    "=": pb.RunCondition.OPERATOR_EQUAL,
    "!=": pb.RunCondition.OPERATOR_NOT_EQUAL,
    "<": pb.RunCondition.OPERATOR_LESS,
    "<=": pb.RunCondition.OPERATOR_AT_MOST,
    ">": pb.RunCondition.OPERATOR_GREATER,
    ">=": pb.RunCondition.OPERATOR_AT_LEAST,
    "LIKE": pb.RunCondition.OPERATOR_LIKE,
    "ILIKE": pb.RunCondition.OPERATOR_ILIKE,
    "IN": pb.RunCondition.OPERATOR_IN,
    "NOT IN": pb.RunCondition.OPERATOR_NOT_IN,
}
_ATTRIBUTES = {
    "run_id": "name",
    "run_name": "display_name",
    "Run name": "display_name",
    "run name": "display_name",
    "status": "state",
    "user_id": "creator",
    "start_time": "start_time",
    "created": "start_time",
    "Created": "start_time",
    "end_time": "end_time",
}
_RUN_NAME = "mlflow.runName"
_LIVES = {
    "ACTIVE_ONLY": pb.SearchRunsRequest.LIFE_ACTIVE,
    "DELETED_ONLY": pb.SearchRunsRequest.LIFE_DELETED,
    "ALL": pb.SearchRunsRequest.LIFE_ALL,
}


def search_request(org: str, given: Given) -> pb.SearchRunsRequest | None:
    """The search that a request asks for; None where it can find nothing. Raises ParameterError."""
    ids = dict.fromkeys(given.texts("experiment_ids", MOST_EXPERIMENTS))
    view = given.text("run_view_type") or "ACTIVE_ONLY"
    if view not in _LIVES:
        raise ParameterError("run_view_type", f"must be one of {', '.join(_LIVES)}")
    size = given.whole("max_results", _PAGE)
    if not 1 <= size <= _MOST_RESULTS:
        raise ParameterError("max_results", f"must be between 1 and {_MOST_RESULTS:,}")
    request = pb.SearchRunsRequest(
        parent=f"orgs/{org}",
        trainings=[name for one in ids if (name := names.training(org, one)) is not None],
        conditions=[_condition(org, one) for one in parse_filter(given.text("filter"))],
        orders=[_order(text[:500]) for text in given.texts("order_by", 5)],
        life=_LIVES[view],
        page_size=min(size, _PAGE),
        page_token=given.text("page_token", most=1024),
    )
    return request if request.trainings else None


def _condition(org: str, one: Comparison) -> pb.RunCondition:
    kind, key, texts = one.kind, one.key, list(one.texts)
    if (kind, key) == ("tag", _RUN_NAME):
        kind, key = "attribute", "run_name"
    operator = _OPERATORS[one.operator]
    if kind == "attribute":
        key = _attribute(key, "filter")
        if key == "name":
            # An id that is none matches nothing, as the empty name does.
            texts = [names.run(org, text) or "" for text in texts]
        if key == "state":
            operator, texts = _states(one)
    numeric = kind == "metric" or (kind == "attribute" and key in ("start_time", "end_time"))
    if numeric != (one.number is not None):
        raise ParameterError("filter", f"{one.key} is {'a number' if numeric else 'a text; put it in quotes'}")
    return pb.RunCondition(field=_FIELDS[kind], key=key, operator=operator, texts=texts, number=one.number or 0.0)


def _states(one: Comparison) -> tuple[pb.RunCondition.Operator, list[str]]:
    """`SCHEDULED` stands for two states of ours, so that one status is a list of states too."""
    operators = {
        "=": pb.RunCondition.OPERATOR_IN,
        "IN": pb.RunCondition.OPERATOR_IN,
        "!=": pb.RunCondition.OPERATOR_NOT_IN,
        "NOT IN": pb.RunCondition.OPERATOR_NOT_IN,
    }
    if one.operator not in operators:
        raise ParameterError("filter", f"status has {', '.join(operators)}")
    unknown = [text for text in one.texts if text.upper() not in STATES]
    if unknown:
        raise ParameterError("filter", f"{unknown[0][:100]!r} is no status; there are {', '.join(STATES)}")
    return operators[one.operator], [state for text in one.texts for state in STATES[text.upper()]]


def _order(text: str) -> pb.RunOrder:
    kind, key, descending = parse_order(text)
    if (kind, key) == ("tag", _RUN_NAME):
        kind, key = "attribute", "run_name"
    key = _attribute(key, "order_by") if kind == "attribute" else key
    return pb.RunOrder(field=_FIELDS[kind], key=key, descending=descending)


def _attribute(key: str, where: str) -> str:
    if key not in _ATTRIBUTES:
        raise ParameterError(where, f"there is no attribute {key[:100]!r}; there are {', '.join(_ATTRIBUTES)}")
    return _ATTRIBUTES[key]
