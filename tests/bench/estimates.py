"""How good the estimates of the pre-flight are: ten recipes, predicted and then run for real on this machine.

    python -m tests.bench.estimates            # writes build/bench/estimates.json

Each recipe runs in a process of its own, which predicts time and memory from a hundred rows and from how fast earlier
runs computed, as the pre-flight does, and then trains. Before the first one some measurements stand for earlier runs.
Time is from the start of the engine to the finished model without the seconds in which other processes had its core,
memory the most that the workers held.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import orjson

from deploy.demo import corpus
from libs.common.blobs import BlobStore
from libs.compute.context import LocalContext
from services.training.domain.adapter import Adapter
from services.training.domain.estimate import Estimate, Rates, estimate, work_of
from services.training.domain.methods import Distillation, RewardRule, Rollouts, RuleKind
from services.training.domain.preflight import DataFacts
from services.training.domain.spec import Architecture, Method, Phase, TrainingSpec
from tests.bench.report import FOLDER, save
from tests.unit.training.samples import write_version

ROWS, HELDOUT, SAMPLE = 2000, 60, 100
TEACHER = "orgs/bench/modelProjects/m/versions/1"
TIME_MARGIN, MEMORY_MARGIN = 0.25, 0.15
# What this machine measured before, and how far apart: as far as it takes to become faster or slower.
EARLIER, PAUSE = 8, 4.0


def shape(hidden: int, layers: int, length: int, vocabulary: int = 4096) -> Architecture:
    """A decoder with heads of 32 to 64."""
    heads = max(2, hidden // 64)
    return Architecture(vocabulary, hidden, -(-hidden * 8 // 3 // 8) * 8, layers, heads, heads, length)


def phase(method: Method, steps: int, batch: int, **fields: Any) -> Phase:
    """A phase on docstrings, which are told from the package that they come from."""
    usual: dict[str, Any] = {"learning_rate": 3e-4, "text_column": "text", "answer_column": "package"}
    if method is not Method.PRETRAIN:
        usual["prompt_template"] = "{text}\nPackage:"
    return Phase(method, steps, batch, **usual | fields)


SMALL, MIDDLE = shape(128, 4, 128), shape(256, 8, 256)
RULES = Rollouts(group_size=4, max_new_tokens=16, rules=(RewardRule(RuleKind.EXACT_MATCH),))
# Name, spec, and whether it starts from a base of its own architecture.
RECIPES: dict[str, tuple[TrainingSpec, bool]] = {
    "pretrain-1m-64": (TrainingSpec((phase(Method.PRETRAIN, 60, 32),), replace(SMALL, sequence_length=64)), False),
    "pretrain-sft-1m-128": (TrainingSpec((phase(Method.PRETRAIN, 30, 16), phase(Method.SFT, 40, 16)), SMALL), False),
    "pretrain-7m-256": (TrainingSpec((phase(Method.PRETRAIN, 14, 8),), MIDDLE), False),
    "pretrain-28m-512": (
        TrainingSpec((phase(Method.PRETRAIN, 8, 2),), shape(512, 8, 512, 6000), checkpoint_every=5),
        False,
    ),
    "sft-7m-256": (TrainingSpec((phase(Method.SFT, 25, 8),), MIDDLE), True),
    "lora-18m-256": (
        TrainingSpec((phase(Method.SFT, 12, 8),), shape(384, 9, 256), adapter=Adapter(rank=8, alpha=16.0)),
        True,
    ),
    "dpo-7m-128": (TrainingSpec((phase(Method.DPO, 20, 8, beta=0.1),), replace(MIDDLE, sequence_length=128)), True),
    "reward-3m-128": (TrainingSpec((phase(Method.REWARD, 40, 8),), shape(192, 6, 128)), True),
    "distill-3m-128": (
        TrainingSpec(
            (phase(Method.DISTILL, 40, 16, distillation=Distillation(teacher_version=TEACHER)),), shape(192, 6, 128)
        ),
        True,
    ),
    "grpo-1m-64": (
        TrainingSpec((phase(Method.GRPO, 25, 4, rollouts=RULES, beta=0.04),), replace(SMALL, sequence_length=64)),
        True,
    ),
}


def rows() -> list[dict[str, str]]:
    """Docstrings with the package that they come from, and the beginning of another one as a worse answer."""
    built = corpus.build(FOLDER / "corpus", 100_000, 1)
    found = [orjson.loads(line) for line in Path(built.path).read_bytes().splitlines()[: ROWS + HELDOUT]]
    packages = [row["package"] for row in found]
    return [
        {
            "text": row["text"],
            "package": row["package"],
            "chosen": f"{row['package']}: {row['text'][:40]}",
            "rejected": f"{other}, perhaps: {row['text'][40:80]}",
        }
        for row, other in zip(found, [*packages[1:], "nothing"], strict=True)
    ]


def base(store: BlobStore, architecture: Architecture, texts: Sequence[str]) -> str:
    """A model version with fresh weights; the digest of its manifest."""
    from services.training.engines.layout import config_files
    from services.training.engines.model import llama_config, new_model
    from services.training.engines.tokenizer import chat_template, tokenizer_files, train_tokenizer

    tokenizer = train_tokenizer(texts, architecture.vocabulary_size)
    config = llama_config(architecture, tokenizer.get_vocab_size())
    template = chat_template("{text}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        new_model(config, 1).save_pretrained(folder)
        files = config_files(config) | tokenizer_files(tokenizer, architecture.sequence_length, template)
        for path, content in files.items():
            (folder / path).write_bytes(content)
        blobs = [(path.name, store.put_sync(path.read_bytes())) for path in sorted(folder.iterdir())]
    listed = [{"path": path, "sha256": blob.sha256, "size": blob.size} for path, blob in blobs]
    return store.commit_sync({"blobs": listed})


def prepare(folder: Path, spec: TrainingSpec, based: bool) -> None:
    """Writes what a recipe reads, in a process that is not measured."""
    store, given = BlobStore(f"file://{folder}/blobs"), rows()
    train, heldout = given[:ROWS], given[ROWS:]
    made: dict[str, Any] = {"spec": spec.to_json()}
    made["train"] = {"grant": "", "manifest_digest": write_version(store, train)}
    made["validation"] = {"grant": "", "manifest_digest": write_version(store, heldout)}
    if based:
        digest = base(store, spec.architecture, [row["text"] for row in train])
        made["base"] = {"name": TEACHER, "grant": "", "manifest_digest": digest}
        made["frozen"] = {TEACHER: {"grant": "", "manifest_digest": digest}}
    (folder / "spec.json").write_bytes(orjson.dumps(made))
    # From all over the version: its first rows are of few packages, and longer than the others.
    (folder / "sample.json").write_bytes(orjson.dumps(train[:: ROWS // SAMPLE]))


def predict(folder: Path, spec: TrainingSpec, based: bool, rates: Rates) -> Estimate:
    """What the pre-flight says."""
    sample = orjson.loads((folder / "sample.json").read_bytes())
    columns = dict.fromkeys(sample[0], "string")
    facts = [
        DataFacts("dataset_version", "train", ROWS, columns, sample),
        DataFacts("validation_version", "heldout", HELDOUT, columns, ()),
    ]
    return estimate(spec, spec.architecture.parameter_count if based else 0, work_of(spec, facts), rates)


def waited() -> float:
    """Seconds that the main thread was ready to run and other processes ran instead."""
    return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9


def measured() -> dict[str, float]:
    """How fast this process computes now, with as many threads as the recipes have."""
    import torch

    from services.training.engines.measuring import measure_rates

    torch.set_num_threads(1)
    return measure_rates()


def one(folder: Path, name: str, rates: Rates) -> None:
    """Predicts and runs a recipe in this process; prints what it found as JSON."""
    from services.training.engines import train

    spec, based = RECIPES[name]
    guess = predict(folder, spec, based, rates)
    store = BlobStore(f"file://{folder}/blobs")
    began, cpu, before = time.perf_counter(), time.process_time(), waited()
    result = train.run(
        LocalContext(orjson.loads((folder / "spec.json").read_bytes()), blobs_write=store, blobs_read=store)
    )
    usage, figures = result["usage"], result["results"]
    undisturbed = usage["seconds"] - (waited() - before)
    found = {
        "seconds": usage["seconds"],
        "undisturbed_seconds": undisturbed,
        "estimated_seconds": guess.seconds,
        "seconds_ratio": guess.seconds / undisturbed,
        "memory_bytes": usage["memory_bytes"],
        "estimated_memory_bytes": guess.memory_bytes,
        "memory_ratio": guess.memory_bytes / usage["memory_bytes"],
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - began,
        "train_seconds": figures["train_seconds"],
        "train_cpu_seconds": figures["cpu_seconds"],
        "tokens": figures["tokens"],
        "estimated_tokens": guess.tokens,
        "parameters": guess.parameter_count,
        "expected_rates": asdict(rates),
        "rates": usage["rates"],
    }
    print(json.dumps(found))


def measure(name: str, rates: Rates) -> dict[str, Any]:
    """A recipe in processes of its own."""
    with tempfile.TemporaryDirectory(prefix="argosy-estimates-") as folder:
        command = [sys.executable, "-m", "tests.bench.estimates", "--folder", folder]
        subprocess.run([*command, "--prepare", name], check=True)
        given = json.dumps(asdict(rates))
        run = subprocess.run([*command, "--one", name, "--rates", given], check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    seconds, disturbed = found["undisturbed_seconds"], found["seconds"] - found["undisturbed_seconds"]
    time_text = f"time {found['seconds_ratio']:.2f} ({seconds:.1f} s, and {disturbed:.1f} s of waiting)"
    print(f"{name:22} {time_text}  memory {found['memory_ratio']:.2f} ({found['memory_bytes'] >> 20} MiB)", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--prepare")
    parser.add_argument("--one")
    parser.add_argument("--rates", type=json.loads)
    parser.add_argument("--only", nargs="*", default=list(RECIPES))
    given = parser.parse_args()
    if given.prepare:
        return prepare(given.folder, *RECIPES[given.prepare])
    if given.one:
        return one(given.folder, given.one, Rates(**given.rates))
    rates = Rates(**measured())
    for _ in range(EARLIER - 1):
        time.sleep(PAUSE)
        rates = rates.followed_by(Rates(**measured()))
    found: dict[str, dict[str, Any]] = {}
    for name in given.only:
        found[name] = measure(name, rates)
        rates = rates.followed_by(Rates(**found[name]["rates"]))
    times = [each["seconds_ratio"] for each in found.values()]
    memories = [each["memory_ratio"] for each in found.values()]
    report = {
        "name": "estimates",
        "unit": "recipes within the margins",
        "ours": sum(abs(r - 1) <= TIME_MARGIN for r in times) + sum(abs(r - 1) <= MEMORY_MARGIN for r in memories),
        "peer": 2 * len(found),
        "peer_name": "all of them, in time and in memory",
        "rounds": 1,
        "figures": {
            "worst_time_error": max(abs(r - 1) for r in times),
            "worst_memory_error": max(abs(r - 1) for r in memories),
            "median_time_ratio": statistics.median(times),
            "median_memory_ratio": statistics.median(memories),
        },
        "recipes": found,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "machine": platform.processor() or platform.machine(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(),
    }
    report["ratio"] = report["ours"] / report["peer"]
    print(save(report))


if __name__ == "__main__":
    main()
