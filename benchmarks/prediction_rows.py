"""One row of `benchmarks.predicting`: logits of windows. In: a model folder, a data file. Out: a line of JSON.

Each row is a process of its own. `--keep FILE` appends the logits of every window to a file, and goes on where it ends.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForQuestionAnswering

from bigqa.engine.inference import Logits, window_logits
from bigqa.engine.loop.meter import peak_resident_bytes
from bigqa.files import cache_folder
from bigqa.models.sources import load_tokenizer, resolve
from bigqa.run.prediction import kind_and_options, load_for_prediction
from bigqa.tasks.features import build_features, window_lengths
from bigqa.tasks.qa.task import COLUMNS

ROWS = {"padded loop": "fp32", "bigqa fp32": "fp32", "bigqa": "auto"}
"""Each row's precision."""
Stream = Callable[[Any, Sequence[int]], Iterator[Logits]]
BATCH = 16
"""Windows of the padded loop's batches."""


def features(model: Path, data: Path) -> tuple[Any, list[int]]:
    """Return a data set's windows as a model folder wants them, and the tokens of each."""
    lengths = kind_and_options(model, None)[1]
    tokenizer = load_tokenizer(resolve(str(model)))
    windows = build_features(data, tokenizer, lengths, training=False, cache_dir=cache_folder() / "features")
    return windows, window_lengths(windows)


def loaded(row: str, folder: Path) -> Stream:
    """Load a row's model. Returns: what yields (window, start logits, end logits) of windows, in order."""
    if row == "padded loop":
        model = AutoModelForQuestionAnswering.from_pretrained(folder, attn_implementation="eager").eval()
        tokenizer, seq_len = load_tokenizer(resolve(str(folder))), kind_and_options(folder, None)[1].seq_len
        return lambda windows, sizes: _padded_loop(model, tokenizer, seq_len, _inputs(windows), sizes)
    found = load_for_prediction(str(folder), "cpu", None, ROWS[row])
    return lambda windows, sizes: window_logits(found.model, found.task, _inputs(windows), sizes, found.device)


def _inputs(windows: Any) -> Any:
    return windows.only([name for name in COLUMNS if name in windows.names])


@torch.inference_mode()
def _padded_loop(model: Any, tokenizer: Any, seq_len: int, inputs: Any, sizes: Sequence[int]) -> Iterator[Logits]:
    """As users of the library write it: fp32, materialised attention, every window padded to the longest allowed."""
    for begin in range(0, len(sizes), BATCH):
        rows = inputs[begin : begin + BATCH]
        count = len(rows["input_ids"])
        plain = [{name: rows[name][i].tolist() for name in ("input_ids", "token_type_ids")} for i in range(count)]
        batch = tokenizer.pad(plain, padding="max_length", max_length=seq_len, return_tensors="pt")
        output = model(**batch)
        start_BS, end_BS = output.start_logits.numpy(), output.end_logits.numpy()
        for index, size in enumerate(sizes[begin : begin + BATCH]):
            yield begin + index, start_BS[index, :size], end_BS[index, :size]


def timed(row: str, folder: Path, windows: Any, sizes: Sequence[int]) -> dict[str, Any]:
    """Return the speed over some windows, with the model loaded and warm before."""
    stream = loaded(row, folder)
    list(stream(windows.select(range(BATCH)), sizes[:BATCH]))
    started = time.perf_counter()
    list(stream(windows, sizes))
    seconds = time.perf_counter() - started
    speed = {"windows_per_s": len(sizes) / seconds, "tokens_per_s": sum(sizes) / seconds}
    return speed | {"peak_bytes": peak_resident_bytes()}


def keep(row: str, folder: Path, windows: Any, sizes: Sequence[int], file: Path) -> None:
    """Append the logits of all windows to a file, from where it ends."""
    ends = [0, *itertools.accumulate(8 * size for size in sizes)]
    there = file.stat().st_size if file.is_file() else 0
    done = sum(end <= there for end in ends[1:]) // BATCH * BATCH if there < ends[-1] else len(sizes)
    stream = loaded(row, folder)
    with open(file, "ab") as kept:
        kept.truncate(ends[done])
        for _, start_S, end_S in stream(windows.select(range(done, len(sizes))), sizes[done:]):
            kept.write(np.stack([start_S, end_S]).astype(np.float32).tobytes())


def kept_logits(file: Path, sizes: Sequence[int]) -> Iterator[Logits]:
    """Yield the logits that `keep` has kept."""
    numbers = np.fromfile(file, np.float32)
    begin = 0
    for window, size in enumerate(sizes):
        yield window, numbers[begin : begin + size], numbers[begin + size : begin + 2 * size]
        begin += 2 * size


def main() -> None:
    """Run one row."""
    parser = argparse.ArgumentParser(description="Logits of a data set's windows in one of the rows.")
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--windows", type=int, help="the first so many only")
    parser.add_argument("--keep", type=Path, help="keep the logits in this file; else the speed is measured")
    options = parser.parse_args()
    windows, sizes = features(options.model, options.data)
    sizes = sizes[: options.windows]
    windows = windows.select(range(len(sizes)))
    if options.keep:
        keep(options.row, options.model, windows, sizes, options.keep)
    else:
        print(json.dumps(timed(options.row, options.model, windows, sizes)))


if __name__ == "__main__":
    main()
