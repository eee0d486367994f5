"""Lengths of rows in buckets, rows at fault, and the picture of both."""

from __future__ import annotations

import json
from typing import Any

import pytest
from argosy.cli.preflight import bars

from services.training.domain.lengths import Lengths, histogram
from services.training.domain.methods import Method
from services.training.domain.row_faults import row_fault
from tests.unit.training.samples import phase


def test_buckets_double_and_hold_their_bound() -> None:
    found = histogram("sft", 32, [1, 16, 17, 32, 33, 40, 100], estimated=False, packed=False)
    assert (found.bounds, found.counts) == ((16, 32, 64, 128), (2, 2, 2, 1))
    assert found.cut_share == pytest.approx(3 / 7)
    assert (found.longest, found.p95) == (100, 100)
    assert found.mean == pytest.approx(239 / 7)
    assert histogram("sft", 32, list(range(1, 101)), estimated=False, packed=False).p95 == 95
    assert histogram("pretrain", 32, [99], estimated=True, packed=True).cut_share == 0
    assert Lengths.from_json(json.loads(json.dumps(found.__dict__))) == found


@pytest.mark.parametrize(
    ("method", "fields", "row", "expected"),
    [
        (Method.SFT, {}, {"text": "a", "label": "b"}, None),
        (Method.SFT, {}, {"text": "a"}, ("label", False, "is empty")),
        (Method.PRETRAIN, {}, {"text": ""}, ("text", False, "is empty")),
        (Method.DPO, {}, {"text": "a", "chosen": "b", "rejected": "b"}, ("rejected", False, "is the same as chosen")),
        (
            Method.SFT,
            {"messages_column": "m"},
            {"m": '[{"role": "user", "content": 4}]'},
            ("m[0].content", True, "must be a text"),
        ),
        (
            Method.DPO,
            {"messages_column": "m"},
            {"m": "q", "chosen": '[{"role": "user", "content": "a"}]', "rejected": "b"},
            ("chosen[0].role", True, "must be assistant, as it is an answer"),
        ),
        (Method.DPO, {"messages_column": "m"}, {"m": "q", "chosen": "a", "rejected": "b"}, None),
    ],
)
def test_a_row_at_fault_is_named(
    method: Method, fields: dict[str, Any], row: dict[str, str], expected: tuple[str, bool, str] | None
) -> None:
    found = row_fault("dataset_version", 7, "phase", phase(method, 1, **fields), row)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert (found.row, found.column, found.blocking, found.problem) == (7, *expected)


def test_few_rows_show_beside_many() -> None:
    assert [len(bar) for bar in bars([1000, 1, 0, 500])] == [40, 1, 0, 20]
    assert bars([]) == []
