"""Estimates from the rows: what is read, cut and left out. How good they are tells `make bench-estimates`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.training.domain.adapter import Adapter
from services.training.domain.costs import Cost, booked, cost_of, ratio
from services.training.domain.estimate import Rates, estimate, work_of
from services.training.domain.preflight import DataFacts
from services.training.domain.spec import Method, TrainingSpec
from services.training.domain.trainings import TrainingRun
from tests.unit.factories import resource_fields
from tests.unit.training.samples import phase, tiny_spec

# Three and a half characters a token: this one is of ten.
TEN = "x" * 35


def data(*rows: dict[str, str], held: int = 0) -> list[DataFacts]:
    columns = dict.fromkeys(("text", "label", "chosen", "rejected"), "string")
    return [
        DataFacts("dataset_version", "orgs/acme/datasets/d/versions/1", 1000, columns, rows),
        DataFacts("validation_version", "orgs/acme/datasets/d/versions/2", held, columns, ()),
    ]


def one(method: Method, **fields: Any) -> TrainingSpec:
    return tiny_spec(phases=(phase(method, 10, **fields),))


def test_rows_are_as_long_as_their_texts() -> None:
    spec = one(Method.SFT, prompt_template="{text}", answers=())
    (found,) = work_of(spec, data({"text": "", "label": "a"}, {"text": TEN, "label": "x" * 7})).phases
    # The begin of the prompt, ten tokens, two of the answer and its end; the row without a text is not read.
    assert found.tokens == pytest.approx(1 + 10 + 2 + 1)
    assert found.answer == pytest.approx(3)


def test_long_texts_are_cut_and_long_answers_left_out() -> None:
    spec = one(Method.SFT, prompt_template="{text}", answers=())
    # 32 tokens of context, of which 17 are kept for the answer.
    (found,) = work_of(spec, data({"text": TEN * 9, "label": "x" * 7})).phases
    assert found.tokens == pytest.approx(15 + 3)
    rows: list[dict[str, str]] = [{"text": TEN * 9, "label": TEN * 3}, {"text": "x" * 7, "label": "x" * 7}]
    (found,) = work_of(spec, data(*rows)).phases
    assert found.tokens == pytest.approx(1 + 2 + 3)


def test_a_pair_is_two_sequences_and_packed_texts_fill_the_context() -> None:
    rows = data({"text": "x" * 7, "chosen": "x" * 7, "rejected": "x" * 14})
    spec = one(Method.REWARD, prompt_template="{text}")
    assert estimate(spec, work=work_of(spec, rows)).tokens == 10 * 12 * 2 * round(3 + (3 + 5) / 2)
    spec = one(Method.PRETRAIN)
    assert estimate(spec, work=work_of(spec, rows)).tokens == 10 * 12 * 32


def test_without_rows_to_look_at_every_sequence_is_full() -> None:
    spec = one(Method.SFT)
    assert work_of(spec, []).phases == work_of(spec, data()).phases
    assert estimate(spec).tokens == 10 * 12 * 32


def test_twice_as_fast_a_machine_takes_half_the_time() -> None:
    spec = tiny_spec(phases=(phase(Method.PRETRAIN, 100_000),), checkpoint_every=1_000_000)
    slow, fast = Rates(50e9, 50e9, 2e-6), Rates(100e9, 100e9, 1e-6)
    assert estimate(spec, rates=slow).seconds == pytest.approx(2 * estimate(spec, rates=fast).seconds, rel=0.01)


def test_one_slow_minute_says_little_of_a_machine() -> None:
    usual, slow = Rates(100e9, 160e9, 1e-6), Rates(50e9, 80e9, 2e-6)
    once = usual.followed_by(slow)
    assert once.operations == pytest.approx(100e9 * 0.5**0.25)
    assert (once.bandwidth, once.call_seconds) == pytest.approx((160e9 * 0.5**0.25, 1e-6 * 2**0.25))
    # A machine that has become another one is known after some runs.
    for _ in range(12):
        once = once.followed_by(slow)
    assert once.operations == pytest.approx(slow.operations, rel=0.05)


def test_heldout_rows_checkpoints_and_the_probe_take_time() -> None:
    spec = tiny_spec(checkpoint_every=1000)
    rows = [{"text": TEN, "label": "zoo"}]
    alone = estimate(spec, work=work_of(spec, data(*rows))).seconds
    held = estimate(spec, work=work_of(spec, data(*rows, held=500)))
    probed = held.seconds - estimate(replace(spec, probe=False), work=work_of(spec, data(*rows, held=500))).seconds
    assert probed > 0
    assert held.seconds - probed > alone
    often = replace(spec, checkpoint_every=1)
    assert estimate(often, work=work_of(often, data(*rows))).seconds > alone
    assert estimate(often).memory_bytes > estimate(spec).memory_bytes


def test_costs_are_booked_cores_for_the_time() -> None:
    spec = tiny_spec(workers=2, threads_per_worker=3, gpus_per_worker=1)
    assert booked(spec) == (6, 2)
    assert cost_of(spec, 1800, 7, 9, 5) == Cost(1800, 7, cpu_hours=3, gpu_hours=1, tokens=9, storage_bytes=5)


def test_storage_is_the_model_and_two_checkpoints() -> None:
    spec = tiny_spec()
    whole = estimate(spec)
    # Single precision; a checkpoint has two moments beside the weights.
    weights = whole.parameter_count * 4
    assert weights + 2 * weights * 3 < whole.storage_bytes < 8 * weights
    tuned = estimate(replace(spec, adapter=Adapter(rank=2, target_modules=("q_proj",))), base_parameters=10**6)
    assert tuned.storage_bytes < 10**6
    merged = replace(spec, adapter=Adapter(rank=2, target_modules=("q_proj",), merge=True))
    assert estimate(merged, base_parameters=10**6).storage_bytes > 4 * 10**6


def test_a_ratio_needs_both_sides() -> None:
    run = TrainingRun(**resource_fields("orgs/acme/trainings/t/runs/1"), spec=tiny_spec())
    assert ratio(run, "seconds") == 0
    run.estimate = {"seconds": 3.0}
    assert ratio(run, "seconds") == 0
    run.actual = {"seconds": 4.0}
    assert ratio(run, "seconds") == pytest.approx(0.75)
