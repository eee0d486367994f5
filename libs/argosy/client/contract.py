"""The methods of the platform as its descriptors tell them: nothing here names a service, so a new RPC is here when
its stub is.
"""

from __future__ import annotations

import base64
import importlib
import json
import pkgutil
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote

import argosy
from google.api import annotations_pb2
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

# The package `common` holds what every service mounts: its tasks.
_AREA_NAMES = {"common": "task"}
_VARIABLE = re.compile(r"\{([a-z_.]+)(?:=[^}]*)?\}")
# An id in the patterns of the contracts, and a pattern of names once ids are stars.
_ID = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAMES = re.compile(r"[a-zA-Z]+/\*(/[a-zA-Z]+/\*)*")


@dataclass(frozen=True)
class Method:
    """One RPC that has an HTTP route.

    Attributes:
        area: `dataset`, `training`, ...; `task` for the tasks of all services.
        name: in snake case.
        verb: of HTTP.
        template: path with variables, such as `/v1/{parent=orgs/*}/datasets`.
        body: `*`, a field name, or empty.
        streams: whether answers come as server-sent events.
        reads: whether it changes nothing.
    """

    area: str
    name: str
    service: str
    verb: str
    template: str
    body: str
    streams: bool
    reads: bool
    request: Descriptor
    answer: Descriptor
    comment: str = ""

    @property
    def repeatable(self) -> bool:
        """Whether the same call may be sent again: it changes nothing, or its request_id makes it happen once."""
        return self.reads or "request_id" in self.request.fields_by_name

    def path_fields(self) -> list[str]:
        """Fields of the request that the path holds, as dotted names."""
        return _VARIABLE.findall(self.template)


@dataclass(frozen=True)
class HttpRequest:
    """A call ready to be sent."""

    verb: str
    path: str
    query: list[tuple[str, str]]
    # None: no body.
    json: Any


@cache
def areas() -> dict[str, dict[str, Method]]:
    """Every method by area and name."""
    found: dict[str, dict[str, Method]] = {}
    for module in _service_modules():
        for service in module.DESCRIPTOR.services_by_name.values():
            for descriptor in service.methods:
                method = _method(descriptor)
                if method:
                    found.setdefault(method.area, {})[method.name] = method
    return found


def name_pattern(field: FieldDescriptor) -> str:
    """What resource names a field takes, such as `orgs/*/datasets/*`; empty if it takes none, or several kinds."""
    extensions: Any = field.GetOptions().Extensions
    rules = extensions[descriptor_pool.Default().FindExtensionByName("buf.validate.field")]
    texts = rules.repeated.items.string if field.is_repeated else rules.string
    pattern = texts.pattern.removeprefix("^").removesuffix("$").replace(_ID, "*")
    if pattern.startswith("(") and pattern.endswith(")?"):
        pattern = pattern[1:-2]
    return pattern if _NAMES.fullmatch(pattern) else ""


def _service_modules() -> list[Any]:
    modules: list[Any] = []
    for area in pkgutil.iter_modules(argosy.__path__):
        try:
            package = importlib.import_module(f"argosy.{area.name}.v1")
        except ModuleNotFoundError:
            continue
        for entry in pkgutil.iter_modules(package.__path__):
            if entry.name.endswith("_service_pb2"):
                modules.append(importlib.import_module(f"{package.__name__}.{entry.name}"))
    return modules


def _method(descriptor: MethodDescriptor) -> Method | None:
    options = descriptor.GetOptions()
    extensions: Any = options.Extensions
    rule = extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern")
    if verb is None:
        return None
    package = descriptor.containing_service.file.package.split(".")[1]
    return Method(
        area=_AREA_NAMES.get(package, package),
        name=snake_case(descriptor.name),
        service=descriptor.containing_service.full_name,
        verb=verb.upper(),
        template=getattr(rule, verb),
        body=rule.body,
        streams=descriptor.server_streaming,
        reads=options.idempotency_level == options.NO_SIDE_EFFECTS,
        request=descriptor.input_type,
        answer=descriptor.output_type,
    )


