"""Streamed layers: the same learning as plain training, what cannot be streamed, and masters in two parts."""

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import metrics, train
from streaming import CONFIGS, EQUAL, PLAIN, SMALL, STREAM, learned, off, parts_of, runs_of, task_of
from transformers import (
    AlbertConfig,
    AutoConfig,
    BertConfig,
    DebertaV2Config,
    T5Config,
)
from transformers.models.bert.modeling_bert import BertLayer

from benchmarks.null_cells import source_of
from bigqa.engine.build import not_together
from bigqa.engine.loop import checkpoint
from bigqa.engine.loop.step import train_step
from bigqa.engine.processes import Processes
from bigqa.engine.stream.store import joined, split
from bigqa.errors import BigqaError
from bigqa.memory.cards import A100
from bigqa.memory.stream import STEADY, Shape
from bigqa.models.sources import load_config, resolve
from bigqa.plan.planner import estimator_for
from bigqa.strategy import STRATEGIES, Strategy

STEPS = 30


@pytest.fixture(scope="module")
def processes() -> Processes:
    return Processes("cpu")


@pytest.mark.parametrize(
    ("name", "packed"), [("bert", True), ("bert", False), ("llama", True), ("deberta", False), ("modernbert", False)]
)
def test_streamed_layers_learn_what_plain_training_learns(name: str, packed: bool, processes: Processes) -> None:
    # With dropout, accumulation and clipping, which is seen to clip. The same operations in the same order: what is
    # summed in another one is off by 2e-5 after 30 steps.
    config = CONFIGS[name]()
    steps = STEPS if (name, packed) == ("bert", True) else 10
    plain = learned(parts_of(config, PLAIN, processes), config, 0, steps, packed=packed)
    streamed = learned(parts_of(config, STREAM, processes), config, 0, steps, packed=packed)
    assert plain[:, 1].max() > 0.5
    assert off(streamed, plain) < EQUAL


def test_in_bf16_masters_are_fp32(processes: Processes) -> None:
    config = CONFIGS["bert"]()
    low, streamed = PLAIN.model_copy(update={"precision": "bf16"}), STREAM.model_copy(update={"precision": "bf16"})
    plain_parts, parts = parts_of(config, low, processes), parts_of(config, streamed, processes)
    before = {name: value.detach().clone() for name, value in plain_parts.update.state().weights.items()}
    assert all(torch.equal(value, before[name]) for name, value in parts.update.state().weights.items())
    plain = learned(plain_parts, config, 0, 4, packed=True)
    assert off(learned(parts, config, 0, 4, packed=True)[:, 0], plain[:, 0]) < 0.01
    after = parts.update.state().weights
    assert all(not torch.equal(value, before[name]) for name, value in after.items())
    assert any((value.bfloat16() == before[name].bfloat16()).any() for name, value in after.items())


def test_in_fp16_what_overflows_is_skipped_and_scaled_down_as_in_plain_training(processes: Processes) -> None:
    """As a T4 trains: masters apart, and a loss scale that begins too high."""
    config, axes = CONFIGS["bert"](), {"precision": "fp16"}
    plain, streamed = (parts_of(config, one.model_copy(update=axes), processes) for one in (PLAIN, STREAM))
    for parts in (plain, streamed):
        parts.update.scaling.scale = 2.0**24
        parts.update.load(parts.update.state(), 0)  # whose scale the passes take up
    expected, found = (learned(parts, config, 0, 12, packed=True) for parts in (plain, streamed))
    assert 0 < streamed.update.skipped == plain.update.skipped < 12
    assert streamed.update.scaling == plain.update.scaling
    assert off(found[:, 0], expected[:, 0]) < 0.01
    assert off(found[-1:, 1], expected[-1:, 1]) < 0.05  # the norm is that of gradients, not of scaled ones


def test_a_run_goes_on_streamed_and_streaming_goes_on_plain(processes: Processes, tmp_path: Path) -> None:
    config = CONFIGS["bert"]()
    unbroken = learned(parts_of(config, PLAIN, processes), config, 0, 6, packed=True)
    for first, second in ((PLAIN, STREAM), (STREAM, PLAIN), (STREAM, STREAM)):
        parts = parts_of(config, first, processes)
        learned(parts, config, 0, 3, packed=True)
        folder = tmp_path / f"{first.stream}-{second.stream}"
        checkpoint.save(folder, 3, parts.update.state(), {})
        other = parts_of(config, second, processes)
        found = checkpoint.load_newest(folder, print)
        assert found is not None
        checkpoint.restore(found, other.update)
        assert off(learned(other, config, 3, 6, packed=True), unbroken[3:]) < EQUAL


