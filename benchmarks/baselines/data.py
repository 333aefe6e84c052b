"""What every row trains on: the same windows in the same order. In: command line. Out: model, windows, a report.

Each row is a process of its own that prints one line of JSON at its end.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import speeds
from bigqa.engine.loop.meter import MemoryMeter
from bigqa.engine.loop.order import DataOrder
from bigqa.files import cache_folder
from bigqa.models.sources import load_config, load_model, load_tokenizer, resolve
from bigqa.tasks.features import build_features, window_lengths
from bigqa.tasks.qa.task import COLUMNS
from bigqa.tasks.windows import Lengths

SEED = 42


def arguments() -> argparse.Namespace:
    """Return what a row is told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="enliple-small")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--train-file", type=Path, required=True)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--doc-stride", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, help="windows at once, where a batch does not fit; else the batch")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--attention-dropout", type=float)
    options = parser.parse_args()
    options.micro_batch = options.micro_batch or options.batch
    return options


def windows_of(options: argparse.Namespace, tokenizer: Any) -> tuple[Any, list[int]]:
    """Return the windows, and the tokens of each."""
    lengths = Lengths(seq_len=options.seq_len, doc_stride=options.doc_stride)
    found = build_features(options.train_file, tokenizer, lengths, training=True, cache_dir=cache_folder() / "features")
    return found.only(COLUMNS), window_lengths(found)


def model_of(options: argparse.Namespace, **changes: Any) -> tuple[Any, Any]:
    """Return a model with random weights, as published, and its tokenizer."""
    source = resolve(options.model, tokenizer=options.tokenizer)
    config, tokenizer = load_config(source), load_tokenizer(source)
    if options.attention_dropout is not None:
        config.attention_probs_dropout_prob = options.attention_dropout
    for name, value in changes.items():
        setattr(config, name, value)
    return load_model(source, config, vocabulary_size=len(tokenizer), seed=SEED), tokenizer


def order_of(options: argparse.Namespace, lengths: list[int]) -> DataOrder:
    """Return which windows each step trains on: that of bigqa's own runs."""
    return DataOrder(num_windows=len(lengths), global_batch=options.batch, seed=SEED)


def report(seconds: list[float], windows: list[int], tokens: list[int], device: str) -> None:
    """Print a row's figures, memory as bigqa counts its own."""
    peak_bytes = MemoryMeter(torch.device(device)).peak_bytes()
    print(json.dumps(speeds(seconds, windows, tokens) | {"peak_bytes": peak_bytes}))
