"""The filters of the BigScience corpus and near-duplicates with Data-Juicer, in its own environment; see clean.py.

    python clean_data_juicer.py '{"source": ..., "target": ..., "workers": 2}'

Writes the seconds into seconds.json in the target.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

PROCESS = [
    {"text_length_filter": {"min_len": 20, "max_len": 100_000}},
    {"words_num_filter": {"lang": "en", "tokenization": False, "min_num": 20, "max_num": 100_000}},
    {"average_line_length_filter": {"min_len": 10}},
    {"maximum_line_length_filter": {"min_len": 10}},
    {"special_characters_filter": {"min_ratio": 0.0, "max_ratio": 0.35}},
    {
        "word_repetition_filter": {
            "lang": "en",
            "tokenization": False,
            "rep_len": 10,
            "min_ratio": 0.0,
            "max_ratio": 0.5,
        }
    },
    {"character_repetition_filter": {"rep_len": 10, "min_ratio": 0.0, "max_ratio": 0.5}},
]
NEAR = {
    "document_minhash_deduplicator": {
        "tokenization": "space",
        "window_size": 5,
        "num_permutations": 128,
        "jaccard_threshold": 0.8,
        "num_bands": 16,
        "num_rows_per_band": 8,
    }
}


def run(options: dict[str, Any]) -> float:
    from data_juicer.config import init_configs
    from data_juicer.core import DefaultExecutor

    target = Path(options["target"])
    target.mkdir(parents=True, exist_ok=True)
    recipe = {
        "project_name": "bench",
        "dataset_path": options["source"],
        "export_path": str(target / "kept.jsonl"),
        "np": options["workers"],
        "text_keys": "text",
        "use_cache": False,
        "open_tracer": False,
        "process": [*PROCESS, NEAR] if options["near"] else PROCESS,
    }
    path = target / "recipe.json"
    path.write_text(json.dumps(recipe))
    config = init_configs(["--config", str(path)])
    start = time.perf_counter()
    DefaultExecutor(config).run()
    return time.perf_counter() - start


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    seconds = run(given)
    (Path(given["target"]) / "seconds.json").write_text(json.dumps(seconds))
