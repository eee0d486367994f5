"""Verbs that people need along the main job: import, clean, split, train, evaluate, deploy, publish."""

from __future__ import annotations

import enum
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from argosy.cli import session
from argosy.cli.live import finished_evaluation, watch
from argosy.client import Client, contract
from argosy.client.errors import Conflict
from argosy.dataset.v1 import dataset_pb2
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Value
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
WatchOption = Annotated[bool, typer.Option("--watch/--no-watch", "-w", help="Follow the work to its end.")]

# A task may outlive restarts of every service; its watcher waits as long.
_PATIENCE = 300.0
_DATASET, _VERSION = "orgs/*/datasets/*", "orgs/*/datasets/*/versions/*"
_MODEL = "orgs/*/modelProjects/*/versions/*"

dataset = typer.Typer(help="Datasets: import, clean, split, look at.", no_args_is_help=True)
training = typer.Typer(help="Trainings and their runs.", no_args_is_help=True)
task = typer.Typer(help="Long work of every service.", no_args_is_help=True)
model = typer.Typer(help="Model versions and their gates.", no_args_is_help=True)
evaluation = typer.Typer(help="Evaluations and gates.", no_args_is_help=True)
deploy = typer.Typer(help="Work orders and deployments.", no_args_is_help=True)
application = typer.Typer(help="Applications.", no_args_is_help=True)


def _follow(client: Client, started: Any, follow: bool, as_json: bool) -> Any:
    """Shows a task, at once or when it has ended."""
    if follow:
        started = watch(client, started.name, session.errors_console if as_json else session.console)
    session.show(started, as_json)
    return started


class DatasetKind(enum.StrEnum):
    """What the rows of a dataset are."""

    text = "text"
    table = "table"
    image = "image"
    audio = "audio"
    video = "video"


@dataset.command("import")
def import_rows(
    name: Annotated[str, typer.Option("--dataset", "-d", help="Id of the dataset; made if there is none.")],
    source: Annotated[
        str, typer.Argument(help="A file, or a link: https://..., webhdfs://namenode:9870/path. JSONL, CSV, ...")
    ] = "",
    secret: Annotated[
        str, typer.Option(help="A secret with a link that is itself a key, or with the SQLAlchemy URL of a database.")
    ] = "",
    query: Annotated[str, typer.Option(help="The SELECT whose rows are imported from that database.")] = "",
    format: Annotated[
        str,
        typer.Option(
            help="jsonl, json, csv, tsv, parquet, xlsx, text, zip, tar, else from the file's name; openai, alpaca, "
            "sharegpt, dpo, coco, label-studio."
        ),
    ] = "",
    type: Annotated[DatasetKind, typer.Option(help="Of a dataset that is made.")] = DatasetKind.text,
    follow: WatchOption = True,
    as_json: JsonOption = False,
) -> None:
    """Read a file, a link or a database into a new version. An upload that broke goes on where it stands."""
    with session.session(_PATIENCE) as client:
        _require_one(source, secret)
        full = session.full_name(name, _DATASET)
        with suppress(Conflict):
            client.dataset.create_dataset(
                parent=session.organization(),
                dataset_id=full.split("/")[-1],
                dataset={"type": f"DATASET_TYPE_{type.name.upper()}"},
            )
        if secret:
            given = {"secret": session.full_name(secret, "orgs/*/secrets/*"), "query": query}
        elif "://" in source:
            given = {"uri": source}
        else:
            given = {"upload": _upload(client, Path(source))}
        started = client.dataset.import_version(parent=full, format=format, **given)
        _follow(client, started, follow, as_json)
        if follow and not as_json:
            made = client.dataset.get_dataset_version(name=client.dataset.get_dataset(name=full).latest_version)
            _report(session.short_name(made.name), made.report)


def _require_one(source: str, secret: str) -> None:
    if bool(source) == bool(secret):
        raise session.Misuse("give either a file or a link, or --secret")
    if source and "://" not in source and not Path(source).is_file():
        raise session.Misuse(f"there is no file {source}")


