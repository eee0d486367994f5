"""Verbs of datasets: import, clean, augment, split, look at, export."""

from __future__ import annotations

import enum
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from argosy.cli import session
from argosy.cli.detectors import annotate_version, read_targets
from argosy.cli.export import export_version, fetch_media
from argosy.cli.live import watch
from argosy.cli.options import DATASET, PATIENCE, JsonOption, WatchOption, follow_task, newest, upload_file
from argosy.cli.reports import follow_to_report, show_recall, show_report
from argosy.client import Client
from argosy.client.errors import Conflict, NotFound
from argosy.dataset.v1 import dataset_pb2
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Value
from rich.markup import escape
from rich.table import Table

_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.zst")

dataset = typer.Typer(help="Datasets: import, clean, split, look at.", no_args_is_help=True)
dataset.command("export")(export_version)
dataset.command("targets")(read_targets)
dataset.command("annotate")(annotate_version)
dataset.command("media")(fetch_media)


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
            "sharegpt, dpo, coco, label-studio, yolo, voc."
        ),
    ] = "",
    type: Annotated[
        DatasetKind | None, typer.Option(help="Of a dataset that is made; text, where the file is no archive.")
    ] = None,
    follow: WatchOption = True,
    as_json: JsonOption = False,
) -> None:
    """Read a file, a link or a database into a new version. An upload that broke goes on where it stands."""
    with session.session(PATIENCE) as client:
        _require_one(source, secret)
        full = session.full_name(name, DATASET)
        _make_dataset(client, full, source, type)
        if secret:
            given = {"secret": session.full_name(secret, "orgs/*/secrets/*"), "query": query}
        elif "://" in source:
            given = {"uri": source}
        else:
            given = {"upload": upload_file(client, Path(source))}
        started = client.dataset.import_version(parent=full, format=format, **given)
        follow_to_report(client, started, follow, as_json)


def _require_one(source: str, secret: str) -> None:
    if bool(source) == bool(secret):
        raise session.Misuse("give either a file or a link, or --secret")
    if source and "://" not in source and not Path(source).is_file():
        raise session.Misuse(f"there is no file {source}")


def _make_dataset(client: Client, name: str, source: str, kind: DatasetKind | None) -> None:
    """Unless it is there. What an archive holds is not guessed: a dataset keeps its type."""
    if kind is None and source.lower().endswith(_ARCHIVES):
        try:
            client.dataset.get_dataset(name=name)
        except NotFound:
            raise session.Misuse("say what the archive holds: --type image, audio or video") from None
        return
    with suppress(Conflict):
        client.dataset.create_dataset(
            parent=session.organization(),
            dataset_id=name.split("/")[-1],
            dataset={"type": f"DATASET_TYPE_{(kind or DatasetKind.text).name.upper()}"},
        )


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
    with session.session(PATIENCE) as client:
        given = _read(file) if file.suffix in (".yaml", ".yml") or file.is_file() else recipe
        name = newest(client, version)
        started = client.dataset.clean_version(name=name, text_column=text_column, recipe=given, sample_rows=sample)
        if sample and follow and not as_json:
            done = watch(client, started.name, session.console)
            report = ParseDict(MessageToDict(done.result)["report"], dataset_pb2.Report())
            show_report(f"{session.short_name(name)}, a trial", report)
            return
        follow_to_report(client, started, follow, as_json)


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
    with session.session(PATIENCE) as client:
        name = newest(client, version)
        started = client.dataset.augment_version(name=name, text_column=text_column, recipe=_read(recipe))
        follow_to_report(client, started, follow, as_json)


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
    with session.session(PATIENCE) as client:
        name = newest(client, version)
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
    text_column: Annotated[str, typer.Option(help="Column in which near-duplicates are looked for.")] = "text",
    fraction: Annotated[float, typer.Option(min=0.001, max=0.999, help="Share of groups on the test side.")] = 0.1,
    seed: int = 0,
    follow: WatchOption = True,
    as_json: JsonOption = False,
) -> None:
    """Split into training and test, and take near-duplicates across the split out of the training side."""
    with session.session(PATIENCE) as client:
        sides = [session.full_name(side, DATASET) for side in (train, test)]
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
            name=newest(client, version),
            train_dataset=sides[0],
            test_dataset=sides[1],
            group_column=group,
            text_column=text_column,
            test_fraction=fraction,
            seed=seed,
        )
        follow_task(client, started, follow, as_json)


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
    with session.session(PATIENCE) as client:
        asked = {
            "name": newest(client, test),
            "train_version": newest(client, train),
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
        show_recall(found.near_duplicates)
