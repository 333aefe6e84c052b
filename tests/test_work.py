"""The work that a trace counts, against torch's own counter on real tensors, and against counts by hand."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForQuestionAnswering

from bigqa.engine.attention.windows import Shape
from bigqa.engine.build import change as change_model
from bigqa.engine.build import make_offload, make_update
from bigqa.engine.loop.step import Parts, train_step
from bigqa.engine.optim.optimizers import make_optimizer, parameter_groups, undecayed_names
from bigqa.memory import shapes
from bigqa.memory.events import CATEGORIES, live_sizes
from bigqa.memory.trace import Recorder, trace_step
from bigqa.strategy import Strategy
from bigqa.tasks.qa.task import QuestionAnswering

WINDOWS, LENGTH = 4, 64  # together a multiple of what packed tokens are rounded up to
TASK = QuestionAnswering(0, True)


def bert() -> BertForQuestionAnswering:
    torch.manual_seed(0)
    return BertForQuestionAnswering(
        BertConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=128,
            max_position_embeddings=LENGTH,
        )
    )  # fmt: skip


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_flops_are_those_that_torch_counts_in_a_real_step(packed: bool, recompute: Any) -> None:
    strategy = Strategy(precision="fp32", device="cpu", recompute=recompute)

    def example() -> Any:
        return TASK.example(WINDOWS, LENGTH, packed=packed)

    stream = trace_step(bert, TASK, example, strategy, accumulating=False)
    model = bert().train()
    undecayed = undecayed_names(model)
    weights = change_model(model, strategy)
    update = make_update(
        model, strategy, weights, lambda groups: make_optimizer(strategy, groups, lr=0.1, eps=1e-6),
        groups=parameter_groups(weights.masters, undecayed, 0.01), clip=1.0,
    )  # fmt: skip
    parts = Parts(model=model, update=update, task=TASK, offload=make_offload(model, strategy))
    row = {"input_ids": [5] * LENGTH, "token_type_ids": [0] * LENGTH, "start": 1, "end": 2}
    batch = (TASK.pack if packed else TASK.collate)([row] * WINDOWS)
    with FlopCounterMode(display=False) as counter:
        train_step(parts, [batch], WINDOWS)
    assert stream.flops == counter.get_total_flops()
    attention = 2 * 2 * WINDOWS * LENGTH**2 * 64 * 2  # both products of both layers, forward
    backwards = 2 + (recompute == "full")
    assert stream.batched_flops >= attention * (1 + backwards)
    assert stream.batched_flops < stream.flops


@pytest.mark.parametrize("length", [LENGTH, LENGTH - 3])
@pytest.mark.parametrize("packed", [True, False])
def test_another_device_has_other_kernels_and_the_same_products(packed: bool, length: int) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        strategy = Strategy(precision="bf16", device=device)  # type: ignore[arg-type]
        found[device] = trace_step(
            bert, TASK, lambda: TASK.example(WINDOWS, length, packed=packed), strategy, accumulating=False
        )
    cpu, cuda = found["cpu"], found["cuda"]
    assert cuda.flops - cuda.batched_flops == cpu.flops - cpu.batched_flops
    operations = {event.operation for event in cuda.events}
    assert any("flash_attention" in one or "efficient_attention" in one for one in operations)
    assert packed or any("efficient_attention" in one for one in operations)


def _parts(strategy: Strategy) -> tuple[Any, Any]:
    """Return a real model of a strategy and its update, after one step."""
    model = bert().train()
    undecayed = undecayed_names(model)
    weights = change_model(model, strategy)
    update = make_update(
        model, strategy, weights, lambda groups: make_optimizer(strategy, groups, lr=0.1, eps=1e-6),
        groups=parameter_groups(weights.masters, undecayed, 0.01), clip=1.0,
    )  # fmt: skip
    row = {"input_ids": [5] * LENGTH, "token_type_ids": [0] * LENGTH, "start": 1, "end": 2}
    train_step(Parts(model=model, update=update, task=TASK), [TASK.pack([row] * WINDOWS)], WINDOWS)
    return model, update


@pytest.mark.parametrize(
    "axes",
    [
        {"precision": "fp32"},
        {"precision": "bf16"},
        {"precision": "bf16-sr"},
        {"precision": "fp32", "optimizer": "adamw8bit"},
        {"precision": "bf16-sr", "optimizer": "adamw8bit"},
        {"precision": "fp32", "release": True},
    ],
)
def test_what_is_kept_is_what_a_real_step_keeps(axes: dict[str, Any]) -> None:
    if axes.get("optimizer"):
        pytest.importorskip("bitsandbytes")
    strategy = Strategy(device="cpu", **axes)
    stream = trace_step(bert, TASK, lambda: TASK.example(WINDOWS, LENGTH, packed=True), strategy, accumulating=False)
    released = strategy.release
    of_update = {event.phase for event in stream.events if event.of_update}
    assert of_update <= ({"backward", "optimizer", "clip"} if released else {"clip", "optimizer"}) and of_update
    assert not any(event.of_update for event in stream.events if event.phase in ("model", "set-up", "forward"))
    assert stream.step_bytes > 0
    if strategy.precision == "fp32" and not released:
        # bitsandbytes unpacks a parameter on a CPU, five fp32 tensors of its size; the fused step holds nothing.
        unpacked = sum(event.size_bytes for event in stream.events if event.phase == "optimizer")
        counts = [parameter.numel() for parameter in bert().parameters()]
        large = sum(count for count in counts if count >= 4096)  # smaller ones have moments of 32 bits
        if strategy.optimizer == "adamw":
            assert unpacked == 0
        else:
            assert 5 * 4 * large <= unpacked <= 5 * 4 * sum(counts)
    traced = dict.fromkeys(CATEGORIES, 0)
    for event in stream.events:
        traced[stream.categories[event.storage]] += event.size_bytes
    # What is dropped when the trace is over is still there at the end of the step.
    assert [live for _, live in live_sizes(stream, 1)][-1] >= traced["weights"]
    model, update = _parts(strategy)
    optimizers = {id(one): one for one in map(update.optimizer_of, update.weights.masters.values())}
    states = [state for optimizer in optimizers.values() for state in optimizer.state.values()]
    tensors = [value for state in states for name, value in state.items() if isinstance(value, torch.Tensor)]
    once = {tensor.data_ptr(): tensor.nbytes for tensor in tensors if tensor.numel() > 1}
    masters = sum(one.nbytes for one in update.weights.masters.values()) if update.weights.has_masters else 0
    # bitsandbytes has two tables of codes for all; some count their steps in a tensor.
    assert abs(traced["optimizer"] - sum(once.values()) - masters) <= 2048 + 4 * len(states)
    assert traced["weights"] == sum(one.nbytes for one in (*model.parameters(), *model.buffers()))
    gradients = sum(p.numel() * (4 if masters else p.element_size()) for p in model.parameters())
    if strategy.release:
        assert traced["gradients"] == 0
    elif not masters:
        assert traced["gradients"] == gradients
    else:  # of the model, and of the masters
        assert traced["gradients"] == gradients + gradients // 2


def test_bytes_and_operations_are_counted_by_hand() -> None:
    with Recorder() as recorder, torch.device("meta"):
        a, b = torch.empty(10, 20), torch.empty(20, 30)
        before = recorder.work.operations, recorder.work.moved_bytes
        assert before == (0, 0)
        a.add_(1.0)
        assert (recorder.work.operations, recorder.work.moved_bytes) == (1, 800)  # read
        c = a * 2
        assert (recorder.work.operations, recorder.work.moved_bytes) == (2, 800 + 1600)  # read and written
        c.view(200).unsqueeze(0).transpose(0, 1)
        assert recorder.work.operations == 2
        a @ b
        assert (recorder.work.flops, recorder.work.batched_flops) == (2 * 10 * 20 * 30, 0)
        torch.bmm(a[None], b[None])
        assert (recorder.work.flops, recorder.work.batched_flops) == (2 * 12000, 12000)
        assert (recorder.work.operations, recorder.work.moved_bytes) == (4, 2400)
        torch.empty(7, dtype=torch.int32).random_()
        assert (recorder.work.drawn, recorder.work.operations, recorder.work.moved_bytes) == (7, 5, 2400)
        # What is read over and over in place of a copy is read once.
        torch.empty(1, 20).expand(10, 20) + a
        assert recorder.work.moved_bytes == 2400 + 80 + 800 + 800


def test_a_window_is_open_unless_it_is_said_how_far_it_sees() -> None:
    cpu = torch.device("cpu")
    assert Shape((4,)).closed(4, cpu) is None
    ahead = Shape((4,), causal=True).closed(4, cpu)
    far = Shape((4,), span=2).closed(4, cpu)
    assert ahead is not None and torch.equal(ahead, torch.ones(4, 4).triu(1).bool())
    assert far is not None and torch.equal(far, torch.ones(4, 4).tril(-2).bool() | torch.ones(4, 4).triu(2).bool())


def test_what_changes_its_argument_is_run_each_time() -> None:
    for _ in range(3):
        with torch.device("meta"):
            given = torch.empty(4)
        shapes.run(torch.ops.aten.resize_.default, (given, [8]), {})
        assert given.shape == (8,)
    results = [shapes.run(torch.ops.aten.add_.Tensor, (given, given), {})[0] for _ in range(3)]
    assert all(result is given for result in results)