def _upload(client: Client, file: Path) -> str:
    """Uploads with a bar; the name of the upload."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=session.errors_console, transient=True) as bar:
        row = bar.add_task("upload", total=file.stat().st_size)
        state = client.upload(
            session.organization(), file, progress=lambda done, _total: bar.update(row, completed=done)
        )
    return str(state.name)


@dataset.command()
def clean(
    version: Annotated[str, typer.Argument(help="DATASET/VERSION, or DATASET for its newest one.")],
    recipe: Annotated[
        str, typer.Option(help="A YAML file, or the name of a built-in one: see `argosy dataset recipes`.")
    ] = "general",
    text_column: str = "text",
    sample: Annotated[int, typer.Option(min=0, help="Try it on so many rows, and change nothing.")] = 0,
    follow: WatchOption = True,
    as_json: JsonOption = False,
) -> None:
    """Clean by a recipe: HTML, quality, duplicates exact and near; writes a new version with a report."""
    file = Path(recipe)
    with session.session(_PATIENCE) as client:
        given = _read(file) if file.suffix in (".yaml", ".yml") or file.is_file() else recipe
        name = _newest(client, version)
        started = client.dataset.clean_version(name=name, text_column=text_column, recipe=given, sample_rows=sample)
        if sample and follow and not as_json:
            done = watch(client, started.name, session.console)
            report = ParseDict(MessageToDict(done.result)["report"], dataset_pb2.Report())
            _report(f"{session.short_name(name)}, a trial", report)
            return
        _follow(client, started, follow, as_json)
        if follow and not as_json:
            parent = client.dataset.get_dataset(name=name.split("/versions/")[0])
            made = client.dataset.get_dataset_version(name=parent.latest_version)
            _report(session.short_name(made.name), made.report)


@dataset.command()
def augment(
    version: Annotated[str, typer.Argument(help="DATASET/VERSION, or DATASET for its newest one.")],
    recipe: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="A YAML file: see `argosy dataset augmentations`.")
    ],
    text_column: str = "text",
    follow: WatchOption = True,
    as_json: JsonOption = False,
) -> None:
    """Add copies of rows, changed at random by a recipe with a seed; the originals stay beside them."""
    with session.session(_PATIENCE) as client:
        name = _newest(client, version)
        started = client.dataset.augment_version(name=name, text_column=text_column, recipe=_read(recipe))
        _follow(client, started, follow, as_json)
        if follow and not as_json:
            parent = client.dataset.get_dataset(name=name.split("/versions/")[0])
            made = client.dataset.get_dataset_version(name=parent.latest_version)
            _report(session.short_name(made.name), made.report)


@dataset.command()
def augmentations(as_json: JsonOption = False) -> None:
    """The operators that augmentation recipes are made of, by kind of data."""
    with session.session() as client:
        catalogue = client.dataset.describe_augmentation()
    if as_json:
        session.show(catalogue, as_json)
        return
    for media in catalogue.media:
        session.console.print(_operators(media.media_type, media.operators))


@dataset.command()
def recipes(
    name: Annotated[str, typer.Argument(help="Recipe to print as YAML; without it, all recipes and operators.")] = "",
    as_json: JsonOption = False,
) -> None:
    """What cleaning recipes there are, and the operators that they are made of."""
    with session.session() as client:
        catalogue = client.dataset.describe_cleaning()
    if as_json:
        session.show(catalogue, as_json)
        return
    if name:
        found = next((recipe for recipe in catalogue.recipes if recipe.name == name), None)
        if found is None:
            raise session.Misuse(f"there is no recipe {name}: there are {', '.join(r.name for r in catalogue.recipes)}")
        print(found.yaml, end="")
        return
    table = Table(title="recipes (`argosy dataset recipes NAME` prints one)")
    for column in ("name", "description"):
        table.add_column(column)
    for recipe in catalogue.recipes:
        table.add_row(recipe.name, recipe.description)
    session.console.print(table)
    session.console.print(_operators("operators", catalogue.operators))


def _operators(title: str, operators: Any) -> Table:
    """Operators of recipes with their parameters."""
    table = Table(title=title)
    for column in ("name", "what it does", "parameters with their defaults"):
        table.add_column(column)
    for operator in operators:
        parameters = [f"{p.name}: {_default(p.default)}" for p in operator.parameters]
        source = f"\n[dim]{escape(operator.source)}[/]" if operator.source else ""
        table.add_row(operator.name, escape(operator.description) + source, "\n".join(parameters))
    return table


@dataset.command()
def profile(
    version: Annotated[str, typer.Argument(help="DATASET/VERSION, or DATASET for its newest one.")],
    page: Annotated[Path | None, typer.Option(help="Write the page with charts to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Count what is in a version: lengths, values, languages, what is missing, what comes again."""
    with session.session(_PATIENCE) as client:
        name = _newest(client, version)
        started = client.dataset.profile_version(name=name)
        watch(client, started.name, session.errors_console if as_json else session.console)
        found = client.dataset.get_version_profile(name=name)
        if page is not None:
            page.write_text(client.dataset.render_version_profile(name=name).html, encoding="utf-8")
        if as_json:
            session.show(found, as_json)
            return
        title = f"{session.short_name(name)}: {found.row_count:,} rows, {found.duplicate_rows:,} of them come again"
        table = Table(title=title)
        for column in ("column", "missing", "different", "lengths or values", "most frequent"):
            table.add_column(column)
        for column in found.columns:
            more = "> " if column.distinct_is_more else ""
            common = ", ".join(f"{value.value[:20]!r} {value.count:,}" for value in column.top_values[:3])
            table.add_row(
                column.name, f"{column.missing:,}", f"{more}{column.distinct:,}", _span(column), escape(common)
            )
        session.console.print(table)
        if page is not None:
            session.console.print(f"page: {page}")


