"""Packed windows: against the padded model's own logits and gradients, for every family; their drops, their dealing."""

from itertools import chain
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_models import loss_of_the_library
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForQuestionAnswering

from bigqa.engine import modules
from bigqa.engine.attention import kernels as attention
from bigqa.engine.attention import packing
from bigqa.engine.attention.packing import can_pack, check_takes_text, fill, packs_without_data, split_padded
from bigqa.engine.attention.windows import Shape, attend
from bigqa.engine.bits import dropping_signs
from bigqa.engine.loop.feed import Feed
from bigqa.engine.loop.order import DataOrder
from bigqa.errors import BigqaError
from bigqa.models.sources import first_position
from bigqa.tasks.qa.task import QuestionAnswering
from bigqa.tasks.rows import Rows

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 80,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_act": "gelu_new"},
    "roberta": {"pad_token_id": 1},
    "xlm-roberta": {"pad_token_id": 1},
    "electra": {"embedding_size": 16},
    "modernbert": {"local_attention": 16, "global_attn_every_n_layers": 2, "cls_token_id": 2, "sep_token_id": 3},
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
}
LENGTHS = (23, 5, 40)


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SIZES | FAMILIES.get(family, {})))
    model = AutoModelForQuestionAnswering.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():  # of a size that shows who sees whom
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    return model


def task_of(model: Any) -> QuestionAnswering:
    return QuestionAnswering(0, getattr(model.config, "type_vocab_size", 0) > 1, first_position(model.config))


def rows_of(lengths: tuple[int, ...], seed: int = 0) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(4, 100, (length,), generator=generator).tolist(),
            "token_type_ids": [0] * (length // 2) + [1] * (length - length // 2),
            "start": length // 3,
            "end": length // 2,
        }
        for length in lengths
    ]


