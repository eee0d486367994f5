"""`datasets.map` over the same rows, in an environment of its own; see tokenize.py.

    python tokenize_peer.py '{"rows": "rows.parquet", "tokenizer": "folder", "workers": 2, "target": "folder"}'

Writes seconds and the number of tokens into figures.json in the target.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerFast

datasets.disable_progress_bars()


def run(options: dict[str, Any]) -> dict[str, float]:
    target = Path(options["target"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=options["tokenizer"], eos_token="<|end|>")
    rows = datasets.Dataset.from_parquet(options["rows"], cache_dir=str(target / "cache"))
    end = tokenizer.eos_token_id

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = tokenizer(
            batch["text"], add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
        )["input_ids"]
        return {"input_ids": [[*row, end] for row in ids]}

    began, used = time.perf_counter(), sum(os.times()[:4])
    encoded = rows.map(
        encode,
        batched=True,
        num_proc=options["workers"],
        remove_columns=rows.column_names,
        cache_file_name=str(target / "encoded.arrow"),
        load_from_cache_file=False,
    )
    seconds, cpu_seconds = time.perf_counter() - began, sum(os.times()[:4]) - used
    lengths = encoded.with_format("arrow")
    tokens = sum(len(part.column("input_ids").combine_chunks().flatten()) for part in lengths.iter(10_000))
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "rows": float(len(encoded)), "tokens": float(tokens)}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    figures = run(given)
    (Path(given["target"]) / "figures.json").write_text(json.dumps(figures))
