"""The engine without Ray: it learns, resumes exactly, and says what is wrong."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from transformers import AutoModelForCausalLM, AutoTokenizer

from libs.common.blobs import BlobStore
from libs.compute.context import EngineCancelled, EngineError, EnginePaused, LocalContext
from services.training.domain.distribution import Distribution
from services.training.domain.spec import Method
from services.training.engines.launch import require_workers
from services.training.engines.train import run
from tests.unit.training.samples import TEMPLATE, WORDS, context, phase, rows, tiny_spec


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of several threads may differ in their last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(f"file://{tmp_path_factory.mktemp('blobs')}")


@pytest.fixture(scope="module")
def trained(store: BlobStore) -> tuple[dict[str, Any], LocalContext]:
    """A whole run: its result and what it reported."""
    ctx = context(store, tiny_spec(pretrain=15, sft=100), rows(120))
    return run(ctx), ctx


@pytest.fixture(scope="module")
def folder(store: BlobStore, trained: tuple[dict[str, Any], LocalContext], tmp_path_factory: Any) -> Path:
    """The files of the model as a server would lay them out."""
    folder: Path = tmp_path_factory.mktemp("model")
    for file in trained[0]["files"]:
        store.export_sync(file["sha256"], folder / file["path"])
    return folder


def weights(store: BlobStore, result: dict[str, Any]) -> dict[str, torch.Tensor]:
    digest = next(file["sha256"] for file in result["files"] if file["path"] == "model.safetensors")
    return load(store.read_sync(digest))


def test_it_learns(trained: tuple[dict[str, Any], LocalContext]) -> None:
    results = trained[0]["results"]
    assert results["pretrain.heldout_loss_after"] < results["pretrain.heldout_loss_before"] - 0.5
    assert results["sft.last_loss"] < results["sft.first_loss"] / 2
    assert results["sft.heldout_exact_match_before"] == 0
    assert results["sft.heldout_exact_match_after"] > 0.9


def test_effect_of_pretraining_is_measured_on_both_arms(trained: tuple[dict[str, Any], LocalContext]) -> None:
    results = trained[0]["results"]
    assert results["probe.steps"] == 10
    for arm in ("pretrained", "fresh"):
        assert 0 < results[f"probe.loss_{arm}"] < math.log(320) * 2
    assert results["probe.loss_pretrained"] != results["probe.loss_fresh"]


def test_it_reports_curves_progress_and_cost(trained: tuple[dict[str, Any], LocalContext]) -> None:
    result, ctx = trained
    recorded = ctx.recorded
    assert {name for name, _, _ in recorded.metrics} == {"pretrain", "sft"}
    # Every ten steps, and at checkpoints: every eleventh of both phases together, of which the first has fifteen.
    assert [step for name, step, _ in recorded.metrics if name == "sft"] == sorted(
        {*range(10, 101, 10), *range(7, 100, 11)}
    )
    for _, _, values in recorded.metrics:
        assert {"loss", "learning_rate", "tokens_per_second"} <= values.keys()
    fractions = [fraction for fraction, _ in recorded.progress]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert recorded.cost["tokens"] == result["tokens"] > 0
    assert recorded.cost["cpu_seconds"] > 0


def test_layout_loads_in_transformers_and_answers(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    for label, words in WORDS.items():
        ids = tokenizer(TEMPLATE.replace("{text}", f"{words} {words} 7"), return_tensors="pt")["input_ids"]
        answer = model.generate(ids, max_new_tokens=8)[0][ids.shape[1] :]
        assert tokenizer.decode(answer, skip_special_tokens=True) == label


def test_chat_template_asks_what_was_tuned(folder: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": 'lion "wolf"\n{{ x }}'}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False)
    assert rendered == '<|begin|>lion "wolf"\n{{ x }}\nPackage:'


def test_safetensors_header_is_plain(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__")
    ends = 0
    for tensor in sorted(header.values(), key=lambda tensor: tensor["data_offsets"][0]):
        begin, end = tensor["data_offsets"]
        assert tensor["dtype"] == "F32"
        assert begin == ends
        assert end - begin == 4 * math.prod(tensor["shape"])
        ends = end
    assert 8 + length + ends == len(content)
    assert "lm_head.weight" not in header


def test_manifest_names_every_file(store: BlobStore, trained: tuple[dict[str, Any], LocalContext]) -> None:
    result = trained[0]
    manifest = store.load_manifest_sync(result["manifest_digest"])
    assert manifest["blobs"] == result["files"]
    assert result["parameter_count"] == sum(tensor.numel() for tensor in weights(store, result).values())


def test_same_seed_gives_the_same_model(store: BlobStore) -> None:
    spec = tiny_spec(pretrain=4, sft=4)
    first, second = run(context(store, spec, rows(60))), run(context(store, spec, rows(60)))
    assert first["manifest_digest"] == second["manifest_digest"]
    other = run(context(store, replace(spec, seed=8), rows(60)))
    assert other["manifest_digest"] != first["manifest_digest"]


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_resume_gives_what_an_uninterrupted_run_gives(store: BlobStore, stop_after: int) -> None:
    spec = tiny_spec(pretrain=16, sft=18, checkpoint_every=6)
    whole = run(context(store, spec, rows(90)))
    stopped = context(store, spec, rows(90), cancel_when=lambda recorded: len(recorded.checkpoints) > stop_after)
    with pytest.raises(EngineCancelled):
        _run_asking_often(stopped)
    checkpoint = stopped.recorded.checkpoints[-1]
    again = context(store, spec, rows(90), resume=checkpoint, attempt=2)
    resumed = run(again)
    first, second = weights(store, whole), weights(store, resumed)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-5, atol=1e-6)
    assert resumed["tokens"] == whole["tokens"]
    assert resumed["results"]["pretrain.first_loss"] == whole["results"]["pretrain.first_loss"]
    # Nothing before the checkpoint was done again.
    done = checkpoint["progress"]["phase"] * 16 + checkpoint["progress"]["step"]
    repeated = [step for name, step, _ in again.recorded.metrics if (16 if name == "sft" else 0) + step <= done]
    assert repeated == []


def test_a_paused_run_stops_behind_a_checkpoint_and_its_curve_has_no_seam(store: BlobStore) -> None:
    # Checkpoints between two reports, so that a window of reports is cut.
    spec = tiny_spec(pretrain=25, sft=14, checkpoint_every=6)
    alone = context(store, spec, rows(90))
    run(alone)
    reported: list[tuple[str, int, dict[str, float]]] = []
    resume, attempts = None, 0
    while True:
        attempts += 1
        # It asks behind each checkpoint of weights.
        ctx = context(store, spec, rows(90), resume=resume, attempt=attempts, pause_when=lambda _: True)
        try:
            run(ctx)
        except EnginePaused:
            reported += ctx.recorded.metrics
            resume = ctx.recorded.checkpoints[-1]
            # Between two phases the next one stands at step 0.
            assert reported[-1][1] == resume["step"] or (reported[-1][1], resume["step"]) == (25, 0)
        else:
            reported += ctx.recorded.metrics
            break
    # At 6, 12, 18, 24 and between the phases, then at 30 and 36 of all steps.
    assert attempts == 8
    undisturbed = {(name, step): values["loss"] for name, step, values in alone.recorded.metrics}
    found = {(name, step): values["loss"] for name, step, values in reported}
    assert len(reported) == len(found) == len(undisturbed)
    assert found == pytest.approx(undisturbed, rel=1e-6)


def _run_asking_often(ctx: LocalContext) -> None:
    """Runs with a look for cancellation after each step instead of twice a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("services.training.engines.worker.ASK_SECONDS", 0.0)
        run(ctx)


