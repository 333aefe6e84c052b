"""transformers' Trainer on labelled texts, and TRL's SFTTrainer on packed conversations, as users set them to be fast.

Run: `python -m benchmarks.baselines.peers --task classify --model FOLDER --train-file FILE`. bf16, SDPA; texts grouped
by length, conversations packed by TRL (best fit), the loss over completions alone.
"""

import argparse
import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.baselines.data import SEED
from benchmarks.common import later_speed
from bigqa.engine.loop.meter import MemoryMeter
from bigqa.tasks.tables import read_table


class Clock(TrainerCallback):
    """Times each step, from the end of the one before: making batches is part of it."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self.ends.append((time.perf_counter(), time.process_time()))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Write down when a step was over."""
        self.ends.append((time.perf_counter(), time.process_time()))

    def steps(self, which: int) -> list[float]:
        """Return the seconds of each step: of the clock, 0, or of the processor, 1."""
        return [after[which] - before[which] for before, after in pairwise(self.ends)]


def main() -> None:
    """Train some steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", choices=("classify", "lm"), required=True)
    parser.add_argument("--model", required=True, help="folder with weights and a tokenizer")
    parser.add_argument("--train-file", type=Path, required=True)
    parser.add_argument("--label", default="label")
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32, help="texts, or packed rows of the longest length")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    seen: list[int] = []
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        made = _classifier(options, folder) if options.task == "classify" else _language_model(options, folder)
        made.data_collator = _counting(made.data_collator, seen)
        made.add_callback(clock)
        made.train()
    tokens = seen[: options.steps]
    peak_bytes = MemoryMeter(torch.device("cpu")).peak_bytes()
    print(json.dumps(later_speed(clock.steps(0), clock.steps(1), tokens) | {"peak_bytes": peak_bytes}))


def _counting(collate: Any, seen: list[int]) -> Any:
    """Write down how many real tokens a batch has."""

    def counted(rows: list[Any]) -> Any:
        seen.append(sum(len(row["input_ids"]) for row in rows))
        return collate(rows)

    return counted


def _settings(kind: Any, folder: str, options: argparse.Namespace, **more: Any) -> Any:
    return kind(
        output_dir=folder, per_device_train_batch_size=options.batch, max_steps=options.steps, learning_rate=5e-5,
        warmup_steps=1, weight_decay=0.01, adam_epsilon=1e-6, bf16=True, use_cpu=True, report_to=[], seed=SEED,
        save_strategy="no", logging_strategy="no", disable_tqdm=True, **more,
    )  # fmt: skip


def _classifier(options: argparse.Namespace, folder: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, attn_implementation="sdpa")
    rows = [row for row, _ in read_table(options.train_file)]
    text = next(name for name in ("text", "comments") if name in rows[0])
    numbers = model.config.label2id
    read = tokenizer([row[text] for row in rows], truncation=True, max_length=options.seq_len)
    data = [
        {"input_ids": ids, "token_type_ids": types, "labels": numbers[row[options.label]]}
        for ids, types, row in zip(read["input_ids"], read["token_type_ids"], rows, strict=True)
    ]

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        plain = [{name: row[name] for name in ("input_ids", "token_type_ids")} for row in batch]
        padded = dict(tokenizer.pad(plain, return_tensors="pt"))
        return padded | {"labels": torch.tensor([row["labels"] for row in batch])}

    settings = _settings(
        TrainingArguments, folder, options, train_sampling_strategy="group_by_length", remove_unused_columns=False
    )
    return Trainer(model=model, args=settings, train_dataset=data, data_collator=collate)


def _language_model(options: argparse.Namespace, folder: str) -> Any:
    import trl
    from datasets import Dataset

    rows = [row for row, _ in read_table(options.train_file)]
    settings = _settings(
        trl.SFTConfig, folder, options, packing=True, max_length=options.seq_len, completion_only_loss=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    return trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(options.model, attn_implementation="sdpa"),
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(options.model),
    )


if __name__ == "__main__":
    main()
