"""Recomputation draws the masks of the forward pass, in every strategy that recomputes, with all dropouts on.

What is tried follows from the registry: a row that computes anything again is tried without a word here.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import in_processes
from null_gpu import on_null_gpu
from transformers import BertConfig, BertForQuestionAnswering

from benchmarks.strategy_jobs import why_no_nvme
from bigqa.engine.build import build
from bigqa.engine.loop.step import Parts, accumulate, train_step
from bigqa.engine.processes import Processes
from bigqa.settings import Settings
from bigqa.strategy import STRATEGIES, missing_package
from bigqa.tasks.qa.task import QuestionAnswering

ONCE: dict[str, Any] = {"recompute": "none", "stream": False}
"""The axes of what computes nothing again."""
AGAIN = {name: row for name, row in STRATEGIES.items() if row != row.model_copy(update=ONCE)}
STREAMED = [name for name, row in AGAIN.items() if row.stream and not row.needs_disk]
SHARDED = [name for name, row in AGAIN.items() if row.needs_deepspeed and not row.needs_disk]
ALONE = [name for name, row in AGAIN.items() if not row.needs_deepspeed and not row.stream]
ON_GPU = [name for name, row in STRATEGIES.items() if row.device == "cuda" and not row.needs_disk]
LENGTHS = (24, 17, 30, 9)
LAYERS = 2
Found = tuple[list[float], list[float], dict[str, Any]]
"""Losses, norms, and weights as arrays, which go through a pipe as they are."""


def parts_of(name: str, processes: Processes, out: Path, *, recomputes: bool) -> Parts:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=64, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=128, vocab_size=40,
        max_position_embeddings=32, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3,
    )  # fmt: skip
    changes: dict[str, Any] = {"device": "cpu"} | ({} if recomputes else ONCE)
    strategy = STRATEGIES[name].model_copy(update=changes)
    settings = Settings(
        model="tiny", train_file=Path("train.json"), out=out, strategy=strategy, precision="bf16", seq_len=32,
        global_batch=4, micro_batch=2, max_query_length=4, doc_stride=4, lr=1e-3,
    )  # fmt: skip
    model = BertForQuestionAnswering(config).train()
    return build(model, QuestionAnswering(0, True), settings, processes)


def trained(name: str, processes: Processes, out: Path, *, recomputes: bool) -> Found:
    """Return losses, norms of gradients and weights of two steps of two micro-batches."""
    parts = parts_of(name, processes, out, recomputes=recomputes)
    parts.model.train()
    rows: list[Any] = [
        {"input_ids": list(range(1, length + 1)), "token_type_ids": [0] * length, "start": 1, "end": 3}
        for length in LENGTHS
    ]
    losses, norms = [], []
    for step in range(2):
        torch.manual_seed(step)
        parts.update.begin(step, 5)
        loss, norm = train_step(parts, [parts.task.pack(rows[:2]), parts.task.pack(rows[2:])], len(rows))
        losses.append(float(loss))
        norms.append(float(norm))
    return (
        losses,
        norms,
        {name: weight.detach().float().numpy().copy() for name, weight in parts.update.state().weights.items()},
    )


def assert_same(plain: Found, found: Found) -> None:
    assert found[:2] == plain[:2]
    assert [name for name, weight in plain[2].items() if not np.array_equal(weight, found[2][name])] == []


@functools.cache
def processes() -> Processes:
    return Processes("cpu")


@pytest.mark.parametrize("name", ALONE)
def test_gradients_are_those_without_recomputation_to_the_bit(tmp_path: Path, name: str) -> None:
    if missing_package(STRATEGIES[name]):
        pytest.skip(str(missing_package(STRATEGIES[name])))
    plain, found = (trained(name, processes(), tmp_path, recomputes=recomputes) for recomputes in (False, True))
    assert_same(plain, found)
    assert found[0][0] != found[0][1]


def gradients_of(name: str, out: Path, *, streams: bool) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Return the gradients of a step of two micro-batches, as they are stepped with, and the names of tables."""
    parts: Any = parts_of(name, processes(), out, recomputes=streams)
    parts.model.train()
    rows: list[Any] = [
        {"input_ids": list(range(1, length + 1)), "token_type_ids": [0] * length, "start": 1, "end": 3}
        for length in LENGTHS
    ]
    batches = [parts.task.pack(rows[:2]), parts.task.pack(rows[2:])]
    torch.manual_seed(3)
    parts.update.begin(0, 5)
    if not streams:
        accumulate(parts, batches, len(rows))
        left = {name: parameter.grad for name, parameter in parts.model.named_parameters()}
        return {name: one.float().view(-1) for name, one in left.items() if one is not None}, set()
    found = {}

    def step(weight: Any, gradient: Any, *_: Any) -> None:
        found[weight.name] = gradient.piece(slice(0, weight.low.numel())).clone()

    parts.update.steps.step = step
    train_step(parts, batches, len(rows))
    return found, {table.name for table in parts.passes.tables.by_parameter.values()}


@pytest.mark.parametrize("name", STREAMED)
def test_gradients_of_streamed_layers_are_plains_to_the_bit(tmp_path: Path, name: str) -> None:
    if missing_package(STRATEGIES[name]):
        pytest.skip(str(missing_package(STRATEGIES[name])))
    (plain, _), (found, tables) = (gradients_of(name, tmp_path, streams=streams) for streams in (False, True))
    assert found.keys() == plain.keys() and 0 < len(tables) < 4
    assert [one for one in found.keys() - tables if not torch.equal(found[one], plain[one])] == []
    for one in tables:  # whose rows are added up in fp32, where plain training adds them up in bf16
        assert torch.linalg.vector_norm(found[one] - plain[one]) < 0.05 * torch.linalg.vector_norm(plain[one]), one


