"""ZeRO-3 on a disk, resumed: plain files stand for the disk operations, which DeepSpeed has to compile."""

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forked import in_processes
from torch import Tensor
from transformers import BertConfig, BertForQuestionAnswering

from bigqa.engine.build import build
from bigqa.engine.loop import checkpoint
from bigqa.engine.loop.step import Parts, train_step
from bigqa.engine.processes import Processes
from bigqa.settings import Settings
from bigqa.strategy import STRATEGIES
from bigqa.tasks.qa.task import QuestionAnswering

swap = pytest.importorskip("deepspeed.runtime.swap_tensor")


class Disk:
    """As `aio_handle`: reads and writes at once. A file that was not written cannot be read."""

    locked: Any = {}  # noqa: RUF012 - shared by all handles, as what is locked is the process's

    def __init__(self, **_: Any) -> None:
        self.pending = 0

    def new_cpu_locked_tensor(self, count: int, like: Tensor) -> Tensor:
        made = torch.zeros(count, dtype=like.dtype)
        self.locked[made.untyped_storage().data_ptr()] = made
        return made

    def free_cpu_locked_tensor(self, tensor: Tensor) -> None:
        self.locked.pop(tensor.untyped_storage().data_ptr(), None)

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.numel() > 0 and tensor.untyped_storage().data_ptr() in self.locked

    def async_pwrite(self, tensor: Tensor, path: str, offset: int) -> int:
        Path(path).write_bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        self.pending += 1
        return 0

    def async_pread(self, tensor: Tensor, path: str, offset: int) -> int:
        raw = torch.frombuffer(bytearray(Path(path).read_bytes()), dtype=torch.uint8)
        tensor.view(torch.uint8).copy_(raw[: tensor.numel() * tensor.element_size()])
        self.pending += 1
        return 0

    def wait(self) -> int:
        done, self.pending = self.pending, 0
        return done


class Builder:
    def load(self, verbose: bool = True) -> Any:
        return SimpleNamespace(aio_handle=Disk)


def parts_of(processes: Processes, out: Path, name: str) -> Parts:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256, vocab_size=4000,
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    settings = Settings(
        model="tiny", train_file=Path("train.json"), out=out, precision="fp32", global_batch=2, micro_batch=2,
        strategy=STRATEGIES[name].model_copy(update={"device": "cpu", "precision": "fp32"}), seq_len=32,
        max_query_length=4, doc_stride=4, lr=1e-3, nvme=out / "disk",
    )  # fmt: skip
    return build(BertForQuestionAnswering(config).train(), QuestionAnswering(0, True), settings, processes)


def step(parts: Parts, number: int) -> float:
    rows: list[Any] = [
        {"input_ids": list(range(4 + number, 20 + number)), "token_type_ids": [0] * 16, "start": 1, "end": 3 + number}
    ]
    parts.update.set_rate(1e-3)
    return float(train_step(parts, [parts.task.collate(rows)], 1)[0])


def work(processes: Processes, out: Path) -> dict[str, Any]:
    import cpuinfo
    from deepspeed.runtime.swap_tensor import (
        partitioned_optimizer_swapper,
        partitioned_param_swapper,
        pipelined_optimizer_swapper,
    )

    cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)
    for module in (partitioned_optimizer_swapper, partitioned_param_swapper, pipelined_optimizer_swapper):
        module.AsyncIOBuilder = Builder
    found: dict[str, Any] = {}
    first = parts_of(processes, out / "first", "zero3-nvme")
    update: Any = first.update
    found["on disk"] = [update.is_on_disk(group) for group in range(len(update._flats()))]
    found["before"] = [step(first, number) for number in range(2)]
    checkpoint.save(out, 2, first.update.state(), {})
    found["unbroken"] = [step(first, number) for number in range(2, 5)]
    kept = checkpoint.load_newest(out, pytest.fail)
    assert kept is not None
    for name in ("zero3-nvme", "plain-fp32", "stream-disk"):
        again = parts_of(processes, out / name, name)
        checkpoint.restore(kept, again.update)
        checkpoint.save(out / name, 2, again.update.state(), {})
        found[name] = [step(again, number) for number in range(2, 5)]
    kept = checkpoint.load_newest(out / "stream-disk", pytest.fail)
    assert kept is not None
    again = parts_of(processes, out / "back", "zero3-nvme")
    checkpoint.restore(kept, again.update)
    return found | {"back": [step(again, number) for number in range(2, 5)]}


def test_a_run_on_a_disk_goes_on(tmp_path: Path) -> None:
    (found,) = in_processes(lambda processes: work(processes, tmp_path), 1)
    assert any(found["on disk"])  # a group of a MiB and more
    assert found["zero3-nvme"] == found["back"] == pytest.approx(found["unbroken"], rel=1e-6)
    assert found["plain-fp32"] == pytest.approx(found["unbroken"], rel=1e-4)
    assert found["stream-disk"] == pytest.approx(found["plain-fp32"], rel=1e-6)
    assert len({round(loss, 3) for loss in found["before"] + found["unbroken"]}) == 5
