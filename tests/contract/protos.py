"""The contracts as the generator wrote them, comments included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from argosy.buf.validate import validate_pb2
from argosy.common.v1 import options_pb2
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, MethodDescriptor

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "build" / "protos" / "argosy.binpb"
# Field numbers in descriptor.proto, as SourceCodeInfo.Location.path uses them.
_SERVICE, _METHOD, _ENUM, _VALUE = 6, 2, 5, 2


@cache
def files() -> list[descriptor_pb2.FileDescriptorProto]:
    """Our own proto files."""
    image = descriptor_pb2.FileDescriptorSet.FromString(IMAGE.read_bytes())
    return [file for file in image.file if file.name.startswith("argosy/")]


@cache
def pool() -> descriptor_pool.DescriptorPool:
    """Every file of the image, in a pool in which our options can be read."""
    import importlib

    for file in files():
        importlib.import_module(file.name.removesuffix(".proto").replace("/", ".") + "_pb2")
    return descriptor_pool.Default()


@cache
def methods() -> list[MethodDescriptor]:
    """Every RPC of every service."""
    names = [f"{file.package}.{service.name}" for file in files() for service in file.service]
    return [method for name in names for method in pool().FindServiceByName(name).methods]


@cache
def comments() -> dict[str, str]:
    """Leading comment of every method and enum value, by full name."""
    found: dict[str, str] = {}
    for file in files():
        for location in file.source_code_info.location:
            path = list(location.path)
            if len(path) == 4 and path[0] == _SERVICE and path[2] == _METHOD:
                service = file.service[path[1]]
                found[f"{file.package}.{service.name}.{service.method[path[3]].name}"] = location.leading_comments
            if len(path) == 4 and path[0] == _ENUM and path[2] == _VALUE:
                found[f"{file.package}.{file.enum_type[path[1]].value[path[3]].name}"] = location.leading_comments
    return found


def policy(method: MethodDescriptor) -> options_pb2.Policy:
    """The policy of a method."""
    return method.GetOptions().Extensions[options_pb2.policy]  # pyrefly: ignore[bad-index]


def http(method: MethodDescriptor) -> str:
    """The HTTP verb and path of a method; empty if it has none."""
    rule = method.GetOptions().Extensions[annotations_pb2.http]  # pyrefly: ignore[bad-index]
    kind = rule.WhichOneof("pattern")
    return f"{kind.upper()} {getattr(rule, kind)}" if kind else ""


def reads(method: MethodDescriptor) -> bool:
    """Whether the method promises to change nothing."""
    return method.GetOptions().idempotency_level == descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS


def rules(field: FieldDescriptor) -> validate_pb2.FieldRules | None:
    """The validation rules of a field, if it has any."""
    options = field.GetOptions()
    return options.Extensions[validate_pb2.field] if options.HasExtension(validate_pb2.field) else None  # pyrefly: ignore[bad-index, bad-argument-type]


def request_fields(
    message: Descriptor, skip: Callable[[FieldDescriptor], bool], seen: frozenset[str] = frozenset()
) -> Iterator[FieldDescriptor]:
    """Every field that a caller can set in a request, those of our messages inside it too, but for those to `skip`."""
    if message.full_name in seen:
        return
    for field in message.fields:
        if skip(field):
            continue
        yield field
        inner = field.message_type
        if inner is not None and inner.full_name.startswith("argosy.") and not inner.GetOptions().map_entry:
            yield from request_fields(inner, skip, seen | {message.full_name})


def enums() -> Iterator[EnumDescriptor]:
    """Every enum, those inside messages too."""

    def inside(message: Descriptor) -> Iterator[EnumDescriptor]:
        yield from message.enum_types
        for nested in message.nested_types:
            yield from inside(nested)

    for file in files():
        descriptor = pool().FindFileByName(file.name)
        yield from descriptor.enum_types_by_name.values()
        for message in descriptor.message_types_by_name.values():
            yield from inside(message)
