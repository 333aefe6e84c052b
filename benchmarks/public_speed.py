"""The model of a card's speed beside what others measured. Run: `python -m benchmarks.public_speed [--fit]`; no GPU.

In: published windows per second of BERT-large, fine-tuned for questions at 384 padded tokens in low precision by stock
code, and the work of one such step, counted on a trace of transformers' own model with eager attention. Out: a table.
Three numbers are common to all cards (`bigqa.speed.throughput`): the share of the matrix rate, the share of the
bandwidth, and what bytes per second no card goes beyond at these sizes. They were fitted on `FITTED`; the other cards
were held out. `--fit` fits them anew, on each half.
"""

import argparse
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertForQuestionAnswering

from bigqa.machine.gpus import GpuModel, find_gpu
from bigqa.memory.shapes import tensors_in
from bigqa.memory.work import Work
from bigqa.speed import throughput

SEQ_LEN, WINDOWS = 384, 4
LAMBDA = "lambdal/deeplearning-benchmark@aa5addb, pytorch-train-throughput-v2-fp16.csv"
NVIDIA = "NVIDIA/DeepLearningExamples, PyTorch BERT, SQuAD"
PUBLISHED = {
    "V100-16": (57.0, NVIDIA), "3090": (52.0, LAMBDA), "4090": (93.0, LAMBDA), "A100-80": (152.0, LAMBDA),
    "H100": (314.5, LAMBDA + " (308 to 321)"), "H200": (350.5, LAMBDA + " (350 and 351)"), "B200": (523.0, LAMBDA),
}  # fmt: skip
"""Card -> windows per second, and who measured them."""
FITTED = ("V100-16", "3090", "A100-80", "H200")
MEDIAN, WORST = 0.10, 0.20
"""What is aimed at, on cards that were held out."""


class Constants(NamedTuple):
    """What is common to all cards."""

    matmul_share: float
    bandwidth_share: float
    most_bytes_per_s: float


USED = Constants(throughput.MATMUL_SHARE, throughput.BANDWIDTH_SHARE, throughput.MOST_BYTES_PER_S)


class _Count(TorchDispatchMode):
    """Counts the work of what runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.work.add(func, None, args, result, sum(one.nbytes for one in tensors_in(result)))
        return result


def stock_work() -> tuple[float, float]:
    """Return FLOPs and bytes moved of one window's forward and backward pass by stock code."""
    config = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
                        attn_implementation="eager")  # fmt: skip
    with torch.device("meta"):
        model = BertForQuestionAnswering(config).half().train()
        ids = torch.zeros(WINDOWS, SEQ_LEN, dtype=torch.long)
        mask = torch.zeros(WINDOWS, 1, SEQ_LEN, SEQ_LEN, dtype=torch.half)
    with _Count() as counted:
        logits = model(ids, attention_mask=mask)
        loss = sum(one.float().logsumexp(-1).mean() for one in (logits.start_logits, logits.end_logits))
        loss.backward()
    return counted.work.flops / WINDOWS, counted.work.moved_bytes / WINDOWS


def predicted(card: GpuModel, work: tuple[float, float], constants: Constants = USED) -> float:
    """Return windows per second of stock code: its products and everything else, one after the other."""
    flops, moved = work
    bandwidth = throughput.bandwidth_of(card, constants.bandwidth_share, constants.most_bytes_per_s)
    return 1.0 / (flops / (card.half_tflops * 1e12 * constants.matmul_share) + moved / bandwidth)


def errors(names: Iterable[str], work: tuple[float, float], constants: Constants = USED) -> dict[str, float]:
    """Return by card how far the prediction is from what was published, as a share of it."""
    return {name: predicted(_card(name), work, constants) / PUBLISHED[name][0] - 1 for name in names}


def fitted(names: Sequence[str], work: tuple[float, float]) -> Constants:
    """Return the constants of a grid that are nearest to what was published of some cards, by squared logarithms."""
    grid = itertools.product(
        (share / 100 for share in range(50, 96)),
        (0.8,),  # of a copy's bandwidth, that kernels like these reach on every generation: not fitted
        (1e12 * most for most in (3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 10, 15, 1e6)),
    )
    tried = (Constants(*values) for values in grid)
    return min(tried, key=lambda one: sum(math.log1p(error) ** 2 for error in errors(names, work, one).values()))


def main() -> None:
    """Print the table, and with `--fit` what other halves would give."""
    parser = argparse.ArgumentParser(description="The model of speed beside public figures.")
    parser.add_argument("--fit", action="store_true", help="fit on each half of the cards, and test on the other")
    work = stock_work()
    print(f"One window of stock BERT-large at {SEQ_LEN}: {work[0] / 1e9:.1f} GFLOP, {work[1] / 1e9:.2f} GB moved")
    print(f"Shares: matrix rate {USED[0]:.2f}, bandwidth {USED[1]:.2f}; never beyond {USED[2] / 1e12:.1f} TB/s\n")
    print("| card | published | predicted | error | |\n|---|---:|---:|---:|---|")
    for name, error in errors(PUBLISHED, work).items():
        rate, source = PUBLISHED[name]
        kind = "fitted" if name in FITTED else "held out"
        print(f"| {name} | {rate:.0f} | {rate * (1 + error):.0f} | {error:+.0%} | {kind}; {source} |")
    _tell("held out", errors([name for name in PUBLISHED if name not in FITTED], work))
    if parser.parse_args().fit:
        for half in itertools.combinations(PUBLISHED, 4):
            constants = fitted(half, work)
            shares = f"{constants[0]:.2f}, {constants[1]:.2f}, {constants[2] / 1e12:.1f} TB/s"
            rest = [name for name in PUBLISHED if name not in half]
            _tell(f"fitted on {', '.join(half)} ({shares}): held out", errors(rest, work, constants))


def _tell(what: str, found: dict[str, float]) -> None:
    sizes = [abs(error) for error in found.values()]
    print(f"{what}: median {statistics.median(sizes):.0%}, worst {max(sizes):.0%}")


def _card(name: str) -> GpuModel:
    card = find_gpu(name)
    assert card is not None, name
    return card


if __name__ == "__main__":
    main()
