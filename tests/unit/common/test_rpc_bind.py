"""Binding: what does not fit stops the start and is named."""

from __future__ import annotations

import types
from typing import Any

import pytest
from argosy.common.v1 import options_pb2, task_service_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, empty_pb2
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from libs.common.rpc.bind import BindingError, match
from libs.common.rpc.method import Method
from tests.unit.common.rpc_server import TASKS, Handlers


def service(name: str, options: MethodOptions) -> ServiceDescriptor:
    """A proto service with one RPC `DoIt` and these options."""
    assert empty_pb2.DESCRIPTOR
    file = descriptor_pb2.FileDescriptorProto(
        name=f"test/{name}.proto", package="test", syntax="proto3", dependency=["google/protobuf/empty.proto"]
    )
    method = file.service.add(name=name).method.add(
        name="DoIt", input_type=".google.protobuf.Empty", output_type=".google.protobuf.Empty"
    )
    method.options.CopyFrom(options)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName(f"test.{name}")


class DoIt:
    async def do_it(self, request: Any, call: Any) -> Any: ...


def test_all_rpcs_find_their_handlers() -> None:
    pairs = match([TASKS], [Handlers()])
    assert [method.handler_name for method, _ in pairs] == [
        "get_task",
        "list_tasks",
        "watch_task",
        "list_task_logs",
        "list_task_metrics",
        "cancel_task",
        "retry_task",
    ]


def test_missing_and_unused_handlers_are_named_together() -> None:
    module = types.ModuleType("handlers")

    async def get_task(request: Any, call: Any) -> Any: ...

    async def paint_task(request: Any, call: Any) -> Any: ...

    async def _private(request: Any, call: Any) -> Any: ...

    async def shared_between_handlers(uow: Any) -> Any: ...

    for function in (get_task, paint_task, _private, shared_between_handlers):
        function.__module__ = "handlers"
        setattr(module, function.__name__, function)
    with pytest.raises(BindingError) as fault:
        match([TASKS], [module])
    text = str(fault.value)
    assert "/argosy.common.v1.TaskService/CancelTask has no handler cancel_task" in text
    assert "handler paint_task serves no RPC" in text
    assert "_private" not in text
    assert "shared_between_handlers" not in text
    assert "GetTask" not in text


def test_a_stream_must_be_a_generator() -> None:
    class Wrong(Handlers):
        async def watch_task(self, request: Any, call: Any) -> Any:  # type: ignore[override]
            return None

    with pytest.raises(BindingError, match="watch_task must be an async generator"):
        match([TASKS], [Wrong()])


def test_two_handlers_of_one_name() -> None:
    with pytest.raises(BindingError, match="two handlers are called get_task"):
        match([TASKS], [Handlers(), Handlers()])


@pytest.mark.parametrize(
    ("name", "policy", "complaint"),
    [
        ("NoPolicy", None, "has no policy"),
        ("NoAccess", options_pb2.Policy(), "does not say who has access"),
        ("NoRole", options_pb2.Policy(access=options_pb2.ACCESS_ROLE), "names none"),
        ("NoPeers", options_pb2.Policy(access=options_pb2.ACCESS_PEER), "names none"),
    ],
)
def test_an_rpc_without_a_usable_policy(name: str, policy: options_pb2.Policy | None, complaint: str) -> None:
    options = MethodOptions()
    if policy is not None:
        options.Extensions[options_pb2.policy].CopyFrom(policy)  # pyrefly: ignore[bad-index]
    with pytest.raises(BindingError, match=f"/test.{name}/DoIt .*{complaint}"):
        match([service(name, options)], [DoIt()])


def test_names_of_a_request() -> None:
    from argosy.identity.v1 import identity_service_pb2

    methods = identity_service_pb2.DESCRIPTOR.services_by_name["IdentityService"].methods_by_name
    update = identity_service_pb2.UpdateUserRequest(user={"name": "orgs/a/users/b"})
    assert Method.of(methods["UpdateUser"]).names(update) == [("user.name", "orgs/a/users/b")]
    create = identity_service_pb2.CreateUserRequest(parent="orgs/a", user={"name": "orgs/other/users/b"})
    assert Method.of(methods["CreateUser"]).names(create) == [("parent", "orgs/a")]
    get = task_service_pb2.GetTaskRequest(name="orgs/a/dataset/tasks/t")
    assert Method.of(TASKS.methods_by_name["GetTask"]).names(get) == [("name", "orgs/a/dataset/tasks/t")]
