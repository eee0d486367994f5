"""Supervised fine-tuning with TRL's SFTTrainer, in an environment of its own; see train.py.

    python train_trl.py '{"model": ..., "rows": ..., "output": ..., "steps": 30, "batch_size": 16, ...}'

Writes the tokens a second, padding not counted, from the first step to the last, into figures.json in the output.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """When the first step began and the last one ended."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = self.began or time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ended = time.perf_counter()


def run(options: dict[str, Any]) -> dict[str, float]:
    torch.set_num_threads(options["threads"])
    rows = [json.loads(line) for line in Path(options["rows"]).read_text().splitlines()]
    data = Dataset.from_list([{"prompt": row["package"] + "\n", "completion": row["text"]} for row in rows])
    tokenizer = AutoTokenizer.from_pretrained(options["model"])
    clock = Clock()
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(options["model"], dtype=torch.float32),
        processing_class=tokenizer,
        train_dataset=data,
        callbacks=[clock],
        args=SFTConfig(
            output_dir=options["output"],
            max_steps=options["steps"],
            per_device_train_batch_size=options["batch_size"],
            learning_rate=options["learning_rate"],
            lr_scheduler_type="cosine",
            adam_beta2=0.95,
            weight_decay=0.01,
            max_grad_norm=1.0,
            max_length=options["sequence_length"],
            completion_only_loss=True,
            gradient_checkpointing=False,
            train_sampling_strategy="group_by_length",
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
            seed=options["seed"],
        ),
    )
    trainer.train()
    tokens = sum(min(len(row), options["sequence_length"]) for row in trainer.train_dataset["input_ids"])
    return {"tokens_per_second": tokens / (clock.ended - clock.began)}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    figures = run(given)
    Path(given["output"]).mkdir(parents=True, exist_ok=True)
    (Path(given["output"]) / "figures.json").write_text(json.dumps(figures))