def _span(column: Any) -> str:
    """Median and range of what a column measures, with its languages."""
    parts: list[str] = []
    for what, field in (("", "numbers"), (" chars", "chars"), (" words", "words")):
        if column.HasField(field):
            found = getattr(column, field)
            median = next(quantile.value for quantile in found.quantiles if quantile.percent == 50)
            parts.append(f"{median:g}{what} ({found.min:g} to {found.max:g})")
    languages = ", ".join(f"{language.value} {language.count:,}" for language in column.languages[:3])
    return "\n".join([*parts, languages]) if languages else "\n".join(parts)


def _default(value: Value) -> str:
    if value.HasField("number_value"):
        return f"{value.number_value:g}"
    return value.string_value or "off"


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise session.Misuse(f"{file} cannot be read: {error}") from None


@dataset.command()
def split(
    version: Annotated[str, typer.Argument(help="DATASET/VERSION, or DATASET for its newest one.")],
    train: Annotated[str, typer.Option(help="Dataset of the training side; made if there is none.")],
    test: Annotated[str, typer.Option(help="Dataset of the test side; made if there is none.")],
    group: Annotated[str, typer.Option(help="Column whose equal values stay on one side.")] = "source",
    fraction: Annotated[float, typer.Option(min=0.001, max=0.999, help="Share of groups on the test side.")] = 0.1,
    seed: int = 0,
    follow: WatchOption = True,
    as_json: JsonOption = False,
) -> None:
    """Split into training and test, and take near-duplicates across the split out of the training side."""
    with session.session(_PATIENCE) as client:
        sides = [session.full_name(side, _DATASET) for side in (train, test)]
        for side in sides:
            try:
                client.dataset.create_dataset(
                    parent=session.organization(),
                    dataset_id=side.split("/")[-1],
                    dataset={"type": "DATASET_TYPE_TEXT"},
                )
            except Conflict:
                continue
        started = client.dataset.split_version(
            name=_newest(client, version),
            train_dataset=sides[0],
            test_dataset=sides[1],
            group_column=group,
            test_fraction=fraction,
            seed=seed,
        )
        _follow(client, started, follow, as_json)


