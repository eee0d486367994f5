"""The filters of `web-en` and near-duplicates with datatrove, in an environment of its own; see clean.py.

    python clean_datatrove.py '{"source": ..., "target": ..., "workers": 2, "words": "", "near": 0.8}'

Writes the seconds into seconds.json in the target. `words` gives datatrove other words than spaCy's: a regular
expression, and one for the ends of sentences.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import HashConfig, MinhashConfig
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils import word_tokenizers
from loguru import logger

logger.remove()
logging.disable(logging.WARNING)


class OtherWords:
    """Words and sentences by regular expressions."""

    def __init__(self, word: str, sentence_end: str) -> None:
        self._word, self._end = re.compile(word), re.compile(sentence_end)

    def word_tokenize(self, text: str) -> list[str]:
        return self._word.findall(text)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """As many as there are sentences; only their number is asked for."""
        return [(0, 0)] * max(1, len(self._end.findall(text)))


def filters() -> list[Any]:
    return [GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(), FineWebQualityFilter(), PIIFormatter()]


def run(options: dict[str, Any]) -> float:
    source, target, workers = options["source"], Path(options["target"]), options["workers"]
    if options["words"]:
        other = OtherWords(*options["words"])
        word_tokenizers.load_word_tokenizer = lambda _language: other

    def execute(name: str, pipeline: list[Any], tasks: int) -> None:
        LocalPipelineExecutor(
            pipeline=pipeline,
            tasks=tasks,
            workers=min(workers, tasks),
            logging_dir=str(target / "logs" / name),
            start_method="fork",
        ).run()

    start = time.perf_counter()
    filtered = str(target / "filtered")
    execute("filter", [JsonlReader(source), *filters(), JsonlWriter(filtered, compression=None)], workers)
    if options["near"]:
        # 16 bands of 8, as ours chooses for 0.8; each candidate pair counts, there is no verification.
        config = MinhashConfig(hash_config=HashConfig(precision=64), num_buckets=16, hashes_per_bucket=8, n_grams=5)
        places = {name: str(target / name) for name in ("signatures", "buckets", "remove")}
        signature = MinhashDedupSignature(output_folder=places["signatures"], config=config)
        execute("signatures", [JsonlReader(filtered), signature], workers)
        buckets = MinhashDedupBuckets(input_folder=places["signatures"], output_folder=places["buckets"], config=config)
        execute("buckets", [buckets], config.num_buckets)
        cluster = MinhashDedupCluster(input_folder=places["buckets"], output_folder=places["remove"], config=config)
        execute("cluster", [cluster], 1)
        drop = MinhashDedupFilter(input_folder=places["remove"])
        kept = JsonlWriter(str(target / "kept"), compression=None)
        execute("kept", [JsonlReader(filtered), drop, kept], workers)
    return time.perf_counter() - start


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    seconds = run(given)
    (Path(given["target"]) / "seconds.json").write_text(json.dumps(seconds))
