"""Commands made from the descriptors, noun then verb: `argosy dataset list`, `argosy api-key revoke ci`.

`CreateApiKey` becomes `api-key create`. A verb of its own, such as `CancelTask`, becomes `task cancel`. An RPC that
somebody adds to the contracts is here without a line of code; commands written by hand take precedence over these.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from argosy.cli import session
from argosy.client import Client, contract
from argosy.client.contract import Method
from google.protobuf.descriptor import FieldDescriptor

_TIMESTAMP = "google.protobuf.Timestamp"
# Fields that an option of their own, the name or the client fills.
_SPECIAL = {"name", "parent", "page_size", "page_token", "request_id", "update_mask", "org"}
_PATTERN = re.compile(r"\{[a-z_.]+=([^}]*)\}")
_Fields = dict[str, tuple[Any, Any]]


def add(app: typer.Typer, nouns: dict[str, typer.Typer]) -> None:
    """Adds a command for every RPC that no command by hand stands for.

    Args:
        nouns: those that have commands already.
    """
    for noun, verb, method in sorted(_commands(), key=lambda item: item[:2]):
        group = nouns.get(noun)
        if group is None:
            group = nouns[noun] = typer.Typer(
                help=f"Commands about each {noun.replace('-', ' ')}.", no_args_is_help=True
            )
            app.add_typer(group, name=noun, rich_help_panel="Resources")
        if verb not in {_name(command) for command in group.registered_commands}:
            group.command(verb, help=_help(method))(_function(verb, method))


def _name(command: Any) -> str:
    return str(command.name or command.callback.__name__)


def _commands() -> Iterator[tuple[str, str, Method]]:
    """(noun, verb, method) of every RPC. Nouns are what can be read or listed; a verb about nothing of that kind
    goes to its area.
    """
    methods = [method for area in contract.areas().values() for method in area.values()]
    nouns = {_singular(rest) for method in methods for verb, rest in [_parted(method.name)] if verb in ("get", "list")}
    for method in methods:
        verb, rest = _parted(method.name)
        if rest:
            found, noun = _placed(verb, rest, method.area, nouns)
            yield noun, found, method


def _parted(name: str) -> tuple[str, str]:
    verb, _, rest = name.replace("_", "-").partition("-")
    return verb, rest


def _placed(verb: str, rest: str, area: str, nouns: set[str]) -> tuple[str, str]:
    """Verb and noun. `roll-back-dataset` is to roll back a dataset, `clean-version` of datasets is about a dataset
    version.
    """
    words = rest.split("-")
    for start in range(len(words)):
        ending = _singular("-".join(words[start:]))
        for noun in (ending, f"{area}-{ending}"):
            if noun in nouns:
                return "-".join([verb, *words[:start]]), noun
    return f"{verb}-{rest}", area


def _singular(noun: str) -> str:
    if noun.endswith("ies"):
        return noun[:-3] + "y"
    if noun.endswith(("alias", "aliases")):
        return noun.removesuffix("es")
    return noun[:-1] if noun.endswith("s") and noun not in ("logs", "metrics", "stats") else noun


def pattern(method: Method) -> str:
    """Pattern of the name in the path: `orgs/*/datasets/*`; empty if there is none."""
    found = _PATTERN.search(method.template)
    return found[1] if found else ""


def _function(verb: str, method: Method) -> Callable[..., None]:
    """A function whose signature is what the command takes; Typer reads it from there."""
    resource = _resource(method)
    id_field = next(
        (name for name in method.request.fields_by_name if name.endswith("_id") and name != "request_id"), None
    )

    def run(**options: Any) -> None:
        with session.session() as client:
            _run(client, method, resource, id_field, options.pop("as_json"), options)

    taken = _parameters(verb, method, resource, id_field)
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(name, kind, default=default, annotation=note) for name, (note, default) in taken.items()
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {name: note for name, (note, _default) in taken.items()}
    return run


def _parameters(verb: str, method: Method, resource: FieldDescriptor | None, id_field: str | None) -> _Fields:
    fields = method.request.fields_by_name
    taken: _Fields = {}
    if "name" in fields or (verb == "update" and resource):
        taken["name"] = (
            Annotated[str, typer.Argument(help=f"{pattern(method)}, or its ids.")],
            inspect.Parameter.empty,
        )
    elif "parent" in fields:
        text = f"{pattern(method)}; else the organization of the login."
        taken["parent"] = (Annotated[str | None, typer.Option("--parent", help=text)], None)
    if id_field and resource:
        taken["new_id"] = (Annotated[str, typer.Option("--id", help="Last part of the new name.")], "")
    if resource:
        text = "A field as FIELD=VALUE; may be repeated."
        taken["pairs"] = (Annotated[list[str] | None, typer.Option("--set", help=text)], None)
        text = "The resource as JSON, @FILE, or - for standard input."
        taken["body"] = (Annotated[str | None, typer.Option("--body", help=text)], None)
    if verb == "list":
        taken["limit"] = (Annotated[int, typer.Option("--limit", min=1)], 50)
    for name, field in fields.items():
        if name not in _SPECIAL and name not in (id_field, resource.name if resource else ""):
            taken[name] = _option(name, field)
    taken["as_json"] = (Annotated[bool, typer.Option("--json", help="Print JSON.")], False)
    return taken


def _help(method: Method) -> str:
    return f"{method.verb} {method.template}"


def _resource(method: Method) -> FieldDescriptor | None:
    """The field that holds the resource of a create or an update."""
    for field in method.request.fields:
        if field.message_type and field.message_type is method.answer and not field.is_repeated:
            return field
    return None


def _option(name: str, field: FieldDescriptor) -> tuple[Any, Any]:
    flag = f"--{name.replace('_', '-')}"
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return Annotated[bool | None, typer.Option(flag)], None
    if field.is_repeated:
        return Annotated[list[str] | None, typer.Option(flag)], None
    text = ""
    if field.enum_type is not None:
        text = ", ".join(value.name for value in field.enum_type.values if value.number)
    elif field.message_type is not None and field.message_type.full_name != _TIMESTAMP:
        text = "JSON"
    return Annotated[str | None, typer.Option(flag, help=text)], None


def _run(
    client: Client,
    method: Method,
    resource: FieldDescriptor | None,
    id_field: str | None,
    as_json: bool,
    options: dict[str, Any],
) -> None:
    arguments = _arguments(method, resource, id_field, options)
    if method.streams:
        for message in client.stream(method, arguments):
            session.show(message, as_json)
    elif contract.items_field(method):
        limit = options.get("limit")
        arguments["page_size"] = min(limit or 50, 1000)
        session.show_list(client.pages(method, arguments, limit), as_json)
    else:
        session.show(client.call(method, arguments), as_json)


def _arguments(
    method: Method, resource: FieldDescriptor | None, id_field: str | None, options: dict[str, Any]
) -> dict[str, Any]:
    fields = method.request.fields_by_name
    arguments: dict[str, Any] = {}
    if resource and resource.message_type:
        set_fields = session.assignments(options.pop("pairs") or [], options.pop("body"))
        known = resource.message_type.fields_by_name
        arguments[resource.name] = {
            name: _whole_names(known[name], value) if name in known else value for name, value in set_fields.items()
        }
    if id_field and options.get("new_id"):
        arguments[id_field] = options["new_id"]
    if options.get("name"):
        name = session.full_name(options["name"], pattern(method))
        if "name" in fields:
            arguments["name"] = name
        elif resource:
            arguments["update_mask"] = ",".join(arguments[resource.name])
            arguments[resource.name]["name"] = name
    if "parent" in fields:
        given, wanted = options.get("parent"), pattern(method)
        arguments["parent"] = session.full_name(given, wanted) if given else _default_parent(wanted)
    for name, value in options.items():
        if name in fields and name not in arguments and value not in (None, []):
            arguments[name] = _value(fields[name], value)
    return arguments


def _default_parent(wanted: str) -> str:
    if wanted != "orgs/*":
        raise session.Misuse(f"--parent is needed: {wanted}")
    return session.organization()


def _value(field: FieldDescriptor, value: Any) -> Any:
    """What somebody typed, as the field takes it: JSON for a message, a whole name for a short one."""
    if field.message_type is not None and not field.is_repeated and field.message_type.full_name != _TIMESTAMP:
        return session.assignments([], value)
    return _whole_names(field, value)


def _whole_names(field: FieldDescriptor, value: Any) -> Any:
    """Short names as whole ones, where the field takes names of resources."""
    if field.type != FieldDescriptor.TYPE_STRING or not (pattern := contract.name_pattern(field)):
        return value
    if isinstance(value, list):
        return [_whole_names(field, one) for one in value]
    return session.full_name(value, pattern) if isinstance(value, str) and value else value
