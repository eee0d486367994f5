"""Model FLOP utilisation of the engine on one GPU: a Llama with a billion parameters at 2,048 tokens, without Ray.

    python -m tests.bench.train_gpu            # writes build/bench/train_gpu.json

The engine is the one of every run, and so is its specification: bfloat16, fused attention, fused AdamW, compiled
layers, checkpoints and metrics on. The utilisation is that of Chowdhery et al., 2022 (PaLM), appendix B: operations of
the model, none of those that are done twice, over what the GPU could do in bfloat16. Rows are random tokens.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from libs.common.blobs import BlobStore
from libs.compute.context import LocalContext
from services.training.domain.distribution import Distribution, Precision
from services.training.domain.spec import Architecture, Method, Phase, TrainingSpec
from services.training.engines.encoded_rows import in_memory
from services.training.engines.launch import run_here
from services.training.engines.model import llama_config
from services.training.engines.prepared import Preparation
from services.training.engines.tokenizer import train_tokenizer
from tests.bench.report import save

# The shape of Llama 3.2 1B with tied embeddings, and a smaller vocabulary.
ARCHITECTURE = Architecture(
    vocabulary_size=32_768,
    hidden_size=2048,
    intermediate_size=8192,
    layers=16,
    heads=32,
    key_value_heads=8,
    sequence_length=2048,
)
STEPS, BATCH = 60, 8
# The layers are compiled in the first ones.
WARM_STEPS = 20
# Dense operations a second in bfloat16, from the data sheets.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}


def specification(steps: int, batch: int) -> TrainingSpec:
    """What is measured."""
    return TrainingSpec(
        (Phase(Method.PRETRAIN, steps, batch, learning_rate=3e-4, warmup_fraction=0.1, weight_decay=0.1),),
        ARCHITECTURE,
        gpus_per_worker=1,
        seed=1,
        checkpoint_every=steps,
        distribution=Distribution(precision=Precision.BFLOAT16, compile=True),
    )


def operations_a_token(architecture: Architecture) -> float:
    """Of forward and backward pass: six a parameter, and those of the attention over the whole context."""
    attention = 12 * architecture.layers * architecture.hidden_size * architecture.sequence_length
    return 6.0 * architecture.parameter_count + attention


def plan(store: BlobStore, rows: int) -> dict[str, Any]:
    """Prepared data: random tokens, and the smallest tokenizer there is."""
    preparation = Preparation(store)
    preparation.add_file("tokenizer.json", train_tokenizer(["random"], 260).to_str().encode())
    random = np.random.default_rng(1)
    shape = (rows, ARCHITECTURE.sequence_length)
    sequences = random.integers(3, ARCHITECTURE.vocabulary_size, shape, dtype=np.int32)
    preparation.add_arrays(0, "train", preparation.store_arrays({"sequences": in_memory(sequences)}))
    config = llama_config(ARCHITECTURE, ARCHITECTURE.vocabulary_size).to_diff_dict()
    return {"prepared": preparation.commit(), "config": config, "base": "", "rows": rows}


def measure(folder: Path, steps: int, batch: int, peak: float) -> dict[str, Any]:
    """One run; the median rate of the windows behind the warm-up."""
    store, spec = BlobStore(f"file://{folder}/blobs"), specification(steps, batch)
    ctx = LocalContext({}, blobs_write=store)
    run_here(ctx, spec, plan(store, batch * 8))
    rates = [values["tokens_per_second"] for _, step, values in ctx.recorded.metrics if step > WARM_STEPS]
    rate = float(np.median(rates))
    utilisation = rate * operations_a_token(ARCHITECTURE) / peak
    return {
        "name": "train_gpu",
        "unit": "share of the GPU's operations",
        "ours": round(utilisation, 4),
        "peer": 1.0,
        "ratio": round(utilisation, 4),
        "peer_name": f"{torch.cuda.get_device_name()}, {peak / 1e12:.0f} tera-operations a second in bfloat16",
        "rounds": [round(value, 1) for value in rates],
        "figures": {
            "tokens_per_second": round(rate, 1),
            "parameters": ARCHITECTURE.parameter_count,
            "gpu_bytes": torch.cuda.max_memory_reserved(),
        },
        "on": {"ours": "bfloat16, fused attention, fused AdamW, compiled layers, metrics, 1 checkpoint of all state"},
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def known_peak(name: str) -> float | None:
    """Operations a second of a GPU by its name."""
    return next((peak for model, peak in PEAKS.items() if model in name), None)


def main() -> None:
    """Measures and writes the report, or says what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--peak", type=float, help="operations a second of the GPU in bfloat16; else by its name")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("train_gpu needs a CUDA GPU, and there is none here; `make bench-train` measures the CPU.")
    peak = arguments.peak or known_peak(torch.cuda.get_device_name())
    if peak is None:
        sys.exit(f"What {torch.cuda.get_device_name()} can do is not known here; give --peak.")
    if arguments.steps <= WARM_STEPS:
        sys.exit(f"--steps must be above {WARM_STEPS}: the layers are compiled in the first ones.")
    with tempfile.TemporaryDirectory(prefix="argosy-bench-") as name:
        report = measure(Path(name), arguments.steps, arguments.batch, peak)
    rate = report["figures"]["tokens_per_second"]
    print(f"model FLOP utilisation {report['ours']:.3f} at {rate:,} tokens/s: {save(report)}")


if __name__ == "__main__":
    main()