def test_the_trained_model_comes_back_whole(processes: Processes) -> None:
    config = CONFIGS["bert"]()
    plain, streamed = (parts_of(config, one, processes) for one in (PLAIN, STREAM))
    for parts in (plain, streamed):
        learned(parts, config, 0, 2, packed=False)
    first, second = plain.update.finish(), streamed.update.finish()
    assert list(dict(second.named_parameters())) == list(dict(first.named_parameters()))
    inputs = {"input_ids": torch.arange(12)[None]}
    expected = first.eval()(**inputs).start_logits
    torch.testing.assert_close(second.eval()(**inputs).start_logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_random_rounding_is_stepped_layer_by_layer_and_resumes(
    optimizer: str, processes: Processes, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    config = BertConfig(**SMALL | {"hidden_size": 64}, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    axes = {"precision": "bf16-sr", "optimizer": optimizer}
    strategy = STREAM.model_copy(update=axes)
    parts = parts_of(config, strategy, processes)
    losses = learned(parts, config, 0, 4, packed=True)
    plain = learned(parts_of(config, PLAIN, processes), config, 0, 4, packed=True)
    assert off(losses[:, 0], plain[:, 0]) < 0.2  # clipped by the norm of the step before
    checkpoint.save(tmp_path, 4, parts.update.state(), {})
    found = checkpoint.load_newest(tmp_path, print)
    assert found is not None
    other = parts_of(config, strategy, processes)
    checkpoint.restore(found, other.update)
    once, again = (learned(one, config, 4, 6, packed=True) for one in (parts, other))
    assert torch.equal(once, again)


@pytest.mark.parametrize("name", [name for name, row in STRATEGIES.items() if row.stream and not row.needs_disk])
def test_a_run_ends_with_checkpoints_and_a_model(name: str, tmp_path: Path) -> None:
    """Of the trainer itself: what its loop asks of an update, this one has."""
    pytest.importorskip("bitsandbytes")
    assert train(tmp_path, strategy=name, precision="auto", max_steps=2, save_every=1, micro_batch=4) == 0
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2]
    assert [folder.name[-1] for folder in sorted((tmp_path / "checkpoints").iterdir())] == ["1", "2"]
    assert (tmp_path / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("axes", [{}, {"precision": "bf16-sr"}])
def test_no_thread_reads_weights_that_are_being_changed(axes: dict[str, Any], processes: Processes) -> None:
    config = CONFIGS["bert"]()
    parts = parts_of(config, STREAM.model_copy(update=axes), processes)
    update: Any = parts.update
    stepped, free = update.steps.step, []

    def ask() -> None:
        thread = threading.Thread(target=lambda: free.append(update.turn.acquire(blocking=False)))
        thread.start()
        thread.join()

    def step(*args: Any) -> None:
        if len(free) < 2:
            ask()
        stepped(*args)

    update.steps.step = step
    learned(parts, config, 0, 1, packed=True)
    ask()
    assert free == [False, False, True] and not update.changing  # the step is over at the end


def test_what_lies_in_no_list_of_its_own_is_refused_in_a_line(processes: Processes) -> None:
    shared = AlbertConfig(**SMALL, embedding_size=16)
    two = T5Config(vocab_size=96, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0)
    between = DebertaV2Config(**SMALL, conv_kernel_size=3, conv_act="gelu")
    for config, why in ((shared, "once each"), (two, "more than one list"), (between, "between its layers")):
        with pytest.raises(BigqaError, match=why) as caught:
            parts_of(config, STREAM, processes)
        assert "\n" not in str(caught.value) and type(config).__name__[:2] in str(caught.value)


def test_a_layer_that_writes_into_its_input_is_refused(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of it to the host may be on its way, and the layer runs twice."""
    forward = BertLayer.forward

    def writes(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(self, hidden_states.add_(0.0), *args, **kwargs)

    monkeypatch.setattr(BertLayer, "forward", writes)
    with pytest.raises(BigqaError, match="write into"):
        parts_of(CONFIGS["bert"](), STREAM, processes)


def test_the_places_of_layers_are_given_back_at_the_end(processes: Processes) -> None:
    """The whole model is scored next, and wants the room."""
    parts = parts_of(CONFIGS["bert"](), STREAM, processes)
    places = [weakref.ref(one) for one in parts.passes.slots.places]  # type: ignore[union-attr]
    learned(parts, CONFIGS["bert"](), 0, 1, packed=True)
    update = parts.update  # a run holds it to its end
    update.finish()
    gc.collect()
    assert len(places) == 2 and [one() for one in places] == [None, None]


def test_axes_that_streaming_brings_itself_are_refused() -> None:
    assert not_together(STREAM) is None
    assert not_together(STREAM.model_copy(update={"precision": "bf16-sr", "optimizer": "adamw8bit"})) is None
    more: list[dict[str, Any]] = [{"recompute": "full"}, {"release": True}, {"zero_stage": 2}, {"adapters": "lora"}]
    for axes in (*more, {"activation_offload": True}, {"optimizer": "adamw8bit"}):
        assert "streamed" in str(not_together(STREAM.model_copy(update=axes)))


def test_a_master_is_its_bf16_and_sixteen_bits_more() -> None:
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(-(2**31), 2**31, (100_000,), generator=generator).int()
    special = torch.tensor([0x3F808000, 0x3F818000, 0x3F80FFFF, 0, -(2**31), 0x00000001, 0x7F7FFFFF, 0x7F800000]).int()
    master = torch.cat([bits, special, bits & -0x10000 | 0x8000]).view(torch.float32)
    master = master[~master.isnan()]
    low, rest = torch.empty(len(master), dtype=torch.bfloat16), torch.empty(len(master), dtype=torch.int16)
    split(master, low, rest)
    assert torch.equal(joined(low, rest).view(torch.int32), master.view(torch.int32))
    between = master.view(torch.int32) & 0xFFFF == 0x8000  # as near to the one as to the other
    assert torch.equal(low[~between], master[~between].bfloat16())
    error, best = ((one.double() - master.double()).abs() for one in (low, master.bfloat16()))
    assert torch.equal(error[between], best[between])


def test_the_host_and_the_link_are_predicted_to_the_byte(processes: Processes) -> None:
    config = BertConfig(**SMALL | {"num_hidden_layers": 5})
    axes: dict[str, Any]
    for axes in ({}, {"precision": "bf16"}, {"precision": "bf16-sr"}):
        strategy = STREAM.model_copy(update=axes)
        parts = parts_of(config, strategy, processes)
        row = {"input_ids": list(range(1, 33)), "token_type_ids": [0] * 32, "start": 1, "end": 2}
        full = [task_of(config).collate([row, row]) for _ in range(7)]
        link = parts.passes.link  # type: ignore[union-attr]
        before = link.bytes_in, link.bytes_out
        train_step(parts, full, 14)
        found = runs_of(config).footprint(strategy, Shape(2, 32, 7, packed=False), A100)
        of_rows = sum(min(7 * 64, count) for count in (96, 64, 2)) * 32 * 4  # whose gradients wait
        assert found.kept_bytes + found.pinned_bytes == pytest.approx(link.kept_bytes + of_rows, rel=0.05)
        assert found.arriving_bytes == link.bytes_in - before[0]
        assert found.leaving_bytes == link.bytes_out - before[1]


def test_neither_depth_nor_accumulation_takes_more_of_a_gpu() -> None:
    strategy = Strategy(precision="bf16", stream=True)
    shallow, deep = (runs_of(BertConfig(**SMALL | {"num_hidden_layers": count})) for count in (6, 40))
    few, many = Shape(2, 32, STEADY, packed=True), Shape(2, 32, 64, packed=True)
    least = shallow.footprint(strategy, few, A100).allocated_bytes
    assert deep.footprint(strategy, few, A100).allocated_bytes == least
    assert deep.footprint(strategy, many, A100).allocated_bytes < least + 64 * 16 * 512  # a few blocks of each
    # What two traces of a few layers tell is what a trace of all of them does.
    told = shallow.footprint(strategy, few, A100)
    assert shallow.depths == (3, 4)
    whole = runs_of(shallow.config)
    whole.depths = (6, 6)
    assert whole.footprint(strategy, few, A100) == told


XL = {
    "num_hidden_layers": 36, "hidden_size": 2560, "intermediate_size": 10240, "num_attention_heads": 32,
    "vocab_size": 250880, "max_position_embeddings": 514,
}  # fmt: skip
LARGE = {"llama-7b": 1.6, "xlm-roberta-xl": 0.7}
"""GiB reserved of a GPU by a window of 384."""


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_models_of_billions_take_two_of_their_layers(name: str) -> None:
    config = load_config(resolve(source_of(name))) if name == "llama-7b" else AutoConfig.for_model(name, **XL)
    found = estimator_for(config).estimate(STRATEGIES["stream"], 1, 384, accumulating=False, micro_batches=1)
    print(name, found)
    assert found.reserved_bytes < LARGE[name] * 2**30


@pytest.mark.slow
def test_the_host_holds_sixteen_bytes_a_parameter_or_four() -> None:
    estimator = estimator_for(load_config(resolve("enliple-large-v1")))
    for name, most in (("stream", 16), ("stream-8bit", 4)):
        found = estimator.footprint(STRATEGIES[name], 1, 384, accumulating=True, micro_batches=16)
        print(name, found)
        assert found.kept_bytes + found.pinned_bytes < most * estimator.num_parameters + 1.2 * 2**30 - 500 * 2**20
