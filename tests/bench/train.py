"""Supervised fine-tuning of a Llama with 20 million parameters: ours, a plain PyTorch loop, TRL's SFTTrainer.

    python -m tests.bench.train            # writes build/bench/train.json

The rows are docstrings to be written from the name of their package, so the loss counts at nearly every token; what
ours saves elsewhere, where it computes logits at the answers alone, does not show here. All three train the same model
on the same rows in single precision with AdamW, clipped gradients and a cosine, on both cores, and count the tokens
that are no padding. Ours is the engine with everything on: order that can be resumed, metrics, and a checkpoint of all
state, written while the steps go on. The plain loop takes the very batches of ours from memory; TRL, in an environment
of its own, orders and pads its rows by itself, in groups of like length as ours. Rounds are interleaved, and each goes
to TRL and back, so that a machine that slows down or warms up favours nobody; the clocks run from the first step to the
last.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson
import torch
from torch import nn
from transformers import LlamaForCausalLM

from deploy.demo import corpus
from libs.common.blobs import BlobStore
from libs.compute.context import LocalContext
from services.training.domain.spec import Architecture, Method, Phase, TrainingSpec
from services.training.engines import train
from services.training.engines.batches import AnswerRows
from services.training.engines.encode import Examples, encode_answers
from services.training.engines.layout import config_files
from services.training.engines.loop import seed_worker
from services.training.engines.model import llama_config, new_model
from services.training.engines.optimise import BETAS, CLIP_NORM, learning_rate
from services.training.engines.order import Order
from services.training.engines.tokenizer import SpecialTokens, chat_template, tokenizer_files, train_tokenizer
from tests.bench.peers import install
from tests.bench.report import FOLDER, ROOT, save
from tests.unit.training.samples import write_version

# torch and transformers as in the lock: the same kernels and the same model code on every side.
TRL = ("trl==1.16.0", "datasets==5.2.0", "torch==2.13.0", "transformers==5.19.0", "accelerate==1.15.0")
ARCHITECTURE = Architecture(
    vocabulary_size=8192,
    hidden_size=384,
    intermediate_size=1024,
    layers=10,
    heads=6,
    key_value_heads=6,
    sequence_length=128,
)
STEPS, BATCH, ROUNDS, THREADS, SEED = 30, 16, 3, 2, 1
# One behind step 18, whose writing may last two steps.
CHECKPOINT_EVERY = 20
TURNS = ("ours", "plain_loop", "trl", "plain_loop", "ours")
PHASE = Phase(
    Method.SFT,
    STEPS,
    BATCH,
    learning_rate=3e-4,
    warmup_fraction=0.1,
    weight_decay=0.01,
    text_column="package",
    answer_column="text",
    prompt_template="{text}\n",
)


def pairs() -> list[dict[str, Any]]:
    """Packages and their docstrings, as many as the steps read, none longer than the context."""
    built = corpus.build(FOLDER / "corpus", 100_000, 1)
    rows = [orjson.loads(line) for line in Path(built.path).read_bytes().splitlines()]
    short = [{"package": row["package"], "text": row["text"]} for row in rows if 120 <= len(row["text"]) <= 300]
    return short[: STEPS * BATCH]


class Start:
    """The same beginning for all: a model version with fresh weights, its tokenizer, and the rows.

    Args:
        folder: for the store and for the layout that TRL reads.
    """

    def __init__(self, folder: Path) -> None:
        self.store = BlobStore(f"file://{folder}/blobs")
        self.rows = pairs()
        self.version = write_version(self.store, self.rows)
        self.tokenizer = train_tokenizer((row["text"] for row in self.rows * 20), ARCHITECTURE.vocabulary_size)
        self.config = llama_config(ARCHITECTURE, self.tokenizer.get_vocab_size())
        self.folder = folder / "model"
        self.folder.mkdir()
        model = new_model(self.config, SEED)
        model.save_pretrained(self.folder)
        template = chat_template("{text}\n")
        files = config_files(self.config) | tokenizer_files(self.tokenizer, ARCHITECTURE.sequence_length, template)
        for name, content in files.items():
            (self.folder / name).write_bytes(content)
        self.base = self._commit()
        (folder / "rows.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in self.rows))

    def _commit(self) -> str:
        blobs = []
        for path in sorted(self.folder.iterdir()):
            blob = self.store.put_sync(path.read_bytes())
            blobs.append({"path": path.name, "sha256": blob.sha256, "size": blob.size})
        return self.store.commit_sync({"blobs": blobs})


def ours(start: Start) -> float:
    """Tokens a second of the engine."""
    spec = TrainingSpec(
        (PHASE,), ARCHITECTURE, threads_per_worker=THREADS, seed=SEED, checkpoint_every=CHECKPOINT_EVERY
    )
    given = {
        "spec": spec.to_json(),
        "train": {"grant": "", "manifest_digest": start.version},
        "base": {"grant": "", "manifest_digest": start.base},
    }
    ctx = LocalContext(given, blobs_write=start.store, blobs_read=start.store)
    result = train.run(ctx)
    written = [each["step"] for each in ctx.recorded.checkpoints if 0 < each.get("step", 0) < STEPS]
    if len(written) != 1:
        sys.exit(f"Checkpoints were written behind the steps {written}; the report speaks of one.")
    return float(result["results"]["sft.tokens_per_second"])


def plain(start: Start) -> float:
    """Tokens a second of the loop that everybody writes: forward with labels, backward, clip, step."""
    seed_worker(SEED, THREADS)
    pairs = [(row["package"], (row["text"],)) for row in start.rows]
    longest = ARCHITECTURE.sequence_length
    # Names of packages are short: no prompt is cut.
    encoded = encode_answers(start.tokenizer, SpecialTokens(), pairs, PHASE.prompt_template, longest - 17, longest)
    rows = AnswerRows(Examples(**encoded.arrays))
    order = Order(len(rows), BATCH, SEED, 0, rows.lengths)
    model = LlamaForCausalLM.from_pretrained(start.folder, dtype=torch.float32)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=PHASE.learning_rate, betas=BETAS, weight_decay=0.01)
    batches = [rows.batch(order.batch(step)) for step in range(STEPS)]
    tokens, began = 0, time.perf_counter()
    for step, batch in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, STEPS, PHASE.learning_rate, PHASE.warmup_fraction)
        inputs, places, targets = batch.tensors
        labels = torch.full((inputs.numel(),), -100)
        labels[places] = targets
        logits = model(input_ids=inputs, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimiser.step()
        assert math.isfinite(loss.item())
        tokens += batch.tokens
    return tokens / (time.perf_counter() - began)


def trl(python: Path, start: Start, folder: Path) -> float:
    """Tokens a second of SFTTrainer."""
    options = {
        "model": str(start.folder),
        "rows": str(folder / "rows.jsonl"),
        "output": str(folder / "trl"),
        "steps": STEPS,
        "batch_size": BATCH,
        "threads": THREADS,
        "seed": SEED,
        "sequence_length": ARCHITECTURE.sequence_length,
        "learning_rate": PHASE.learning_rate,
    }
    done = subprocess.run(
        [str(python), str(ROOT / "tests" / "bench" / "train_trl.py"), json.dumps(options)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "OMP_NUM_THREADS": str(THREADS)},
        cwd=folder,
    )
    if done.returncode:
        sys.exit(f"train_trl.py failed:\n{done.stderr[-3000:]}")
    return float(json.loads((folder / "trl" / "figures.json").read_text())["tokens_per_second"])


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """The whole benchmark."""
    python = install("trl", TRL)
    start = Start(folder)
    parameters = sum(parameter.numel() for parameter in new_model(start.config, SEED).parameters())
    print(f"{parameters:,} parameters, {len(start.rows):,} rows, {STEPS} steps of {BATCH}", flush=True)
    sides = {"ours": lambda: ours(start), "plain_loop": lambda: plain(start), "trl": lambda: trl(python, start, folder)}
    found: list[dict[str, float]] = []
    for number in range(rounds):
        took: dict[str, list[float]] = {}
        for name in TURNS:
            took.setdefault(name, []).append(sides[name]())
        # All read as many tokens each time: the harmonic mean is that of their seconds.
        found.append({name: round(statistics.harmonic_mean(values), 1) for name, values in took.items()})
        print(f"round {number + 1}: {found[-1]}", flush=True)
    medians = {name: statistics.median(one[name] for one in found) for name in found[0]}
    ratios = {
        f"ratio_{name}": round(statistics.median(one["ours"] / one[name] for one in found), 3)
        for name in ("plain_loop", "trl")
    }
    packages = ("torch", "transformers", "tokenizers")
    return {
        "name": "train",
        "unit": "tokens/s",
        "ours": medians["ours"],
        "peer": medians["plain_loop"],
        "ratio": ratios["ratio_plain_loop"],
        "peer_name": "a plain PyTorch loop; TRL's SFTTrainer among the figures",
        "rounds": found,
        "figures": {**ratios, "trl": medians["trl"], "parameters": parameters},
        "on": {
            "ours": "order that can be resumed, metrics every 10 steps, 1 checkpoint of all state",
            "peer": "batches of ours from memory, nothing else",
            "trl": "groups of like length, no checkpoint, no log",
        },
        "versions": {name: importlib.metadata.version(name) for name in packages}
        | {"python": platform.python_version(), "peers": list(TRL)},
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def main() -> None:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="argosy-bench-") as name:
        report = measure(Path(name), arguments.rounds)
    figures = report["figures"]
    print(
        f"{report['ours']:,} tokens/s, {figures['ratio_plain_loop']} of the plain loop, {figures['ratio_trl']} of TRL: "
        f"{save(report)}"
    )


if __name__ == "__main__":
    main()
