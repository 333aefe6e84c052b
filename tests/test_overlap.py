"""Gradients that are reduced beside the computation are not given up before: ZeRO on a GPU, streams watched."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from null_gpu import on_null_gpu
from torch import Tensor, nn

from bigqa.engine.sharding import _hold_until_reduced


def test_what_no_bucket_has_room_for_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    marked: list[tuple[int, str]] = []
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: marked.append((self.numel(), stream)))
    large, small = nn.Parameter(torch.ones(9)), nn.Parameter(torch.ones(8))
    zero: Any = SimpleNamespace(reduce_bucket_size=8, reduction_stream="reduction")
    _hold_until_reduced(zero, [large, small])
    for _ in range(2):  # the second is added to the first, which is marked
        (large.sum() * 2 + small.sum()).backward()
    assert marked == [(9, "reduction")] * 2
    assert large.grad is not None and large.grad.tolist() == [4.0] * 9


PROGRAM = """
import json, tempfile, torch
from pathlib import Path
from bigqa.bench import worker
from bigqa.bench.cases import rows_on
from bigqa.bench.report import Case
from bigqa.engine.loop.recorder import Silent
from bigqa.engine.loop.step import train_step
from bigqa.engine.processes import Processes
axes = rows_on("cuda", "bf16", ("zero2",))["zero2"]
case = Case(model="enliple-small", strategy="zero2", axes=axes, seq_len=64, micro_batch=2, global_batch=4, steps=1)
training = worker.training_of(case, worker.settings_of(case, Path(tempfile.mkdtemp())), Processes("cuda"), Silent())
zero, marked = training.parts.model.optimizer, []
record = torch.Tensor.record_stream
def recorded(self, stream):
    marked.append((self.numel(), stream == zero.reduction_stream))
    record(self, stream)
torch.Tensor.record_stream = recorded
feed = training.feed()
train_step(training.parts, feed.take(0), 4)
feed.close()
large = [p.numel() for p in training.parts.update.parameters.values() if p.numel() > zero.reduce_bucket_size]
print(json.dumps([large, marked, zero.overlap_comm]))
"""


@pytest.mark.nullgpu
def test_embeddings_are_larger_than_a_bucket_and_are_marked() -> None:
    large, marked, overlaps = on_null_gpu(PROGRAM)
    assert overlaps and large
    assert [[count, True] for count in large] * 2 == [pair for pair in marked if pair[0] in large]
