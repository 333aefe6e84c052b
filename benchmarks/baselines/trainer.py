"""Hugging Face's Trainer as its users set it to be fast: bf16, SDPA, windows grouped by length.

Run: `python -m benchmarks.baselines.trainer --tokenizer VOCAB --train-file FILE`.
"""

import inspect
import tempfile
import time
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.baselines.data import SEED, arguments, model_of, report, windows_of


class Clock(TrainerCallback):
    """Times each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self.last = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        self.seconds.append(time.perf_counter() - self.last)


def main() -> None:
    """Train some steps."""
    options = arguments()
    model, tokenizer = model_of(options, _attn_implementation="sdpa")
    windows, _ = windows_of(options, tokenizer)
    named = [row | {"start_positions": row["start"], "end_positions": row["end"]} for row in windows]
    seen: list[tuple[int, int]] = []

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        sizes = [len(row["input_ids"]) for row in rows]
        seen.append((len(rows), sum(sizes)))
        plain = [{name: row[name].tolist() for name in ("input_ids", "token_type_ids")} for row in rows]
        batch = dict(tokenizer.pad(plain, return_tensors="pt"))
        return batch | {
            name: torch.tensor([int(row[name]) for row in rows]) for name in ("start_positions", "end_positions")
        }

    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        trainer = Trainer(
            model=model,
            args=_settings(folder, options),
            train_dataset=named,
            data_collator=collate,
            callbacks=[clock],
        )
        trainer.train()
    parts = options.batch // options.micro_batch
    steps = [seen[begin : begin + parts] for begin in range(0, options.steps * parts, parts)]
    counts, tokens = zip(*([sum(column) for column in zip(*step, strict=True)] for step in steps), strict=True)
    report(clock.seconds, list(counts), list(tokens), options.device)


def _settings(folder: str, options: Any) -> TrainingArguments:
    known = inspect.signature(TrainingArguments).parameters
    # The name of the setting changed with transformers 5.
    grouped = {"train_sampling_strategy": "group_by_length"} if "train_sampling_strategy" in known else {
        "group_by_length": True
    }  # fmt: skip
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=options.batch // options.micro_batch,
        max_steps=options.steps,
        learning_rate=5e-5,
        adam_epsilon=1e-6,
        weight_decay=0.01,
        warmup_steps=1,
        bf16=True,
        use_cpu=options.device == "cpu",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=SEED,
        **grouped,
    )


if __name__ == "__main__":
    main()
