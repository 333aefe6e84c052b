"""Logits of many windows: those of each window alone, in order, whatever is computed together."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForQuestionAnswering

from bigqa.engine import inference
from bigqa.engine.attention import kernels
from bigqa.run import prediction
from bigqa.tasks.qa.task import QuestionAnswering
from bigqa.tasks.rows import Rows

LENGTHS = [9, 30, 4, 17, 30, 8, 21]


def windows() -> Rows:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(4, 100, (length,), generator=generator).tolist() for length in LENGTHS]
    return Rows.of_columns({"input_ids": ids, "token_type_ids": [[0] * length for length in LENGTHS]})


def made(family: str) -> tuple[Any, QuestionAnswering]:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForQuestionAnswering.from_config(config)
    if family == "bert":
        assert kernels.use(model)
    return model, QuestionAnswering(0, family == "bert")


def alone(model: Any, data: Rows) -> list[np.ndarray[Any, Any]]:
    found = [model.eval()(input_ids=torch.tensor(row["input_ids"])[None]) for row in data]
    return [torch.stack([one.start_logits[0], one.end_logits[0]]).detach().numpy() for one in found]


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("tokens", [40, 8192])
@pytest.mark.parametrize("chunk", [3, 512])
def test_logits_are_those_of_each_window_alone(
    family: str, tokens: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "BATCH_TOKENS", tokens)
    monkeypatch.setattr(inference, "CHUNK_WINDOWS", chunk)
    model, task = made(family)
    expected = alone(model, windows())
    sizes: list[int] = []
    forward = inference._forward

    def watched(model: Any, inputs: Any, chosen: list[int]) -> Any:
        assert not torch.is_grad_enabled() and not model.training
        sizes.append(sum(LENGTHS[one] for one in chosen))
        longest = max(LENGTHS[one] for one in chosen)
        if family == "bert":  # packed: in order, and no token more
            assert chosen == list(range(chosen[0], chosen[-1] + 1))
        else:  # padded to the longest, among its like
            assert longest * len(chosen) <= tokens and longest == LENGTHS[chosen[0]]
        return forward(model, inputs, chosen)

    monkeypatch.setattr(inference, "_forward", watched)
    told: list[tuple[int, int]] = []
    found = list(
        inference.window_logits(
            model.train(), task, windows(), LENGTHS, torch.device("cpu"), lambda a, b: told.append((a, b))
        )
    )
    assert [number for number, *_ in found] == list(range(len(LENGTHS)))
    for (_, start, end), one in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.stack([start, end]), one, atol=1e-5)
    assert max(sizes) <= tokens and sum(sizes) == sum(LENGTHS)
    assert len(sizes) == len(told) and told[-1] == (len(LENGTHS), len(LENGTHS))
    assert [one for one, _ in told] == sorted({one for one, _ in told})
    if tokens == 8192:
        assert len(sizes) == -(-len(LENGTHS) // chunk)  # as many at once as there is room for


def test_what_has_no_room_is_halved_and_other_errors_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = made("bert")
    expected = alone(model, windows())
    forward, refused = inference._forward, []

    def small(model: Any, inputs: Any, chosen: list[int]) -> Any:
        if len(chosen) > 2:
            refused.append(len(chosen))
            raise errors[0]
        return forward(model, inputs, chosen)

    monkeypatch.setattr(inference, "_forward", small)
    errors: list[Exception] = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("shapes")]
    while len(errors) > 1:
        refused.clear()
        found = list(inference.window_logits(model, task, windows(), LENGTHS, torch.device("cpu")))
        assert refused == [7, 3]  # and nothing of a size again that had no room
        for (_, start, _), one in zip(found, expected, strict=True):
            np.testing.assert_allclose(start, one[0], atol=1e-5)
        errors.pop(0)
    with pytest.raises(RuntimeError, match="shapes"):
        list(inference.window_logits(model, task, windows(), LENGTHS, torch.device("cpu")))


def test_a_model_that_fp16_overflows_with_goes_on_in_fp32_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "BATCH_TOKENS", 40)
    model, task = made("bert")
    with torch.no_grad():
        model.qa_outputs.weight.copy_(torch.randn(2, 32, generator=torch.Generator().manual_seed(1)) * 20_000)
    model.half().float()  # as the weights are rounded
    expected = alone(model, windows())
    assert max(abs(one).max() for one in expected) > torch.finfo(torch.float16).max
    told: list[str] = []
    found = list(inference.window_logits(model.half(), task, windows(), LENGTHS, torch.device("cpu"), tell=told.append))
    assert told == ["fp16 overflows with this model: going on in fp32"]
    for (_, start, end), one in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.stack([start, end]), one, rtol=1e-2, atol=500)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.to("cpu").train()  # and it can be used as any other


def overflowing() -> tuple[Any, QuestionAnswering]:
    model, task = made("bert")
    with torch.no_grad():
        model.qa_outputs.weight.copy_(torch.randn(2, 32, generator=torch.Generator().manual_seed(1)) * 10_000)
    return model.half(), task


def test_a_model_that_is_being_trained_is_given_back_where_it_lay() -> None:
    """DeepSpeed steps the memory that it knows: weights elsewhere would never change again."""
    model, task = overflowing()
    before = [(name, one, one.data_ptr(), one.detach().clone()) for name, one in model.named_parameters()]
    told: list[str] = []
    options: dict[str, Any] = {"tell": told.append, "trains": True}
    found = list(inference.window_logits(model, task, windows(), LENGTHS, torch.device("cpu"), **options))
    assert len(told) == 1 and all(np.isfinite(one).all() for _, *logits in found for one in logits)
    now = dict(model.named_parameters())
    for name, parameter, address, value in before:
        assert now[name] is parameter and parameter.data_ptr() == address and torch.equal(parameter, value), name
    assert {buffer.dtype for buffer in model.buffers()} == {torch.int64}


def test_a_lack_of_memory_to_widen_a_model_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it is in fp32 then: fewer windows would not run either."""
    model, task = overflowing()

    def cast(model: Any, dtype: torch.dtype) -> None:
        model.bert.embeddings.to(dtype)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(inference, "cast", cast)
    with pytest.raises(torch.OutOfMemoryError):
        list(inference.window_logits(model, task, windows(), LENGTHS, torch.device("cpu"), trains=True))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_a_model_within_fp16_stays_in_it() -> None:
    model, task = made("bert")
    told: list[str] = []
    list(inference.window_logits(model.half(), task, windows(), LENGTHS, torch.device("cpu"), tell=told.append))
    assert told == [] and {parameter.dtype for parameter in model.parameters()} == {torch.float16}


@pytest.mark.parametrize(("largest", "asked", "dtype"), [(1.0, "auto", 16), (1e5, "auto", 32), (1e5, "fp16", 16)])
def test_weights_that_fp16_does_not_know_are_not_rounded_to_it(
    monkeypatch: pytest.MonkeyPatch, largest: float, asked: str, dtype: int
) -> None:
    monkeypatch.setattr(prediction, "choose_precision", lambda asked, device: "fp16")
    model, _ = made("bert")
    with torch.no_grad():
        model.qa_outputs.weight[0, 0] = largest
    prediction.ready(model, torch.device("cpu"), asked)
    assert model.qa_outputs.weight.element_size() * 8 == dtype


def test_one_window_that_has_no_room_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = made("bert")

    def never(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(inference, "_forward", never)
    with pytest.raises(MemoryError):
        list(inference.window_logits(model, task, windows(), LENGTHS, torch.device("cpu")))


def test_no_windows_have_no_logits() -> None:
    model, task = made("bert")
    assert list(inference.window_logits(model, task, windows(), [], torch.device("cpu"))) == []
