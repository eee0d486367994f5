"""Every RPC keeps the promises of docs/architecture/rpc.md. A new RPC is tested by being in the descriptors."""

from __future__ import annotations

import re

import pytest
from argosy.common.v1 import error_reason_pb2, options_pb2
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor, MethodDescriptor

from libs.common.auth.policy import read_policy
from tests.contract.protos import comments, enums, http, methods, policy, reads, request_fields, rules

ALL = pytest.mark.parametrize("method", methods(), ids=lambda method: method.full_name.removeprefix("argosy."))
SERVICES = {"identity", "dataset", "training", "deploy", "eval", "app", "aiops", "gateway"}
# gRPC codes that a comment can document, with what the policy and the request already say documented by every RPC.
_CODES = re.compile(
    r"\b(INVALID_ARGUMENT|NOT_FOUND|ALREADY_EXISTS|FAILED_PRECONDITION|ABORTED|OUT_OF_RANGE|UNAUTHENTICATED|"
    r"PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAVAILABLE|UNIMPLEMENTED|DEADLINE_EXCEEDED)\b"
)
_NUMBERS = {
    FieldDescriptor.TYPE_INT32,
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_UINT32,
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_DOUBLE,
    FieldDescriptor.TYPE_FLOAT,
}
_TEXTS = {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES}
# What the service sets and a caller's value of is not read (AIP-203, output only); bounded by the size of the message.
_OUTPUT_ONLY = {"uid", "creator", "name"}
_OUTPUT_ONLY_OF = {
    "Algorithm": {"latest_version"},
    "AlgorithmVersion": {
        "code",
        "code_digest",
        "column_parameters",
        "entry_file",
        "files",
        "framework",
        "limits",
        "reads",
        "resources",
        "task",
    },
    "ApiKey": {"prefix", "secret"},
    "Application": {"published_version"},
    "DataProduct": {"byte_count", "columns", "row_count", "type"},
    "Dataset": {"latest_version"},
    "DatasetStream": {
        "last_rejection",
        "pending_bytes",
        "pending_rows",
        "rejected_count",
        "roll_count",
        "row_count",
        "source_error",
        "source_position",
        "task",
    },
    "Detector": {"byte_count", "card", "manifest_digest", "task"},
    "Evaluation": {"state", "task", "model_digest", "report", "verdict"},
    "HyperparameterSearch": {
        "algorithm_version",
        "best_trial",
        "best_value",
        "dataset_digest",
        "dataset_version",
        "importances",
        "model_version",
        "task",
        "training_run",
        "trial_count",
    },
    "ModelProject": {"live_version"},
    "ModelVersion": {
        "architecture",
        "base_model_version",
        "context_length",
        "files",
        "gates",
        "licence",
        "manifest_digest",
        "origin",
        "parameter_count",
        "signature",
        "stage",
        "state",
        "task",
        "training_run",
    },
    "Prompt": {"latest_version"},
    "Quota": {"use"},
    "Secret": {"payload_version"},
    "WorkItem": {"agreement", "answer", "answer_count", "state"},
    "WorkProject": {"progress"},
    "WorkOrder": {
        "decide_reason",
        "decider",
        "deployment",
        "evidence_evaluation",
        "evidence_figures",
        "evidence_rule",
        "failure",
        "model_digest",
        "state",
        "task",
    },
}


@ALL
def test_has_a_policy(method: MethodDescriptor) -> None:
    read = read_policy(method)
    assert read.max_deadline > 0
    # A replica is no service of the tree, but has a certificate and follows revocations.
    assert read.peers <= SERVICES | {"replica"}


@ALL
def test_has_an_http_path_where_people_may_call(method: MethodDescriptor) -> None:
    given = policy(method)
    if given.access == options_pb2.ACCESS_PEER or given.peers:
        assert not http(method), "what only services may call has no door"
        return
    verb, _, path = http(method).partition(" ")
    assert path.startswith("/v1/"), "no HTTP path"
    assert (verb == "GET") == reads(method) or (verb, method.name) in _READS_BY_POST, f"{verb} for a read or a change"


# Reads whose request does not fit a query string.
# A key in a URL would end up in logs.
_READS_BY_POST: set[tuple[str, str]] = {
    ("POST", "Chat"),
    ("POST", "ReadTargets"),
    ("POST", "RenderPrompt"),
    ("POST", "SearchRuns"),
    ("POST", "ExchangeKey"),
}


@ALL
def test_is_documented(method: MethodDescriptor) -> None:
    comment = comments().get(method.full_name, "").strip()
    assert comment, "no comment"
    assert comment.endswith("."), "the comment is no sentence"


