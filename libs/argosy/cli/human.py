"""Human work on the command line: items in, answers at the terminal, reviews, reports, results out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from argosy.cli import json_lines, session
from argosy.cli.live import watch
from argosy.cli.options import newest
from argosy.client import Client, contract
from argosy.dataset.v1 import human_work_pb2 as work_pb
from google.protobuf.json_format import MessageToDict
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

T = TypeVar("T")
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ProjectArgument = Annotated[str, typer.Argument(help="Work project.")]

_PROJECT = "orgs/*/workProjects/*"
_PATIENCE = 300.0
# What takes a proposal as the answer.
_TAKE = "="
# Characters of a value in a preview; what is longer is cut.
_PREVIEWED = 20_000
_ITEM_FIELDS = {"subject", "payload", "gold", "proposal", "priority", "labels"}

work = typer.Typer(help="Human work: annotation and review.", no_args_is_help=True)


@work.command("add")
def add_items(
    project: ProjectArgument,
    file: Annotated[
        Path | None,
        typer.Argument(exists=True, dir_okay=False, help='JSONL: a payload a line, or {"payload": ..., "gold": ...}.'),
    ] = None,
    version: Annotated[
        str, typer.Option(help="DATASET/VERSION, or DATASET for its newest one, whose rows become items.")
    ] = "",
    proposals: Annotated[
        str, typer.Option(help="Column of the version that people begin with, where the form asks for it: objects.")
    ] = "",
    accept_score: Annotated[
        float,
        typer.Option(min=0, max=1, help="Accept what a model proposed with this score or more unseen; 0: nothing."),
    ] = 0,
) -> None:
    """Add items to a project, from a file or from the rows of a dataset version."""
    with session.session(_PATIENCE) as client, Progress(console=session.errors_console, transient=True) as bar:
        if (file is None) == (not version):
            raise session.Misuse("give a FILE or --version, one of them")
        if proposals and file is not None:
            raise session.Misuse("--proposals is a column of a version; a FILE has a `proposal` in its lines")
        name, row = session.full_name(project, _PROJECT), bar.add_task("items", total=None)
        added = accepted = 0
        items = _items(file) if file is not None else _rows(client, version, proposals)
        for batch in json_lines.batches(items):
            answer = client.dataset.add_work_items(parent=name, items=batch, accept_score=accept_score)
            added, accepted = added + answer.item_count, accepted + answer.accepted_count
            bar.update(row, completed=added)
    unseen = f", {accepted:,} of them accepted as proposed" if accept_score else ""
    session.console.print(f"{added:,} items added{unseen}")


def _items(file: Path) -> Iterator[dict[str, Any]]:
    for given in json_lines.read(file):
        yield given if "payload" in given and given.keys() <= _ITEM_FIELDS else {"payload": given}


def _rows(client: Client, version: str, proposals: str) -> Iterator[dict[str, Any]]:
    name = newest(client, version)
    method = contract.areas()["dataset"]["preview_rows"]
    for row in client.pages(method, {"parent": name, "page_size": json_lines.BATCH_ROWS}):
        payload = MessageToDict(row.fields)
        for column, value in payload.items():
            if isinstance(value, str) and len(value) > _PREVIEWED and value.endswith("…"):
                advice = f"export the version with `argosy dataset export {version}` and give the file"
                raise session.Misuse(f"row {row.row_id}: {column} is longer than a preview shows: {advice}")
        item: dict[str, Any] = {"subject": f"{name}/rows/{row.row_id}", "payload": payload}
        if proposals and proposals in payload:
            item["proposal"] = {proposals: payload.pop(proposals)}
        yield item


@work.command()
def annotate(
    project: ProjectArgument,
    limit: Annotated[int, typer.Option(min=0, help="Stop after so many; 0: when there is nothing more.")] = 0,
) -> None:
    """Answer items, one after the other. An empty answer to the first question gives the item back; Ctrl-C keeps it."""
    with session.session(_PATIENCE) as client:
        name, done = session.full_name(project, _PROJECT), 0
        while not limit or done < limit:
            taken = client.dataset.take_work(name=name)
            if not taken.HasField("assignment"):
                session.console.print("nothing to do now")
                break
            assignment, began = taken.assignment, time.monotonic()
            if not done:
                session.console.print(escape(assignment.form.instructions))
            _show_payload(assignment.item, assignment.form)
            if assignment.reason:
                session.console.print(f"returned: {escape(assignment.reason)}", style="yellow")
            answer = _ask_all(assignment.form, MessageToDict(assignment.item.proposal))
            if answer is None:
                client.dataset.release_work(name=assignment.name)
                continue
            seconds = time.monotonic() - began
            client.dataset.submit_work(name=assignment.name, answer=answer, active_seconds=seconds)
            done += 1
    session.console.print(f"{done:,} answers")


@work.command()
def review(project: ProjectArgument) -> None:
    """Decide items whose answers differ: accept an answer by its number, or return one with a reason."""
    with session.session(_PATIENCE) as client:
        name, done = session.full_name(project, _PROJECT), 0
        while (found := client.dataset.take_review(name=name)).HasField("item"):
            _show_payload(found.item, found.form)
            for number, given in enumerate(found.assignments, 1):
                text = json.dumps(MessageToDict(given.answer), ensure_ascii=False)
                reason = f"  (disputed: {given.reason})" if given.reason else ""
                session.console.print(f"  {number}  {given.annotator:<24} {escape(text + reason)}")
            count = len(found.assignments)
            choice = _asked("number to accept, -number to return, empty to stop", _decision(count), optional=True)
            if choice is None:
                break
            chosen = found.assignments[abs(choice) - 1]
            if choice > 0:
                client.dataset.decide_review(name=found.item.name, answer=MessageToDict(chosen.answer))
            else:
                returned = {"assignment": chosen.name, "reason": _asked("what is wrong with it", str)}
                client.dataset.decide_review(name=found.item.name, returns=[returned])
            done += 1
    session.console.print(f"{done:,} items decided")


def _show_payload(item: work_pb.WorkItem, form: work_pb.WorkForm) -> None:
    payload = MessageToDict(item.payload)
    session.console.rule(item.name.rsplit("/", 1)[1])
    for field in form.shown or payload:
        if field in payload:
            value = payload[field]
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            session.console.print(f"[bold]{escape(field)}[/] {escape(text)}")


def _ask_all(form: work_pb.WorkForm, proposal: dict[str, Any]) -> dict[str, Any] | None:
    answer: dict[str, Any] = {}
    for number, field in enumerate(form.fields):
        question, parse = f"{field.title or field.name} ({_hint(field)})", _parser(field)
        if field.name in proposal:
            text = json.dumps(proposal[field.name], ensure_ascii=False)
            session.console.print(f"[bold]proposed[/], [bold]{_TAKE}[/] takes it: {escape(text)}")
            parse = _or_proposal(parse, proposal[field.name])
        value = _asked(question, parse, optional=field.optional or number == 0)
        if value is None and number == 0 and not field.optional:
            return None
        if value is not None:
            answer[field.name] = value
    return answer


def _or_proposal(parse: Callable[[str], Any], proposed: Any) -> Callable[[str], Any]:
    return lambda text: proposed if text == _TAKE else parse(text)


def _hint(field: work_pb.WorkField) -> str:
    """What may be typed."""
    match field.kind:
        case work_pb.WORK_FIELD_KIND_RATING:
            return f"{field.min} to {field.max}"
        case work_pb.WORK_FIELD_KIND_BOXES:
            return f"LABEL X Y WIDTH HEIGHT; ... of {', '.join(field.choices)}"
        case work_pb.WORK_FIELD_KIND_CHOICES:
            return f"any of {_numbered(field)}, with commas"
        case work_pb.WORK_FIELD_KIND_TEXT:
            return "text"
        case _:
            return _numbered(field)


def _numbered(field: work_pb.WorkField) -> str:
    return ", ".join(f"{number} {choice}" for number, choice in enumerate(field.choices, 1))


def _asked(question: str, parse: Callable[[str], T], *, optional: bool = False) -> T | None:
    """Asks until the answer can be read. None for an empty answer to an optional question."""
    while True:
        text = typer.prompt(question, default="", show_default=False).strip()
        if not text and optional:
            return None
        try:
            return parse(text)
        except ValueError as error:
            session.errors_console.print(escape(str(error)), style="red")


def _parser(field: work_pb.WorkField) -> Callable[[str], Any]:
    """What reads the text that somebody types. It raises ValueError with what to type instead."""
    match field.kind:
        case work_pb.WORK_FIELD_KIND_CHOICE | work_pb.WORK_FIELD_KIND_PREFERENCE:
            return lambda text: _choice(field, text)
        case work_pb.WORK_FIELD_KIND_CHOICES:
            return lambda text: [_choice(field, part.strip()) for part in text.split(",") if part.strip()]
        case work_pb.WORK_FIELD_KIND_RATING:
            return _number(field.min, field.max)
        case work_pb.WORK_FIELD_KIND_BOXES:
            return lambda text: [_box(field, part) for part in text.split(";") if part.strip()]
        case _:
            return str


def _choice(field: work_pb.WorkField, text: str) -> str:
    if text.isdigit() and 1 <= int(text) <= len(field.choices):
        return field.choices[int(text) - 1]
    begun = [choice for choice in field.choices if choice.casefold().startswith(text.casefold())]
    if text in field.choices:
        return text
    if text and len(begun) == 1:
        return begun[0]
    raise ValueError(f"one of {_numbered(field)}")


def _number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.removeprefix("-").isdigit() or not least <= int(text) <= most:
            raise ValueError(f"a number from {least} to {most}")
        return int(text)

    return parse


def _decision(count: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if (number := _number(-count, count)(text)) == 0:
            raise ValueError(f"a number from 1 to {count}, or one with a minus before it")
        return number

    return parse


def _box(field: work_pb.WorkField, text: str) -> dict[str, Any]:
    words = text.split()
    try:
        box = [float(side) for side in words[-4:]]
    except ValueError:
        box = list[float]()
    if len(words) < 5 or not box:
        raise ValueError("boxes as LABEL X Y WIDTH HEIGHT, several with a semicolon between them")
    return {"label": _choice(field, " ".join(words[:-4])), "box": box}


@work.command()
def dispute(
    project: ProjectArgument,
    item: Annotated[str, typer.Argument(help="Its number, as `argosy work pending` shows it.")],
    reason: Annotated[str, typer.Option(help="Why your answer is right; another reviewer reads it.")],
) -> None:
    """Stand by an answer that a reviewer returned."""
    with session.session() as client:
        name = f"{session.full_name(project, _PROJECT)}/items/{item}"
        method = contract.areas()["dataset"]["list_pending_work"]
        waiting = client.pages(method, {"parent": session.organization()})
        found = next((one for one in waiting if one.item.name == name), None)
        if found is None:
            raise session.Misuse(f"no answer of yours to item {item} of {project} waits: see `argosy work pending`")
        client.dataset.dispute_return(name=found.name, reason=reason)
    session.console.print(f"item {item} goes to another reviewer")


@work.command()
def pending(as_json: JsonOption = False) -> None:
    """What waits for you, in all projects."""
    with session.session() as client:
        method = contract.areas()["dataset"]["list_pending_work"]
        found = list(client.pages(method, {"parent": session.organization()}))
    if as_json:
        session.show_list(found, as_json)
        return
    table = Table(title=f"{len(found):,} items wait for you")
    for column in ("project", "item", "state", "until", "why"):
        table.add_column(column)
    for one in found:
        project, item = one.item.name.split("/workProjects/")[1].split("/items/")
        state = work_pb.WorkAssignment.State.Name(one.state).removeprefix("STATE_").lower()
        table.add_row(
            project, item, state, one.lease_expire_time.ToDatetime().isoformat(" ", "minutes"), escape(one.reason)
        )
    session.console.print(table)


@work.command()
def report(
    project: ProjectArgument,
    precision: Annotated[
        float, typer.Option(min=0.01, max=0.999, help="Of what a model proposes, to be accepted unseen.")
    ] = 0.95,
    as_json: JsonOption = False,
) -> None:
    """Compute and show agreement and reliability, with 95 % intervals."""
    with session.session(_PATIENCE) as client:
        name = session.full_name(project, _PROJECT)
        started = client.dataset.report_work(name=name, wanted_precision=precision)
        watch(client, started.name, session.errors_console if as_json else session.console)
        found = client.dataset.get_work_report(name=name)
        currency = client.dataset.get_work_project(name=name).currency
    if as_json:
        session.show(found, as_json)
        return
    for field in found.fields:
        table = Table(title=f"{field.name}: {field.items:,} items with two answers or more, by {field.workers} people")
        for column in ("measure", "level", "value", "95 %", "items"):
            table.add_column(column)
        for measure in field.measures:
            table.add_row(measure.measure, measure.level, *_interval(measure), f"{measure.items:,}")
        session.console.print(table)
    for proposed in found.proposals:
        _show_proposals(proposed)
    table = Table(title="people")
    for column in ("who", "answers", "known answers right", "95 %", "reliability", "median seconds", "cost"):
        table.add_column(column)
    for one in found.workers:
        gold = (f"{one.gold.correct} of {one.gold.answers}", f"{one.gold.low:.2f} to {one.gold.high:.2f}")
        reliability = ", ".join(f"{r.field} {r.accuracy:.2f}" for r in one.reliability if r.HasField("accuracy"))
        seconds = f"{one.median_seconds:.1f}{' (!)' if one.seconds_outlier else ''}"
        cost = f"{one.cost_micros / 1e6:,.2f} {currency}" if currency else ""
        row = (one.worker, f"{one.answers:,}", *(gold if one.gold.answers else ("", "")), reliability, seconds, cost)
        table.add_row(*row)
    session.console.print(table)


def _show_proposals(proposed: work_pb.ProposalReport) -> None:
    """What people made of proposed boxes."""
    table = Table(title=f"{proposed.field}: what a model proposed for {proposed.items:,} items that people looked at")
    for column in ("score from", "boxes", "right", "95 %", "of all objects found", "95 %"):
        table.add_column(column)
    for row in proposed.rows:
        if row.proposals:
            sides = (*_interval(row.precision), *_interval(row.recall))
            table.add_row(f"{row.score:.2f}", f"{row.proposals:,}", *sides)
    session.console.print(table)
    wanted = f"{proposed.wanted_precision:.0%} are right"
    if proposed.HasField("auto_accept_score"):
        score = f"{proposed.auto_accept_score:.2f}"
        session.console.print(f"at least {wanted} from a score of {score} on: `argosy work add --accept-score {score}`")
    else:
        session.console.print(f"no score from which at least {wanted}, as far as these items show")


def _interval(measure: work_pb.AgreementMeasure | work_pb.Proportion) -> tuple[str, str]:
    if not measure.HasField("value"):
        return "undefined", ""
    if not measure.HasField("low"):
        return f"{measure.value:.3f}", ""
    return f"{measure.value:.3f}", f"{measure.low:.3f} to {measure.high:.3f}"


@work.command("export")
def export_answers(
    project: ProjectArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="JSONL file to write: payload and answer a line.")],
) -> None:
    """Write the accepted items: their payload with the final answer, as rows that `dataset import` reads."""
    with session.session(_PATIENCE) as client:
        method = contract.areas()["dataset"]["list_work_items"]
        arguments = {"parent": session.full_name(project, _PROJECT), "state": "STATE_ACCEPTED"}
        draft, written = output.with_suffix(output.suffix + ".part"), 0
        with draft.open("w", encoding="utf-8") as file:
            for item in client.pages(method, {**arguments, "page_size": json_lines.BATCH_ROWS}):
                if item.HasField("gold"):
                    continue
                row = {**MessageToDict(item.payload), **MessageToDict(item.answer)}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                written += 1
        draft.replace(output)
    session.console.print(f"{written:,} rows: {output}")


def mount(app: typer.Typer) -> dict[str, typer.Typer]:
    """Adds the commands; gives them by noun."""
    app.add_typer(work, name="work", rich_help_panel="The main job")
    return {"work": work}
