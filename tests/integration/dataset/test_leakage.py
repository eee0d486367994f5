"""A test version against a training version, on Ray, and the answer kept."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest
from argosy.common.v1 import task_pb2, task_service_pb2
from argosy.dataset.v1 import dataset_service_pb2 as pb
from dataset_client import Client, refusal
from google.protobuf.json_format import MessageToDict

from libs.compute.context import LocalContext
from services.dataset.engines import leakage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

WORDS = [f"{first}{second}" for first in ("ba", "ke", "lo", "mi", "nu") for second in ("rat", "sel", "tin", "vom")]


def text(number: int) -> str:
    """A text of its own for each number."""
    return " ".join(random.Random(number).choices(WORDS, k=40))


def lines(column: str, texts: list[str]) -> bytes:
    return b"".join(json.dumps({column: text}).encode() + b"\n" for text in texts)


async def test_leaks_on_ray_are_those_of_one_process_and_asking_again_is_free(worker: Client) -> None:
    for name in ("train", "test", "copy"):
        await worker.dataset(name, secrecy=3)
    count = 2 * leakage.SHARD_ROWS + 1
    train = await worker.imported("orgs/acme/datasets/train", lines("body", [text(n) for n in range(count)]))
    tests = [text(5), f"{text(count - 1)} more", *(text(count + n) for n in range(8))]
    test = await worker.imported("orgs/acme/datasets/test", lines("text", tests))
    asked: dict[str, Any] = {"name": test.name, "train_version": train.name, "train_text_column": "body"}
    get = pb.GetLeakageCheckRequest(**asked)
    assert (await refusal(worker.GetLeakageCheck(get))).reason == "NOT_FOUND"
    task = await worker.finish(await worker.CheckLeakage(pb.CheckLeakageRequest(**asked)))
    assert task.state == task_pb2.Task.STATE_SUCCEEDED, task
    found = await worker.GetLeakageCheck(get)
    assert (found.exact_rows, found.near_rows, found.test_rows, found.train_rows) == (1, 1, 10, count)
    assert (found.leaked_share, task.result["leaked_share"], found.task) == (0.2, 0.2, task.name)
    assert (found.test_version, found.train_version, found.train_text_column) == (test.name, train.name, "body")

    store = worker.app.blobs
    spec = {"test": test.manifest_digest, "train": train.manifest_digest, "test_grant": "", "train_grant": ""}
    spec |= {"text_column": "text", "train_text_column": "body", "near_duplicate_threshold": 0.8}
    alone = await asyncio.to_thread(leakage.run, LocalContext(spec, blobs_write=store, blobs_read=store))
    shown = [MessageToDict(pair, preserving_proto_field_name=True) for pair in found.examples]
    assert shown == alone["leakage"]["examples"]
    logs = await worker.ListTaskLogs(task_service_pb2.ListTaskLogsRequest(parent=task.name))
    assert any(log.body.startswith("3 shards on Ray") for log in logs.logs), logs

    assert (await worker.CheckLeakage(pb.CheckLeakageRequest(**asked))).name == task.name
    # Evaluation asks for its gates as itself, for whoever created the versions.
    peer = Client(worker.mesh, worker.service, "eval", subject="services/eval")
    assert (await peer.CheckLeakage(pb.CheckLeakageRequest(**asked))).name == task.name
    assert (await peer.GetTask(task_service_pb2.GetTaskRequest(name=task.name))).state == task.state
    await peer.close()
    # The same rows under another name are the same question; another threshold is not.
    same = await worker.imported("orgs/acme/datasets/copy", lines("text", tests))
    again = pb.GetLeakageCheckRequest(name=same.name, train_version=train.name, train_text_column="body")
    assert (await worker.GetLeakageCheck(again)).task == task.name
    # Two who ask another question at the same time get one task, and so does who comes while it runs.
    others = [
        worker.CheckLeakage(pb.CheckLeakageRequest(**asked, near_duplicate_threshold=0.9, request_id=f"ask-{number}"))
        for number in range(3)
    ]
    names = {other.name for other in await asyncio.gather(*others)}
    assert len(names) == 1
    assert task.name not in names


async def test_bad_questions_are_told_apart(worker: Client) -> None:
    for name in ("train", "test"):
        await worker.dataset(name)
    train = await worker.imported("orgs/acme/datasets/train", lines("text", ["a"]))
    test = await worker.imported("orgs/acme/datasets/test", lines("text", [""]))
    missing = pb.CheckLeakageRequest(name=test.name, train_version=train.name, train_text_column="body")
    error = await refusal(worker.CheckLeakage(missing))
    assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", "train_text_column")
    absent = pb.CheckLeakageRequest(name=test.name, train_version=f"{train.name}9")
    assert (await refusal(worker.CheckLeakage(absent))).reason == "NOT_FOUND"
    stranger = worker.other(org="other")
    both = pb.CheckLeakageRequest(name=test.name, train_version=train.name)
    assert (await refusal(stranger.CheckLeakage(both))).reason == "NOT_FOUND"
    await stranger.close()
    task = await worker.finish(await worker.CheckLeakage(both))
    assert (task.state, task.error.reason) == (task_pb2.Task.STATE_FAILED, "CONTENT_INVALID")
    assert "no row of the test version has text in the column 'text'" in task.error.message