@ALL
def test_documents_its_errors(method: MethodDescriptor) -> None:
    """What every RPC may answer is documented once; what follows from the verb stands beside the RPC."""
    comment = comments().get(method.full_name, "")
    wanted = {"Get": "NOT_FOUND", "Create": "ALREADY_EXISTS", "Update": "ABORTED", "Undelete": "FAILED_PRECONDITION"}
    for verb, code in wanted.items():
        if re.match(rf"{verb}[A-Z]", method.name) and _names_a_resource(method, verb):
            assert code in _CODES.findall(comment), f"{verb} says nothing about {code}"


def _names_a_resource(method: MethodDescriptor, verb: str) -> bool:
    if verb == "Create":
        return f"{_snake(method.name.removeprefix('Create'))}_id" in method.input_type.fields_by_name
    return "name" in method.input_type.fields_by_name or verb == "Update"


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


@ALL
def test_every_input_is_bounded(method: MethodDescriptor) -> None:
    """Strings and bytes have a length or a pattern, numbers a range, lists and maps a size, enums known values."""
    faults = [
        f"{field.containing_type.name}.{field.name}"  # pyrefly: ignore[missing-attribute]
        for field in request_fields(method.input_type, _is_output_only)
        if not _bounded(field)
    ]
    assert not faults, f"unbounded: {', '.join(sorted(set(faults)))}"


def _is_output_only(field: FieldDescriptor) -> bool:
    message = field.containing_type
    # Only resources have output-only fields, and `uid` is what tells a resource.
    if "uid" not in message.fields_by_name:  # pyrefly: ignore[missing-attribute]
        return False
    return field.name in _OUTPUT_ONLY or field.name in _OUTPUT_ONLY_OF.get(message.name, ())  # pyrefly: ignore[missing-attribute]


def _bounded(field: FieldDescriptor) -> bool:
    given = rules(field)
    if field.is_repeated:
        kind = "map" if field.message_type is not None and field.message_type.GetOptions().map_entry else "repeated"
        return given is not None and given.HasField(kind)
    if field.type in _TEXTS or field.type in _NUMBERS:
        return given is not None and given.WhichOneof("type") is not None
    if field.type == FieldDescriptor.TYPE_ENUM:
        return given is not None and given.HasField("enum")
    return True


@ALL
def test_lists_have_pages(method: MethodDescriptor) -> None:
    if not method.name.startswith("List"):
        return
    request, response = method.input_type.fields_by_name, method.output_type.fields_by_name
    assert "page_size" in request
    if method.name == "ListEvents":
        assert "after_cursor" in request
        assert "next_cursor" in response
        return
    assert "page_token" in request
    assert "next_page_token" in response
    repeated = [field for field in method.output_type.fields if field.is_repeated]
    assert len(repeated) == 1
    assert repeated[0].number == 1


@ALL
def test_changes_carry_a_request_id(method: MethodDescriptor) -> None:
    if reads(method):
        assert "request_id" not in method.input_type.fields_by_name, "a read needs no request id"
        return
    # These do not change a resource: they issue a token, or carry ids of their own in each entry.
    if method.name in ("ExchangeKey", "IssueToken", "RecordUsage"):
        return
    field = method.input_type.fields_by_name.get("request_id")
    assert field is not None, "no request_id"
    given = rules(field)
    assert given is not None
    assert given.string.max_len == 64
    assert given.string.pattern


@ALL
def test_updates_say_what_and_of_which_version(method: MethodDescriptor) -> None:
    if not method.name.startswith("Update"):
        return
    assert "update_mask" in method.input_type.fields_by_name
    resource = next(field.message_type for field in method.input_type.fields if field.number == 1)
    assert "etag" in resource.fields_by_name  # pyrefly: ignore[missing-attribute]


@ALL
def test_names_have_a_form(method: MethodDescriptor) -> None:
    for name in ("name", "parent", "org"):
        field = method.input_type.fields_by_name.get(name)
        if field is None:
            continue
        given = rules(field)
        assert given is not None, f"{name} has no rules"
        assert given.string.pattern.startswith("^orgs/"), f"{name} has no pattern"
        assert given.string.pattern.endswith("$")


@pytest.mark.parametrize("enum", list(enums()), ids=lambda enum: enum.full_name)
def test_enums_begin_with_unspecified(enum: EnumDescriptor) -> None:
    first = enum.values[0]
    assert first.number == 0
    assert first.name == f"{_snake(enum.name).upper()}_UNSPECIFIED"


@pytest.mark.parametrize(
    "value", [v for v in error_reason_pb2.ErrorReason.DESCRIPTOR.values if v.number], ids=lambda value: value.name
)
def test_every_reason_is_documented_with_its_metadata(value) -> None:  # type: ignore[no-untyped-def]
    comment = comments()[f"argosy.common.v1.{value.name}"]
    assert re.search(r"metadata: \{.*\}", comment)
    assert re.fullmatch(r"[A-Z][A-Z0-9_]+[A-Z0-9]", value.name)
    assert len(value.name.removeprefix("ERROR_REASON_")) <= 63
    assert value.GetOptions().Extensions[options_pb2.error].code