def snake_case(name: str) -> str:
    """`CreateApiKey` -> `create_api_key`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def build(method: Method, arguments: Mapping[str, Any]) -> Message:
    """The request message from keyword arguments. A mutation without a request_id gets one.

    Raises:
        TypeError: an argument that the request does not have.
        ValueError: a value that does not fit its field.
    """
    message: Message = message_factory.GetMessageClass(method.request)()
    known = method.request.fields_by_name
    for name in arguments:
        if name not in known:
            raise TypeError(f"{method.name}() has no argument {name!r}; it takes {', '.join(known)}")
    try:
        given = {name: _plain(value, known[name]) for name, value in arguments.items() if value is not None}
        json_format.ParseDict(given, message)
    except json_format.ParseError as error:
        raise ValueError(f"{method.name}(): {error}") from None
    if not method.reads and "request_id" in known and not message.request_id:  # type: ignore[attr-defined]
        message.request_id = str(uuid.uuid4())  # type: ignore[attr-defined]
    return message


def _plain(value: Any, field: FieldDescriptor | None = None) -> Any:
    if field is not None and field.message_type and field.message_type.full_name == "google.protobuf.FieldMask":
        return _mask(value)
    if isinstance(value, bytes):
        # As JSON has them; bytes as they are would be taken for base64.
        return base64.b64encode(value).decode()
    if isinstance(value, Message):
        return json_format.MessageToDict(value, preserving_proto_field_name=True)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _mask(value: Any) -> Any:
    """A field mask as JSON has it. Given as `display_name,labels`, a list of names, or a message."""
    if isinstance(value, Message):
        return json_format.MessageToDict(value)
    paths = value.split(",") if isinstance(value, str) else list(value)
    return ",".join(re.sub(r"_([a-z])", lambda found: found[1].upper(), path.strip()) for path in paths)


def transcode(method: Method, message: Message) -> HttpRequest:
    """The HTTP request of a call (google/api/http.proto).

    Raises:
        ValueError: a field that the path needs is empty.
    """
    fields = json_format.MessageToDict(message, preserving_proto_field_name=True)
    path = method.template
    for name in method.path_fields():
        value = _take(fields, name)
        if not value:
            raise ValueError(f"{method.name}() needs {name}")
        path = re.sub(r"\{" + re.escape(name) + r"(=[^}]*)?\}", quote(str(value), safe="/"), path, count=1)
    if method.body == "*":
        return HttpRequest(method.verb, path, [], fields)
    body = fields.pop(method.body, {}) if method.body else None
    if isinstance(body, dict):
        body = _with_cleared(message, method.body, body)
    return HttpRequest(method.verb, path, list(_query(method.request, fields)), body)


def _take(fields: dict[str, Any], path: str) -> Any:
    *parents, last = path.split(".")
    for parent in parents:
        fields = fields.get(parent, {})
    # The name of a resource also stays in its body; at the top it is in the path alone.
    return fields.get(last) if parents else fields.pop(last, None)


def _with_cleared(message: Message, name: str, body: dict[str, Any]) -> dict[str, Any]:
    """The resource of an update. A field that the mask names and that has its zero value must still be sent: JSON
    leaves zeroes out.
    """
    mask = getattr(message, "update_mask", None)
    resource = getattr(message, name)
    for path in mask.paths if mask else ():
        field = resource.DESCRIPTOR.fields_by_name.get(path)
        if field is not None and path not in body and not field.message_type and not field.is_repeated:
            body[path] = field.default_value
    return body


def _query(descriptor: Descriptor, fields: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for name, value in fields.items():
        field = descriptor.fields_by_name[name]
        if isinstance(value, dict) and field.message_type:
            pairs.extend(_query(field.message_type, value, f"{prefix}{name}."))
        else:
            values = value if isinstance(value, list) else [value]
            pairs.extend((prefix + name, _text(item)) for item in values)
    return pairs


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse(descriptor: Descriptor, data: Any) -> Message:
    """A message from the gateway's JSON. Fields of a newer server are skipped."""
    message: Message = message_factory.GetMessageClass(descriptor)()
    json_format.ParseDict(data, message, ignore_unknown_fields=True)
    return message


def items_field(method: Method) -> FieldDescriptor | None:
    """The repeated field of a list's answer; None for a method that does not list."""
    if "next_page_token" not in method.answer.fields_by_name:
        return None
    return next((field for field in method.answer.fields if field.is_repeated), None)


def loads(text: str) -> Any:
    """The JSON of one event."""
    return json.loads(text)