@pytest.mark.parametrize(
    ("content", "fields", "expected"),
    [
        ([{"text": "a b c"}], {}, "no column 'label'"),
        ([{"body": "a b c", "label": "x"}], {}, "no column 'text'"),
        ([{"text": "", "label": "zoo"}] * 3, {}, "'text' together do not fill one sequence"),
        ([{"text": "lion " * 99, "label": ""}] * 20, {}, "Nothing to learn from in phase sft"),
        ([{"text": "lion " * 99, "label": "zoo"}] * 20, {"answers": ("cat",)}, "among the 1 listed answers"),
    ],
)
def test_bad_data_is_named(store: BlobStore, content: Any, fields: Any, expected: str) -> None:
    spec = tiny_spec(phases=(phase(Method.PRETRAIN, 2), phase(Method.SFT, 2, **fields)))
    with pytest.raises(EngineError, match=expected) as caught:
        run(context(store, spec, content))
    assert caught.value.reason == "CONTENT_INVALID"


def test_empty_version_is_refused(store: BlobStore) -> None:
    with pytest.raises(EngineError) as caught:
        run(context(store, tiny_spec(), []))
    assert caught.value.reason == "CONTENT_INVALID"


def test_divergence_is_an_error_with_advice(store: BlobStore) -> None:
    spec = tiny_spec(phases=(phase(Method.PRETRAIN, 60, learning_rate=1.0, warmup_fraction=0.0),))
    with pytest.raises(EngineError, match="Lower the learning rate") as caught:
        run(context(store, spec, rows(90)))
    assert caught.value.reason == "TRAINING_DIVERGED"


def test_base_model_gives_tokenizer_and_weights(store: BlobStore, trained: tuple[dict[str, Any], LocalContext]) -> None:
    spec = tiny_spec(phases=(phase(Method.SFT, 3, learning_rate=1e-4),))
    ctx = context(store, spec, rows(60))
    ctx.spec["base"] = {"grant": "", "manifest_digest": trained[0]["manifest_digest"]}
    result = run(ctx)
    assert result["results"]["sft.heldout_exact_match_before"] > 0.9
    tokenizers = [
        next(f["sha256"] for f in each["files"] if f["path"] == "tokenizer.json") for each in (result, trained[0])
    ]
    assert tokenizers[0] == tokenizers[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"workers": 9}, "spec.workers: 9 workers need 9 CPUs; all nodes together have 8"),
        ({"workers": 3, "threads_per_worker": 4}, "spec.workers: 3 workers need 12 CPUs"),
        ({"gpus_per_worker": 1}, "spec.gpus_per_worker: 1 workers need 1 GPUs; all nodes together have 0"),
    ],
)
def test_more_workers_than_all_nodes_have_room_for_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        require_workers(tiny_spec(**fields), {"CPU": 8.0})
    assert caught.value.reason == "PREFLIGHT_FAILED"
    require_workers(tiny_spec(workers=9, distribution=Distribution(min_workers=2)), {"CPU": 8.0})