def test_every_row_that_recomputes_is_tried() -> None:
    on_disk = {name for name, row in AGAIN.items() if row.needs_disk}  # as others, which are tried
    tried = {*ALONE, *SHARDED, *STREAMED}
    assert tried | on_disk == set(AGAIN) and len(on_disk) == 3
    assert {"full", "selective"} <= {row.recompute for row in AGAIN.values()} and len(STREAMED) > 1
    assert {name for name in AGAIN if STRATEGIES[name].device == "cuda"} - on_disk <= set(ON_GPU)


def test_dropout_is_on(tmp_path: Path) -> None:
    """Else all of this would show nothing: another seed is another loss."""
    parts = parts_of("recompute", processes(), tmp_path, recomputes=True)
    batch = parts.task.pack([{"input_ids": [1] * 16, "token_type_ids": [0] * 16, "start": 1, "end": 3}])
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(float(parts.task.loss_sum(parts.model.train(), batch)))
    assert losses[0] == losses[1] != losses[2]


def test_sharded_gradients_are_those_without_recomputation_to_the_bit(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    if why_no_nvme() and "ninja" in str(why_no_nvme()):
        pytest.skip("DeepSpeed's CPU Adam compiles itself: no ninja")

    def work(processes: Processes) -> dict[str, list[Found]]:
        import cpuinfo

        cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)  # two seconds for each of DeepSpeed's optimizers
        return {
            name: [trained(name, processes, tmp_path, recomputes=recomputes) for recomputes in (False, True)]
            for name in SHARDED
        }

    (found,) = in_processes(work, 1)
    assert found.keys() == set(SHARDED)
    for plain, recomputed in found.values():
        assert_same(plain, recomputed)


ON_A_GPU = """
import gc, json, tempfile, torch
from pathlib import Path
from torch.utils._python_dispatch import TorchDispatchMode
from bigqa.bench import worker
from bigqa.bench.cases import rows_on
from bigqa.bench.report import Case
from bigqa.engine.loop.recorder import Silent
from bigqa.engine.loop.step import train_step
from bigqa.engine.processes import Processes
from bigqa.models.sources import load_config, resolve
torch.cuda.init()
generator = torch.cuda.default_generators[0]
class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        before = generator.get_offset()
        result = operation(*args, **(kwargs or {}))
        if generator.get_offset() != before and torch.Tag.nondeterministic_seeded in operation.tags:
            drawn[torch._C._current_graph_task_id() != -1].append((operation.name(), before))
        return result
found, processes = {}, Processes("cuda")
for name in NAMES:
    axes = rows_on("cuda", "bf16", (name,))[name].model_copy(update={"micro_batch": None, "seq_len": None})
    case = Case(model="enliple-small", strategy=name, axes=axes, seq_len=64, micro_batch=2, global_batch=2, steps=1)
    training = worker.training_of(case, worker.settings_of(case, Path(tempfile.mkdtemp())), processes, Silent())
    feed, drawn = training.feed(), {False: [], True: []}
    training.parts.model.train()
    torch.manual_seed(1)
    with Watch():
        train_step(training.parts, feed.take(0), 2)
    feed.close()
    found[name] = [training.packs, drawn[False], drawn[True]]
    training.parts.let_go()
    del training
    processes.accelerator.free_memory()
    gc.collect()
    torch.cuda.empty_cache()
print(json.dumps([load_config(resolve("enliple-small")).num_hidden_layers, found]))
"""


@pytest.mark.nullgpu
@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["plain", "recompute", "selective"], id="sample"),
        pytest.param(ON_GPU, id="all", marks=pytest.mark.slow),
    ],
)
def test_recomputed_operations_begin_where_they_began_on_a_gpu(names: list[str]) -> None:
    """Every row of a GPU, in a process of its own."""
    layers, found = on_null_gpu(ON_A_GPU.replace("NAMES", repr(names)))
    assert list(found) == names and set(names) <= set(ON_GPU)
    pairs = {name: [[tuple(pair) for pair in one] for one in drawn] for name, (_, *drawn) in found.items()}
    for name, (forward, again) in pairs.items():
        row = STRATEGIES[name]
        # In fp32 attention is of another kernel, which draws elsewhere.
        of_plain = pairs["plain-fp32" if row.precision == "fp32" else "plain"][0]
        # Random rounding draws in the update, from a generator of its own.
        assert found[name][0] and (row.adapters != "none" or set(forward) == set(of_plain)), name
        if row.stream:
            # Its recomputation is a forward pass of its own; what is outside of the layers runs three times.
            assert again == [] and all(forward.count(pair) > 1 for pair in of_plain), name
            continue
        assert len(set(forward)) == len(forward) and bool(again) == (row.recompute != "none"), name
        assert [pair for pair in again if pair not in forward] == [], name
        kept = row.recompute == "selective"
        drawing = [pair for pair in forward if not (kept and "attention" in pair[0])]
        # All of the layers' own: what lies outside, after the embeddings, is not drawn again.
        assert not again or (len(drawing) - len(again) <= 2 and len(again) % layers == 0), name
