"""Chat templates of foreign tokenizers: Jinja programs that whoever serves the model will run."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError, nodes

from services.training.engines.template_sandbox import environment

# The longest that a model is known to have is some 20 KiB.
_MOST_CHARACTERS = 1 << 18


def template_fault(template: Any) -> str | None:
    """What is wrong with a template; None if it may be kept.

    It must be Jinja that reaches for nothing but what it is given: no attribute of Python's own (`__class__`), by
    whichever way it is named, and no other template.
    """
    if not isinstance(template, str):
        return "is no text"
    if len(template) > _MOST_CHARACTERS:
        return f"has {len(template):,} characters; {_MOST_CHARACTERS:,} at most"
    try:
        tree = environment().parse(template)
    except (TemplateError, RecursionError):
        return "is not Jinja"
    for attribute in tree.find_all(nodes.Getattr):
        if attribute.attr.startswith("_"):
            return f"reaches for {attribute.attr[:60]}"
    for item in tree.find_all(nodes.Getitem):
        if isinstance(item.arg, nodes.Const) and str(item.arg.value).startswith("_"):
            return f"reaches for {str(item.arg.value)[:60]}"
    for call in tree.find_all(nodes.Filter):
        if call.name in ("attr", "map", "selectattr", "rejectattr", "groupby") and _hidden(call):
            return f"reaches for hidden attributes by the filter {call.name}"
    other = next(tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)), None)
    return f"asks for another template ({type(other).__name__.lower()})" if other is not None else None


def _hidden(call: nodes.Filter) -> bool:
    """Whether a filter that takes attributes by name gets one of Python's own, or one that is made up as it runs."""
    names = [*call.args, *(keyword.value for keyword in call.kwargs)]
    if call.name == "attr":
        return any(not isinstance(name, nodes.Const) or str(name.value).startswith("_") for name in names)
    return any(isinstance(name, nodes.Const) and str(name.value).startswith("_") for name in names)