@dataset.command()
def leakage(
    train: Annotated[str, typer.Argument(help="Training version: DATASET/VERSION, or DATASET for its newest one.")],
    test: Annotated[str, typer.Argument(help="Test version: DATASET/VERSION, or DATASET for its newest one.")],
    text_column: Annotated[str, typer.Option(help="Column of the test version.")] = "text",
    train_text_column: Annotated[str, typer.Option(help="Column of the training version, where it is another.")] = "",
    threshold: Annotated[float, typer.Option(min=0.01, max=1, help="Similarity from which rows are the same.")] = 0.8,
    as_json: JsonOption = False,
) -> None:
    """Count the test rows that a training version has too, exactly or nearly."""
    with session.session(_PATIENCE) as client:
        asked = {
            "name": _newest(client, test),
            "train_version": _newest(client, train),
            "text_column": text_column,
            "train_text_column": train_text_column,
            "near_duplicate_threshold": threshold,
        }
        started = client.dataset.check_leakage(**asked)
        watch(client, started.name, session.errors_console if as_json else session.console)
        found = client.dataset.get_leakage_check(**asked)
        if as_json:
            session.show(found, as_json)
            return
        names = [session.short_name(name) for name in (found.test_version, found.train_version)]
        leaked = found.exact_rows + found.near_rows
        session.console.print(
            f"{leaked:,} of {found.test_rows:,} rows of {names[0]} ({found.leaked_share:.2%}) are in {names[1]} "
            f"({found.train_rows:,} rows): {found.exact_rows:,} exactly, {found.near_rows:,} nearly"
        )
        table = Table(title="the first of them")
        for column in ("similarity", "test row", "training row"):
            table.add_column(column)
        for pair in found.examples:
            sides = ((pair.test_row_id, pair.test_text), (pair.train_row_id, pair.train_text))
            texts = [f"{row_id[:12]} {escape(' '.join(text.split())[:60])}" for row_id, text in sides]
            table.add_row(f"{pair.similarity:.2f}", *texts)
        if found.examples:
            session.console.print(table)
        _recall(found.near_duplicates)


