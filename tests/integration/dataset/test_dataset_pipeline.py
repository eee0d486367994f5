"""From a file to a training set: upload, import, clean, split, read, on Ray."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import random
from typing import Any

import openpyxl
import pyarrow as pa
import pytest
from argosy.common.v1 import options_pb2, task_pb2, task_service_pb2
from argosy.dataset.v1 import dataset_pb2
from argosy.dataset.v1 import dataset_service_pb2 as pb
from dataset_client import Client, refusal
from google.protobuf.json_format import MessageToDict, ParseDict

from libs.common.blobs import BlobStore
from libs.compute.context import LocalContext
from libs.compute.versions import read_rows
from services.dataset.domain.recipes import DEFAULT_RECIPE
from services.dataset.engines import cleaning, importing
from services.dataset.engines.index import content_digest
from services.dataset.engines.writing import VersionWriter
from services.dataset.handlers.cleaning import parse_recipe
from tests.unit.dataset.memory import MemoryBlobs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

WORDS = [
    f"{first}{second}" for first in ("ba", "ke", "lo", "mi", "nu") for second in ("rat", "sel", "tin", "vom", "zug")
]


def text(number: int, words: int = 40) -> str:
    """A text of its own for each number."""
    return " ".join(random.Random(number).choices(WORDS, k=words))


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


async def read(client: Client, name: str, **fields: Any) -> pa.Table:
    batches: list[pa.RecordBatch] = []
    async for answer in client.ReadVersion(pb.ReadVersionRequest(name=name, **fields)):
        assert len(answer.batch) <= 1 << 20
        batches += pa.ipc.open_stream(answer.batch)
    return pa.Table.from_batches(batches)


async def test_from_file_to_training_set(worker: Client) -> None:
    await worker.dataset("raw", secrecy=3)
    for name in ("train", "test"):
        await worker.dataset(name)
    rows = [{"text": text(number), "source": f"file-{number % 20}.py", "n": number} for number in range(600)]
    rows += [{"text": text(7), "source": "copy.py", "n": -1}, {"text": "<p>" + text(8) + "</p>", "source": "a.html"}]
    rows += [{"text": "short", "source": "file-1.py"}]
    raw = await worker.imported("orgs/acme/datasets/raw", lines(rows) + b"{broken\n\xff\n")
    assert (raw.name, raw.row_count) == ("orgs/acme/datasets/raw/versions/v1", len(rows))
    assert [(error.line, raw.report.line_error_count) for error in raw.report.line_errors] == [
        (len(rows) + 1, 2),
        (len(rows) + 2, 2),
    ]
    assert raw.secrecy == 3
    assert raw.lineage.parents[0].relation == "imported_from"

    task = await worker.finish(await worker.CleanVersion(pb.CleanVersionRequest(name=raw.name)))
    assert task.state == task_pb2.Task.STATE_SUCCEEDED, task
    clean = await worker.GetDatasetVersion(pb.GetDatasetVersionRequest(name=str(task.result["version"])))
    dropped = {rule.rule: rule.dropped for rule in clean.report.rules if rule.dropped}
    assert dropped == {"exact_duplicates": 2, "length": 1}
    rules = {rule.rule: rule for rule in clean.report.rules}
    assert list(rules)[:3] == ["html", "normalise", "length"]
    assert rules["length"].examples[0].reason == "5 characters, at least 20 wanted"
    assert rules["html"].changed_examples[0].before.startswith("<p>")
    assert clean.row_count == 600
    assert clean.secrecy == 3
    assert [(parent.name, parent.digest) for parent in clean.lineage.parents] == [(raw.name, raw.manifest_digest)]
    diff = await worker.DiffDatasetVersions(pb.DiffDatasetVersionsRequest(name=clean.name, base=raw.name))
    assert (diff.added, diff.removed, diff.common) == (0, 3, 600)

    split = pb.SplitVersionRequest(
        name=clean.name,
        train_dataset="orgs/acme/datasets/train",
        test_dataset="orgs/acme/datasets/test",
        test_fraction=0.25,
        seed=3,
    )
    task = await worker.finish(await worker.SplitVersion(split))
    assert task.state == task_pb2.Task.STATE_SUCCEEDED, task
    train = await read(worker, str(task.result["train_version"]))
    test = await read(worker, str(task.result["test_version"]))
    assert train.num_rows + test.num_rows == 600
    assert test.num_rows == 150
    assert not set(train["source"].to_pylist()) & set(test["source"].to_pylist())
    holder = await worker.GetDataset(pb.GetDatasetRequest(name="orgs/acme/datasets/train"))
    assert holder.secrecy == 3

    trainer = worker.other(role=options_pb2.ROLE_EDITOR)
    assert (await refusal(trainer.GrantRead(grant_of(str(task.result["train_version"]))))).reason == "PEER_NOT_ALLOWED"
    peer = worker.as_peer("training")
    granted = await peer.GrantRead(grant_of(str(task.result["train_version"])))
    batches = list(read_rows(BlobStore.from_grant(granted.grant), granted.manifest_digest, ["text"]))
    assert [value for batch in batches for value in batch["text"].to_pylist()] == train["text"].to_pylist()
    assert granted.secrecy == 3
    for other in (trainer, peer):
        await other.close()


def grant_of(version: str) -> pb.GrantReadRequest:
    return pb.GrantReadRequest(name=version, holder="orgs/acme/training/tasks/t")


async def test_a_second_import_stores_only_what_is_new(worker: Client) -> None:
    await worker.dataset("docs")
    rows = [{"text": text(number)} for number in range(50)]
    first = await worker.imported("orgs/acme/datasets/docs", lines(rows))
    second = await worker.imported("orgs/acme/datasets/docs", lines([*rows, {"text": text(50)}]))
    assert first.new_byte_count == first.byte_count
    assert second.new_byte_count == second.byte_count - first.byte_count
    third = await worker.RollBackDataset(pb.RollBackDatasetRequest(name="orgs/acme/datasets/docs", version=first.name))
    assert (third.manifest_digest, third.content_digest) == (first.manifest_digest, first.content_digest)
    dataset = await worker.GetDataset(pb.GetDatasetRequest(name="orgs/acme/datasets/docs"))
    assert dataset.latest_version == third.name == "orgs/acme/datasets/docs/versions/v3"


async def test_the_same_rows_come_out_of_every_kind_of_file(worker: Client) -> None:
    rows = [{"text": text(number), "kind": f"k{number % 3}"} for number in range(20)]
    book = openpyxl.Workbook()
    for values in (("text", "kind"), *((row["text"], row["kind"]) for row in rows)):
        book.worksheets[0].append(values)
    sheet = io.BytesIO()
    book.save(sheet)
    table = "text\tkind\n" + "".join(f"{row['text']}\t{row['kind']}\n" for row in rows)
    files = {
        "rows.jsonl.gz": gzip.compress(lines(rows)),
        "rows.json": json.dumps(rows).encode(),
        "rows.tsv": table.encode(),
        "rows.xlsx": sheet.getvalue(),
    }
    await worker.dataset("docs")
    plain = await worker.imported("orgs/acme/datasets/docs", lines(rows))
    for name, data in files.items():
        version = await worker.imported("orgs/acme/datasets/docs", data, name)
        assert (version.content_digest, version.new_byte_count) == (plain.content_digest, 0), name
        assert not version.report.line_error_count


async def test_a_large_file_is_imported_in_shards_on_ray(worker: Client) -> None:
    await worker.dataset("docs")
    rows = [{"text": text(number % 3, 40), "filler": f"{number} " * 4500} for number in range(3400)]
    data = lines([*rows[:2000], "broken", *rows[2000:], rows[0]])
    assert len(data) > importing._WHOLE_BYTES
    version = await worker.imported("orgs/acme/datasets/docs", data)
    assert (version.row_count, version.report.line_error_count) == (3401, 1)
    assert version.report.line_errors[0].line == 2001
    assert version.new_byte_count < version.byte_count
    expected = VersionWriter(MemoryBlobs())
    for row in (*rows, rows[0]):
        expected.add(dict(row), "", 1)
    assert version.content_digest == content_digest(expected.finish())
    logs = await worker.ListTaskLogs(task_service_pb2.ListTaskLogsRequest(parent=version.task))
    assert any("shards on Ray" in log.body for log in logs.logs), logs


async def test_shards_on_ray_give_what_one_process_gives(worker: Client) -> None:
    await worker.dataset("docs")
    rows = [{"text": f"{text(number % 6000, 12)} {'<b>' * (number % 2)}"} for number in range(3 * cleaning.SHARD_ROWS)]
    version = await worker.imported("orgs/acme/datasets/docs", lines(rows))
    task = await worker.finish(await worker.CleanVersion(pb.CleanVersionRequest(name=version.name)))
    assert task.state == task_pb2.Task.STATE_SUCCEEDED, task
    clean = await worker.GetDatasetVersion(pb.GetDatasetVersionRequest(name=str(task.result["version"])))
    store = worker.app.blobs
    spec = {"version": version.manifest_digest, "grant": "", "text_column": "text", "recipe": DEFAULT_RECIPE.to_json()}
    alone = await asyncio.to_thread(cleaning.run, LocalContext(spec, blobs_write=store, blobs_read=store))
    assert clean.manifest_digest == alone["manifest_digest"]
    assert clean.row_count == 6000
    logs = await worker.ListTaskLogs(task_service_pb2.ListTaskLogsRequest(parent=task.name))
    bodies = [log.body for log in logs.logs]
    assert any(body.startswith("3 shards on Ray") for body in bodies), bodies
    assert not any("runs in this process" in body for body in bodies), bodies


async def test_a_recipe_is_tried_on_a_sample(worker: Client) -> None:
    await worker.dataset("docs")
    version = await worker.imported(
        "orgs/acme/datasets/docs", lines([{"text": f"<b>{text(n, 9)}</b>"} for n in range(50)])
    )
    recipe = "steps: [html, {words: {min_words: 99}}]"
    request = pb.CleanVersionRequest(name=version.name, recipe=recipe, sample_rows=20)
    task = await worker.finish(await worker.CleanVersion(request))
    assert task.state == task_pb2.Task.STATE_SUCCEEDED, task
    report = ParseDict(MessageToDict(task.result)["report"], dataset_pb2.Report())
    assert (report.rows_in, report.rows_out) == (20, 0)
    assert [(rule.rule, rule.changed, rule.dropped) for rule in report.rules] == [("html", 20, 0), ("words", 0, 20)]
    dataset = await worker.GetDataset(pb.GetDatasetRequest(name="orgs/acme/datasets/docs"))
    assert dataset.latest_version == version.name


async def test_a_file_without_a_readable_row_fails_with_a_reason(worker: Client) -> None:
    await worker.dataset("docs")
    upload = await worker.upload(b"not json\n")
    task = await worker.finish(
        await worker.ImportVersion(pb.ImportVersionRequest(parent="orgs/acme/datasets/docs", upload=upload.name))
    )
    assert task.state == task_pb2.Task.STATE_FAILED
    assert task.error.reason == "CONTENT_INVALID"
    assert "line 1" in task.error.message
    dataset = await worker.GetDataset(pb.GetDatasetRequest(name="orgs/acme/datasets/docs"))
    assert dataset.latest_version == ""
    assert dataset_pb2.DatasetType.Name(dataset.type) == "DATASET_TYPE_TEXT"


async def test_an_export_imported_again_is_the_same_version(worker: Client) -> None:
    for name in ("docs", "copy"):
        await worker.dataset(name, secrecy=3)
    turns = [[{"role": "user", "content": text(n, 5)}, {"role": "assistant", "content": text(n, 9)}] for n in range(50)]
    rows = [{"messages": messages, "n": number, "source": "chats"} for number, messages in enumerate(turns)]
    version = await worker.imported("orgs/acme/datasets/docs", lines(rows))
    formats = {"jsonl": "", "json": "gzip", "parquet": "", "openai": "zstd", "alpaca": "", "sharegpt": ""}
    for format_name, compression in formats.items():
        request = pb.ExportVersionRequest(name=version.name, format=format_name, compression=compression)
        made = await export(worker, request)
        assert (made.secrecy, made.format, made.report.rows_out, len(made.report.losses)) == (3, format_name, 50, 0)
        assert [(parent.name, parent.digest) for parent in made.lineage.parents] == [
            (version.name, version.manifest_digest)
        ]
        (data,) = (await files_of(worker, made)).values()
        upload = await worker.upload(data, made.files[0].path)
        again = pb.ImportVersionRequest(parent="orgs/acme/datasets/copy", upload=upload.name, format=format_name)
        task = await worker.finish(await worker.ImportVersion(again))
        assert task.state == task_pb2.Task.STATE_SUCCEEDED, task
        copy = await worker.GetDatasetVersion(pb.GetDatasetVersionRequest(name=str(task.result["version"])))
        assert copy.content_digest == version.content_digest, format_name
    plain = pb.ExportVersionRequest(name=version.name, format="jsonl")
    made = await export(worker, plain)
    assert (await export(worker, plain)).name == made.name
    plain.with_source = True
    assert (await export(worker, plain)).manifest_digest != made.manifest_digest
    folder = pb.ExportVersionRequest(
        name=version.name,
        format="datasets",
        other_splits=[pb.ExportSplit(split="test", version="orgs/acme/datasets/copy/versions/v1")],
    )
    assert sorted(await files_of(worker, await export(worker, folder))) == [
        "README.md",
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
    ]
    broken = await worker.imported("orgs/acme/datasets/copy", lines([{"messages": "none"}]))
    task = await worker.finish(await worker.ExportVersion(pb.ExportVersionRequest(name=broken.name, format="alpaca")))
    assert (task.state, task.error.reason) == (task_pb2.Task.STATE_FAILED, "CONTENT_INVALID")
    assert "messages: not a list" in task.error.message


async def export(client: Client, request: pb.ExportVersionRequest) -> dataset_pb2.VersionExport:
    task = await client.finish(await client.ExportVersion(request))
    assert task.state == task_pb2.Task.STATE_SUCCEEDED, task
    return await client.GetVersionExport(pb.GetVersionExportRequest(name=str(task.result["export"])))


async def files_of(client: Client, made: dataset_pb2.VersionExport) -> dict[str, bytes]:
    """The files of an export, checked."""
    found: dict[str, bytes] = {}
    for file in made.files:
        request = pb.DownloadVersionExportRequest(name=made.name, path=file.path)
        found[file.path] = b"".join([part.data async for part in client.DownloadVersionExport(request)])
        assert hashlib.sha256(found[file.path]).hexdigest() == file.sha256
    return found


async def test_a_version_is_profiled(worker: Client) -> None:
    await worker.dataset("docs")
    rows = [{"text": f"{text(number, 9)}", "label": "a" if number % 3 else "b"} for number in range(60)]
    version = await worker.imported("orgs/acme/datasets/docs", lines(rows))
    get = pb.GetVersionProfileRequest(name=version.name)
    assert (await refusal(worker.GetVersionProfile(get))).reason == "NOT_FOUND"
    request = pb.ProfileVersionRequest(name=version.name)
    for _ in range(2):  # the second takes the place of the first
        task = await worker.finish(await worker.ProfileVersion(request))
        assert task.state == task_pb2.Task.STATE_SUCCEEDED, task
        found = await worker.GetVersionProfile(get)
        assert (found.version, found.row_count, found.task) == (version.name, 60, task.name)
    found = await worker.GetVersionProfile(get)
    columns = {column.name: column for column in found.columns}
    assert [(value.value, value.count) for value in columns["label"].top_values] == [("a", 40), ("b", 20)]
    assert columns["text"].words.min == 9
    page = await worker.RenderVersionProfile(pb.RenderVersionProfileRequest(name=version.name))
    assert "<svg" in page.html


OWN_STEPS = """
steps:
  - impute: {columns: [n], method: mean}
  - standardise: {columns: [n]}
  - compute: {column: size, value: length(text)}
  - expression: {keep: "n < 1.5", name: usual}
  - python:
      name: upper
      function: |
        def row(row):
            row["text"] = row["text"].upper()
            return row