def results(model: Any, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    task = task_of(model)
    logits = torch.stack(task.logits(model, batch))
    task.loss_sum(model, batch).backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_the_padded_model(family: str) -> None:
    """Against the library's own eager attention."""
    model, rows = model_of(family).eval(), rows_of(LENGTHS)
    task = task_of(model)
    model.set_attn_implementation("eager")
    logits, gradients = results(model, task.collate(rows))
    loss = sum(loss_of_the_library(model, row) for row in rows)
    assert attention.use(model)
    modules.swap(model, "cpu")
    assert can_pack(model, task, 64)
    assert task.loss_sum(model, task.pack(rows)).item() == pytest.approx(loss, rel=1e-5)
    packed_logits, packed_gradients = results(model, task.pack(rows))
    torch.testing.assert_close(packed_logits, logits, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(packed_gradients[name] / scale, gradient / scale, rtol=1e-5, atol=1e-5)


def test_a_model_with_an_attention_of_its_own_is_not_packed() -> None:
    model = model_of("deberta-v2").eval()
    attention.use(model)
    assert not can_pack(model, task_of(model), 64)
    assert not packs_without_data(model.to("meta"), task_of(model))


@pytest.mark.parametrize("error", [AttributeError, AssertionError, IndexError])
def test_a_model_that_fails_on_packed_windows_in_any_way_is_padded(error: type[Exception]) -> None:
    model = model_of("bert")

    forward = model.forward

    def only_padded(**inputs: Any) -> Any:
        if "cu_seq_lens_q" in inputs:
            raise error("not made for this")
        return forward(**inputs)

    model.forward = only_padded
    assert not can_pack(model, task_of(model), 64)


def test_a_model_that_fails_on_padded_windows_is_refused_in_a_line() -> None:
    model = model_of("bert")

    def forward(**inputs: Any) -> Any:
        raise ValueError("pictures\nare wanted")

    model.forward = forward
    with pytest.raises(BigqaError, match=r"windows of text alone: pictures$"):
        can_pack(model, task_of(model), 64)
    with pytest.raises(BigqaError, match=r"windows of text alone: pictures$"):
        check_takes_text(model, task_of(model))


def test_memory_that_runs_out_in_the_trial_is_no_sign_of_the_model() -> None:
    model = model_of("bert")

    def forward(**inputs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.forward = forward
    with pytest.raises(torch.OutOfMemoryError):
        can_pack(model, task_of(model), 64)


def test_what_a_trace_takes_for_packable_is_packable() -> None:
    for family in FAMILIES:
        model = model_of(family)
        attention.use(model)
        assert packs_without_data(model.to("meta"), task_of(model)), family


def test_recomputed_layers_drop_the_same() -> None:
    """With dropout, gradients of a recomputed model are the plain one's: the drops follow torch's generator."""
    model, rows = model_of("bert").train(), rows_of(LENGTHS)
    attention.use(model)
    modules.swap(model, "cpu")
    batch = task_of(model).pack(rows)
    torch.manual_seed(3)
    _, plain = results(model, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.manual_seed(3)
    _, recomputed = results(model, batch)
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.1, 0.33])
def test_elements_are_dropped_with_the_probability(dtype: torch.dtype, probability: float) -> None:
    dropped = total = 0
    for seed in range(400):
        signs = dropping_signs((500, 500), probability, (seed,), like=torch.empty(0, dtype=dtype))
        dropped, total = dropped + int((signs < 0).sum()), total + signs.numel()
    # Five deviations of the lots, each half a level at most, and of the draws; one level alone would be 0.0014 off.
    deviation = (1 / 512) / 400**0.5 + (probability / total) ** 0.5
    assert dropped / total == pytest.approx(probability, abs=5 * deviation)


def test_dropout_keeps_the_mean_and_its_gradient_drops_the_same() -> None:
    drop = modules.DrawnDropout(0.25).train()
    x = torch.ones(100_000, requires_grad=True)
    y = drop(x)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # type: ignore[arg-type]
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize("shape", [Shape((33,)), Shape((33,), causal=True), Shape((33,), span=8)])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_gradient_of_attention_is_that_of_its_formula(shape: Shape, dropout: float) -> None:
    torch.manual_seed(0)
    query, key = (torch.randn(2, 33, 33, requires_grad=True) for _ in range(2))
    outer = torch.randn(33, 2, 33)
    seed = torch.random.get_rng_state()
    # With the identity for values, the context is the matrix of weights: it shows what was dropped.
    identity = torch.eye(33).expand(2, 33, 33)
    weights = attend(query, key, identity, shape, dropout, 0.3).detach().transpose(0, 1)
    value = torch.randn(2, 33, 33, requires_grad=True)
    torch.random.set_rng_state(seed)
    found = attend(query, key, value, shape, dropout, 0.3)
    gradients = torch.autograd.grad(found, (query, key, value), outer)
    scores = query @ key.transpose(1, 2) * 0.3
    closed = shape.closed(33, query.device)
    if closed is not None:
        scores = scores.masked_fill(closed, float("-inf"))
    expected = (torch.softmax(scores, -1) * (weights > 0) / (1 - dropout)) @ value
    torch.testing.assert_close(found.transpose(0, 1), expected, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(
        gradients, torch.autograd.grad(expected.transpose(0, 1), (query, key, value), outer), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    if dropout and closed is None:
        assert (weights == 0).float().mean().item() == pytest.approx(dropout, abs=0.05)


@pytest.mark.parametrize("form", [{}, {"causal": True}, {"span": 8}, {"causal": True, "span": 3}])
def test_windows_that_go_together_are_those_that_go_alone(form: dict[str, Any]) -> None:
    """Of sizes that share rows and that do not, more of one size than go together, in any order."""
    torch.manual_seed(0)
    lengths = (33, 5, 64, 1, 12, 40, 250, 32, 31, *[9] * 70)
    query, key, value = (torch.randn(2, sum(lengths), 4, requires_grad=True) for _ in range(3))
    outer = torch.randn(sum(lengths), 2, 4)
    found = attend(query, key, value, Shape(lengths, **form), 0.0, 0.3)
    gradients = torch.autograd.grad(found, (query, key, value), outer)
    parts = zip(*(one.split(lengths, dim=1) for one in (query, key, value)), strict=True)
    alone = [attend(*part, Shape((length,), **form), 0.0, 0.3) for length, part in zip(lengths, parts, strict=True)]
    expected = torch.cat(alone)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for one, other in zip(gradients, torch.autograd.grad(expected, (query, key, value), outer), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_tanh_gelu_is_the_librarys() -> None:
    holder = nn.Sequential(AutoModelForQuestionAnswering.from_config(model_of("bert").config).bert.encoder.layer[0])
    modules.swap(holder, "cuda")
    gelu = next(module for module in holder.modules() if isinstance(module, nn.GELU))
    x = torch.linspace(-6, 6, 1001)
    expected = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    torch.testing.assert_close(gelu(x), expected, rtol=1e-5, atol=1e-6)
    assert functional.gelu(torch.tensor(1.0)) != gelu(torch.tensor(1.0))


@given(st.lists(st.integers(1, 512), min_size=1, max_size=60), st.integers(512, 4096))
def test_every_window_is_dealt_out_once_and_fits(lengths: list[int], tokens: int) -> None:
    parts = fill(lengths, tokens)
    assert sorted(chain(*parts)) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in part) <= tokens for part in parts)
    padded = split_padded(lengths, tokens)
    assert sorted(chain(*padded)) == list(range(len(lengths)))
    assert all(max(lengths[i] for i in part) * len(part) <= tokens for part in padded)


@pytest.mark.parametrize("packs", [True, False])
def test_processes_run_as_many_micro_batches_on_all_windows(packs: bool) -> None:
    lengths = [40, 5, 7, 30, 8, 9, 21]
    windows = Rows(pa.Table.from_pylist(rows_of(tuple(lengths))))
    found: list[int] = []
    counts = set()
    for rank in range(3):
        feed = Feed(
            DataOrder(num_windows=7, global_batch=7, seed=1), windows, lengths, QuestionAnswering(0, True),
            tokens=45, packs=packs, device=torch.device("cpu"), rank=rank, world_size=3,
        )  # fmt: skip
        batches = feed.take(0)
        counts.add(len(batches))
        for batch in batches:
            if "weight" not in batch:
                sizes = (batch["places"] >= 0).sum(1) if packs else batch["attention_mask"].sum(1)
                found += sizes.tolist()
        assert [one["input_ids"].tolist() for one in feed.take(0)] == [one["input_ids"].tolist() for one in batches]
        feed.close()
    assert sorted(found) == sorted(lengths) and len(counts) == 1


def test_attention_that_is_never_told_where_windows_end_does_not_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits that agree say nothing then: on a device that computes nothing all are alike."""
    model, task = SimpleNamespace(training=False), SimpleNamespace(collate=lambda rows: rows, pack=lambda rows: rows)
    for name in ("eval", "train"):
        setattr(model, name, lambda *_: None)
    model.config = SimpleNamespace(vocab_size=100)
    model.parameters = lambda: iter([torch.zeros(1)])
    monkeypatch.setattr(packing, "_logits", lambda *_: torch.zeros(2, 2, 4))
    monkeypatch.setattr(packing.attention, "spans_of", lambda config: [])
    calls = iter([0, 0, 0, 2])
    monkeypatch.setattr(packing.attention, "count_packed", lambda: next(calls))
    assert not packing.can_pack(model, task, 16)  # type: ignore[arg-type]
    assert packing.can_pack(model, task, 16)  # type: ignore[arg-type]