@dataset.command("export")
def export_version(
    version: Annotated[str, typer.Argument(help="DATASET/VERSION, or DATASET for its newest one.")],
    format: Annotated[
        str,
        typer.Option(
            help="jsonl, json, csv, tsv, parquet, xlsx, text, datasets (a folder for load_dataset), openai, alpaca, "
            "sharegpt, dpo, dpo-conversational, coco, label-studio, yolo, voc."
        ),
    ] = "jsonl",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File, or folder if there are several; else named for you.")
    ] = None,
    compression: Annotated[str, typer.Option(help="gzip or zstd.")] = "",
    text_column: Annotated[str, typer.Option(help="Of the format text.")] = "",
    source: Annotated[bool, typer.Option("--source", help="Add where each row came from.")] = False,
    split: Annotated[
        list[str] | None,
        typer.Option(help="Of the format datasets: NAME=DATASET/VERSION, a further split; can be given again."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a version to files on this machine. What broke goes on where it stood when the command is given again."""
    with session.session(_PATIENCE) as client:
        _require_free(output, force)
        console = session.errors_console if as_json else session.console
        name = _newest(client, version)
        others = [dict(zip(("split", "version"), _split(client, given), strict=True)) for given in split or []]
        started = client.dataset.export_version(
            name=name,
            format=format,
            compression=compression,
            text_column=text_column,
            with_source=source,
            other_splits=others,
        )
        done = watch(client, started.name, console)
        made = client.dataset.get_version_export(name=MessageToDict(done.result)["export"])
        targets = _targets(made, output)
        for target in targets.values():
            _require_free(target, force)
        _fetch(client, made, targets)
        if as_json:
            session.show(made, as_json)
            return
        _losses(made.report)
        for target in targets.values():
            session.console.print(f"{target}", soft_wrap=True)


def _split(client: Client, given: str) -> tuple[str, str]:
    name, sign, version = given.partition("=")
    if not sign:
        raise session.Misuse(f"--split {given}: write NAME=DATASET/VERSION")
    return name, _newest(client, version)


def _require_free(target: Path | None, force: bool) -> None:
    if target is not None and target.is_file() and not force:
        raise session.Misuse(f"{target} is there already; --force writes over it")


def _targets(made: Any, output: Path | None) -> dict[str, Path]:
    """Where each file of an export goes. Paths come from the platform, and stay below the folder all the same."""
    if len(made.files) == 1:
        path = made.files[0].path
        whole = output is not None and not output.is_dir()
        return {path: output if whole and output is not None else (output or Path()) / Path(path).name}
    folder = output or Path("-".join(made.name.split("/")[3:6:2]))
    targets = {file.path: folder / file.path for file in made.files}
    for target in targets.values():
        if not target.resolve().is_relative_to(folder.resolve()):
            raise session.Misuse(f"{target} would lie outside {folder}")
    return targets


def _fetch(client: Client, made: Any, targets: dict[str, Path]) -> None:
    """Downloads the files of an export under one bar."""
    method = contract.areas()["dataset"]["download_version_export"]
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=session.errors_console, transient=True) as bar:
        row = bar.add_task("download", total=sum(file.size for file in made.files))
        before = 0
        for file in made.files:
            client.download(
                method,
                {"name": made.name, "path": file.path},
                targets[file.path],
                size=file.size,
                sha256=file.sha256,
                progress=lambda done, _total, before=before: bar.update(row, completed=before + done),
            )
            before += file.size


def _losses(report: Any) -> None:
    """What a format could not say."""
    session.console.print(f"{report.rows_out:,} of {report.rows_in:,} rows")
    for note in report.notes:
        session.console.print(f"  {escape(note)}")
    for loss in report.losses:
        what = [
            f"{count:,} {word}" for count, word in ((loss.left_out, "left out"), (loss.changed, "changed")) if count
        ]
        session.console.print(f"  {', '.join(what)}: {escape(loss.reason)} (row {loss.row_ids[0][:12]}, ...)")


def _newest(client: Client, given: str) -> str:
    """A version's name; of a dataset alone, its newest version."""
    if "/versions/" in given or (not given.startswith("orgs/") and "/" in given):
        return session.full_name(given, _VERSION)
    found = client.dataset.get_dataset(name=session.full_name(given, _DATASET)).latest_version
    if not found:
        raise session.Misuse(f"{given} has no version yet: `argosy dataset import` makes one")
    return str(found)


def _report(title: str, report: Any) -> None:
    """What an import or a cleaning did."""
    table = Table(title=f"{title}: {report.rows_in:,} rows in, {report.rows_out:,} out")
    for column in ("rule", "dropped", "changed", "an example"):
        table.add_column(column)
    for rule in report.rules:
        name = f"{rule.rule}\n[dim]sha256 {rule.code_digest[:12]}[/]" if rule.code_digest else rule.rule
        table.add_row(name, f"{rule.dropped:,}", f"{rule.changed:,}", escape(_example(rule)))
    if report.line_error_count:
        lines = ", ".join(str(error.line) for error in report.line_errors[:5])
        first = report.line_errors[0].error
        table.add_row("cannot be read", f"{report.line_error_count:,}", "", escape(f"line {lines}; {first}"))
    session.console.print(table)
    for rule in report.rules:
        for fitted in rule.fitted:
            figures = ", ".join(f"{name} {value:.6g}" for name, value in sorted(fitted.figures.items()))
            mode = f"mode {fitted.mode}, " if fitted.mode else ""
            session.console.print(
                f"{rule.rule}, {escape(fitted.column)}: {fitted.values:,} values, {fitted.missing:,} missing; "
                f"{escape(mode)}{figures}"
            )
    _recall(report.near_duplicates)


def _recall(near: Any) -> None:
    """How sure it is that near-duplicates were found, where that was measured."""
    if near.planted_pairs:
        found, planted = near.found_pairs, near.planted_pairs
        curve = "  ".join(f"{at.similarity:g}: {at.probability:.3f}" for at in near.curve if 0.5 <= at.similarity < 1)
        session.console.print(
            f"near-duplicates from {near.threshold:g}: {found} of {planted} planted copies found "
            f"({near.expected_recall:.4f} expected); by similarity {curve}"
        )


def _example(rule: Any) -> str:
    """The first row that a rule dropped, with its reason, or changed."""
    if rule.examples:
        return f"{' '.join(rule.examples[0].text.split())[:50]!r}: {rule.examples[0].reason}"
    if rule.changed_examples:
        change = rule.changed_examples[0]
        return f"{change.before[:40]!r} became {change.after[:40]!r}"
    return ""


@training.command("run")
def run_training(
    name: Annotated[str, typer.Argument(help="Training.")],
    follow: Annotated[bool, typer.Option("--watch/--no-watch", "-w", help="Show loss, tokens/s and ETA.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Start a run of a training."""
    with session.session(_PATIENCE) as client:
        run = client.training.run_training(name=session.full_name(name, "orgs/*/trainings/*"))
        if follow:
            curve: list[Any] = []
            watch(client, run.task, session.errors_console if as_json else session.console, "training", curve)
            run = client.training.get_training_run(name=run.name)
            if not as_json:
                _curve(curve)
        session.show(run, as_json)
        if run.model_version and not as_json:
            session.console.print(f"model version: {session.short_name(run.model_version)}")


def _curve(metrics: list[Any]) -> None:
    """The loss over the steps as a line of blocks, a phase a line."""
    blocks = "▁▂▃▄▅▆▇█"
    phases: dict[str, list[float]] = {}
    for point in metrics:
        if "loss" in point.values:
            phases.setdefault(point.phase, []).append(point.values["loss"])
    for phase, losses in phases.items():
        kept = losses[:: max(1, len(losses) // 60)]
        low, high = min(kept), max(kept)
        scale = (len(blocks) - 1) / ((high - low) or 1.0)
        line = "".join(blocks[round((loss - low) * scale)] for loss in kept)
        session.console.print(f"{phase:<10} {losses[0]:.3f} {line} {losses[-1]:.3f}")


@task.command("watch")
def watch_task(name: Annotated[str, typer.Argument(help="orgs/ID/AREA/tasks/ID")], as_json: JsonOption = False) -> None:
    """Follow a task to its end. Exit code 3 when it fails."""
    with session.session(_PATIENCE) as client:
        console = session.errors_console if as_json else session.console
        session.show(watch(client, _task_name(name), console), as_json)


@task.command("logs")
def task_logs(name: Annotated[str, typer.Argument(help="orgs/ID/AREA/tasks/ID")], as_json: JsonOption = False) -> None:
    """Print the log of a task."""
    with session.session() as client:
        method = contract.areas()["task"]["list_task_logs"]
        logs = client.pages(method, {"parent": _task_name(name), "page_size": 1000})
        session.show_list(logs, as_json, ("time", "severity", "body"))


def _task_name(given: str) -> str:
    if given.startswith("orgs/"):
        return given
    area, _, ident = given.partition("/")
    return f"{session.organization()}/{area}/tasks/{ident}"


@model.command("list")
def list_models(
    project: Annotated[str | None, typer.Argument(help="Model project; else all.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List model versions, newest first."""
    from argosy.client import contract

    with session.session() as client:
        methods = contract.areas()["training"]
        if project:
            projects = [session.full_name(project, "orgs/*/modelProjects/*")]
        else:
            found = client.pages(methods["list_model_projects"], {"parent": session.organization()})
            projects = [item.name for item in found]
        versions = [
            version for name in projects for version in client.pages(methods["list_model_versions"], {"parent": name})
        ]
        columns = ("name", "state", "architecture", "parameter_count", "training_run", "create_time")
        session.show_list(versions, as_json, columns)


@model.command("show")
def show_model(name: Annotated[str, typer.Argument(help="PROJECT/VERSION")], as_json: JsonOption = False) -> None:
    """Show a model version with its gates and its card."""
    with session.session() as client:
        version = client.training.get_model_version(name=session.full_name(name, _MODEL))
        if as_json:
            session.show(version, True)
            return
        session.show({k: v for k, v in session.plain(version).items() if k not in ("model_card", "gates")}, False)
        for gate in version.gates:
            state = "[green]open[/green]" if gate.open else "[red]shut[/red]"
            session.console.print(f"gate {gate.gate}: {state}  {gate.rule}  {gate.reason}")
        if version.model_card:
            from rich.markdown import Markdown

            session.console.print(Markdown(version.model_card))


@evaluation.command("run")
def run_evaluation(
    model_version: Annotated[str, typer.Option("--model", "-m", help="PROJECT/VERSION")],
    data: Annotated[str, typer.Option("--dataset", "-d", help="Held-out rows: DATASET or DATASET/VERSION.")],
    baseline: Annotated[str | None, typer.Option(help="Rows that the model learned from, for the baselines.")] = None,
    template: Annotated[str, typer.Option(help="Prompt around the input, with {text}.")] = "{text}",
    text_column: str = "text",
    answer_column: str = "label",
    max_rows: int = 0,
    gate: Annotated[str, typer.Option(help="Gate to decide; empty: none.")] = "",
    margin: Annotated[float, typer.Option(help="By which the lower bound must beat the majority class.")] = 0.05,
    follow: WatchOption = True,
    as_json: JsonOption = False,
) -> None:
    """Measure a model version on held-out rows, and decide a gate by it."""
    with session.session(_PATIENCE) as client:
        started = client.eval.create_evaluation(
            parent=session.organization(),
            evaluation={
                "model_version": session.full_name(model_version, _MODEL),
                "dataset_version": _newest(client, data),
                "baseline_version": _newest(client, baseline) if baseline else "",
                "spec": {
                    "prompt_template": template,
                    "text_column": text_column,
                    "answer_column": answer_column,
                    "max_rows": max_rows,
                    "gate": gate,
                    "gate_margin": margin,
                },
            },
        )
        if follow:
            watch(client, started.task, session.errors_console if as_json else session.console, "evaluation")
            started = finished_evaluation(client, started.name)
        if as_json or not follow:
            session.show(started, as_json)
        else:
            _scores(started)


def _scores(found: Any) -> None:
    report = found.report
    table = Table(title=f"{session.short_name(found.name)}: {report.rows:,} rows")
    for column in ("", "exact match", "95 % interval"):
        table.add_column(column)
    rows = [("model", report.score), ("model, words masked", report.masked_score)]
    rows += [(name.replace("_", " "), score) for name, score in sorted(report.baselines.items())]
    for name, score in rows:
        if score.total:
            table.add_row(name, f"{score.value:.3f}", f"{score.lower:.3f} to {score.upper:.3f}")
    session.console.print(table)
    if report.verdict.gate:
        state = "open" if report.verdict.open else "shut"
        session.console.print(f"gate {report.verdict.gate}: {state}. {report.verdict.rule} {report.verdict.reason}")


@deploy.command()
def order(
    model_version: Annotated[str, typer.Option("--model", "-m", help="PROJECT/VERSION")],
    config: Annotated[str, typer.Option("--config", "-c", help="Deployment configuration; made if there is none.")],
    deployment: Annotated[
        str, typer.Option("--deployment", help="Id of the deployment: the model's name at the door.")
    ],
    why: Annotated[str, typer.Option(help="Justification.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Ask for a model version to be deployed. A second person approves it."""
    with session.session() as client:
        name = session.full_name(config, "orgs/*/deploymentConfigs/*")
        with suppress(Conflict):
            client.deploy.create_deployment_config(
                parent=session.organization(),
                deployment_config_id=name.split("/")[-1],
                deployment_config={"spec": {"runtime": "vllm"}},
            )
        made = client.deploy.create_work_order(
            parent=session.organization(),
            work_order={
                "deployment_config": name,
                "model_version": session.full_name(model_version, _MODEL),
                "deployment_id": deployment,
                "justification": why,
            },
        )
        session.show(made, as_json)
        if not as_json:
            short = session.short_name(made.name)
            session.console.print(f"somebody else approves it: argosy deploy approve {short}")


@deploy.command()
def approve(
    name: Annotated[str, typer.Argument(help="Work order.")],
    reason: str = "",
    follow: WatchOption = True,
    as_json: JsonOption = False,
) -> None:
    """Approve somebody else's work order; its roll-out begins."""
    with session.session(_PATIENCE) as client:
        full = session.full_name(name, "orgs/*/workOrders/*")
        made = client.deploy.approve_work_order(name=full, reason=reason)
        if follow and made.task:
            watch(client, made.task, session.errors_console if as_json else session.console, "roll-out")
            made = client.deploy.get_work_order(name=full)
        session.show(made, as_json)


@deploy.command()
def reject(
    name: Annotated[str, typer.Argument(help="Work order.")], reason: str = "", as_json: JsonOption = False
) -> None:
    """Reject a work order."""
    with session.session() as client:
        full = session.full_name(name, "orgs/*/workOrders/*")
        session.show(client.deploy.reject_work_order(name=full, reason=reason), as_json)


@deploy.command()
def status(
    name: Annotated[str | None, typer.Argument(help="Deployment; else all.")] = None, as_json: JsonOption = False
) -> None:
    """Show deployments: state, version, replicas."""
    with session.session() as client:
        if name:
            session.show(client.deploy.get_deployment(name=session.full_name(name, "orgs/*/deployments/*")), as_json)
            return
        found = client.deploy.list_deployments(parent=session.organization(), page_size=1000).deployments
        session.show_list(found, as_json, ("name", "state", "model_version", "ready_replicas", "live_time"))


@deploy.command()
def stop(name: Annotated[str, typer.Argument(help="Deployment.")], as_json: JsonOption = False) -> None:
    """Take the replicas of a deployment away."""
    with session.session() as client:
        session.show(client.deploy.stop_deployment(name=session.full_name(name, "orgs/*/deployments/*")), as_json)


@application.command()
def publish(
    name: Annotated[
        str, typer.Argument(help="Application; made if there is none and --prompt and --deployment are given.")
    ],
    prompt: Annotated[str | None, typer.Option(help="Template of a new prompt version, with {input}.")] = None,
    deployment: Annotated[str | None, typer.Option(help="Deployment that answers.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an application as it stands now the version that callers get as `app:ID`."""
    with session.session() as client:
        full = session.full_name(name, "orgs/*/applications/*")
        if prompt or deployment:
            _prepare(client, full, prompt, deployment)
        session.show(client.app.publish_application(name=full), as_json)


def _prepare(client: Client, full: str, prompt: str | None, deployment: str | None) -> None:
    org, ident = session.organization(), full.split("/")[-1]
    wanted: dict[str, str] = {}
    if prompt:
        with suppress(Conflict):
            client.app.create_prompt(parent=org, prompt_id=ident, prompt={})
        version = client.app.create_prompt_version(
            parent=f"{org}/prompts/{ident}", prompt_version={"template": prompt, "raw": True}
        )
        wanted["prompt_version"] = version.name
    if deployment:
        wanted["deployment"] = session.full_name(deployment, "orgs/*/deployments/*")
    try:
        client.app.create_application(parent=org, application_id=ident, application=wanted)
    except Conflict:
        client.app.update_application(application={"name": full, **wanted}, update_mask=list(wanted))


def mount(app: typer.Typer) -> dict[str, typer.Typer]:
    """Adds the commands; gives them by noun."""
    nouns = {
        "dataset": dataset,
        "training": training,
        "task": task,
        "model": model,
        "eval": evaluation,
        "deploy": deploy,
        "app": application,
    }
    for noun, commands in nouns.items():
        app.add_typer(commands, name=noun, rich_help_panel="The main job")
    return nouns