"""


async def test_steps_of_ones_own_on_ray_give_what_one_process_gives(worker: Client) -> None:
    await worker.dataset("table")
    count = 2 * cleaning.SHARD_ROWS + 1
    rows = [{"text": text(number, 3), **({} if number % 5 == 0 else {"n": number})} for number in range(count)]
    version = await worker.imported("orgs/acme/datasets/table", lines(rows))
    started = await worker.CleanVersion(pb.CleanVersionRequest(name=version.name, recipe=OWN_STEPS))
    task = await worker.finish(started)
    assert task.state == task_pb2.Task.STATE_SUCCEEDED, task
    clean = await worker.GetDatasetVersion(pb.GetDatasetVersionRequest(name=str(task.result["version"])))
    store = worker.app.blobs
    recipe = parse_recipe(OWN_STEPS).to_json()
    spec = {"version": version.manifest_digest, "grant": "", "text_column": "text", "recipe": recipe}
    alone = await asyncio.to_thread(cleaning.run, LocalContext(spec, blobs_write=store, blobs_read=store))
    assert clean.manifest_digest == alone["manifest_digest"]
    rules = {rule.rule: rule for rule in clean.report.rules}
    assert list(rules) == ["impute", "standardise", "compute", "usual", "upper"]
    assert rules["impute"].fitted[0].missing == len(range(0, count, 5)) == rules["impute"].changed
    assert rules["usual"].dropped == count - clean.row_count > 0
    assert (rules["upper"].operator, len(rules["upper"].code_digest)) == ("python", 64)
    assert rules["upper"].changed == clean.row_count


async def test_a_function_that_fails_is_told_with_its_row(worker: Client) -> None:
    await worker.dataset("table")
    version = await worker.imported("orgs/acme/datasets/table", lines([{"text": "a", "n": n} for n in (1, 0)]))
    recipe = "steps: [{python: {function: \"def row(row):\\n    return 1 / row['n']\"}}]"
    task = await worker.finish(await worker.CleanVersion(pb.CleanVersionRequest(name=version.name, recipe=recipe)))
    assert task.state == task_pb2.Task.STATE_FAILED
    assert "it gave float; wanted is the row" in str(task.error)
    recipe = recipe.replace("return 1 /", "return 1 > 1 /")
    task = await worker.finish(await worker.CleanVersion(pb.CleanVersionRequest(name=version.name, recipe=recipe)))
    assert "position 2): line 2: ZeroDivisionError: division by zero" in str(task.error)
    assert task.attempt == 1
