"""Moments out of one optimizer and into another of its kind; what is said where a package is missing."""

import sys
from typing import Any

import pytest
import torch
from torch import nn

from bigqa.engine import adapters, sharding
from bigqa.engine.attention.windows import STANDS_FOR
from bigqa.engine.optim import moments
from bigqa.engine.optim.optimizers import make_optimizer
from bigqa.engine.optim.pieces import PIECE, pieces_of
from bigqa.engine.quantized import QuantizedLinear
from bigqa.errors import BigqaError
from bigqa.memory.optimizers import StandIn, state_tensors
from bigqa.strategy import Strategy

STRATEGIES = {
    "adamw": Strategy(precision="fp32", device="cpu"),
    "8bit": Strategy(precision="fp32", device="cpu", optimizer="adamw8bit"),
    "stochastic": Strategy(precision="bf16-sr", device="cpu"),
    "stochastic-8bit": Strategy(precision="bf16-sr", device="cpu", optimizer="adamw8bit"),
}
SHAPES = [(100, 90), (7,), (64, 80)]
"""Two whose moments have 8 bits where the others' do, one of them no whole number of blocks; and a small one."""


def made(name: str) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    strategy = STRATEGIES[name]
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if strategy.precision == "bf16-sr" else torch.float32
    weights = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    groups = [{"params": weights[:2], "weight_decay": 0.01}, {"params": weights[2:], "weight_decay": 0.0}]
    return dict(zip("abc", weights, strict=True)), make_optimizer(strategy, groups, lr=1e-2, eps=1e-6)


def step(weights: dict[str, nn.Parameter], optimizer: Any, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for parameter in weights.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    if hasattr(optimizer, "draw_from"):
        optimizer.draw_from(number, 1)
    optimizer.step()


@pytest.mark.parametrize("name", STRATEGIES)
def test_moments_that_are_taken_out_and_put_back_change_nothing(name: str) -> None:
    if "8bit" in name:
        pytest.importorskip("bitsandbytes")
    weights, optimizer = made(name)
    assert moments.makers("a", optimizer, weights["a"]) == {}
    for number in range(3):
        step(weights, optimizer, number)
    others, other = made(name)
    for key, parameter in weights.items():
        with torch.no_grad():
            others[key].copy_(parameter)
        makers = moments.makers(key, optimizer, parameter)
        assert set(makers) == {f"exp_avg.{key}", f"exp_avg_sq.{key}"}
        first, second = (make() for make in makers.values())
        assert first.dtype == second.dtype == torch.float32 and first.shape == second.shape == parameter.shape
        moments.put(other, others[key], (first, second), 3)
        # Of 8 bits, scales come back but for their last bit; the codes are the same.
        for part, value in optimizer.state[parameter].items():
            again = other.state[others[key]][part]
            if "absmax" in part:
                torch.testing.assert_close(again, value, rtol=3e-7, atol=0.0)
            else:
                assert torch.equal(torch.as_tensor(again), torch.as_tensor(value)), part
    for number in (3, 4):
        step(weights, optimizer, number)
        step(others, other, number)
    for key, parameter in weights.items():
        if "8bit" in name:
            torch.testing.assert_close(others[key], parameter, rtol=2e-5, atol=1e-6)
        else:
            assert torch.equal(others[key], parameter)


@pytest.mark.parametrize("name", ["8bit", "stochastic-8bit"])
def test_8_bit_moments_have_a_scale_for_each_of_bitsandbytes_blocks(name: str) -> None:
    library = pytest.importorskip("bitsandbytes")
    weights, optimizer = made(name)
    theirs = library.optim.AdamW8bit([nn.Parameter(torch.randn(SHAPES[0]))], lr=1e-2)
    theirs.param_groups[0]["params"][0].grad = torch.randn(SHAPES[0])
    theirs.step()
    step(weights, optimizer, 0)
    expected = next(iter(theirs.state.values()))
    state = optimizer.state[weights["a"]]
    for number in "12":
        for part in ("state", "absmax", "qmap"):
            ours, known = state[f"{part}{number}"], expected[f"{part}{number}"]
            assert (ours.numel(), ours.dtype) == (known.numel(), known.dtype)
        torch.testing.assert_close(state[f"qmap{number}"], expected[f"qmap{number}"])
    assert "absmax1" not in optimizer.state[weights["b"]] or optimizer.state[weights["b"]]["absmax1"] is None


def test_the_moments_are_adams() -> None:
    # After one step from nothing: a tenth of the gradient, a thousandth of its square.
    weights, optimizer = made("adamw")
    step(weights, optimizer, 0)
    first, second = (make() for make in moments.makers("c", optimizer, weights["c"]).values())
    gradient = weights["c"].grad
    assert gradient is not None
    torch.testing.assert_close(first, 0.1 * gradient)
    torch.testing.assert_close(second, 0.001 * gradient**2)


@pytest.mark.parametrize(("count", "pieces"), [(10, 1), (PIECE, 1), (PIECE + 1, 2), (5 * PIECE // 2, 3)])
def test_the_piece_without_data_is_the_first_and_stands_for_all(count: int, pieces: int) -> None:
    found = [(piece, STANDS_FOR.get()) for piece in pieces_of(torch.empty(count, device="meta"))]
    assert found == [(slice(0, min(PIECE, count)), pieces)]
    assert STANDS_FOR.get() == 1


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("bigqa.engine.optim.eight_bit", "bitsandbytes.functional", "peft", "deepspeed"):
        monkeypatch.setitem(sys.modules, module, None)
    parameters = [{"params": [nn.Parameter(torch.ones(2))]}]
    with pytest.raises(BigqaError, match=r"pip install 'bigqa\[8bit\]'"):
        make_optimizer(STRATEGIES["8bit"], parameters, lr=1.0, eps=1.0)
    with pytest.raises(BigqaError, match=r"pip install 'bigqa\[8bit\]'"):
        QuantizedLinear(nn.Linear(2, 2))
    with pytest.raises(BigqaError, match=r"pip install 'bigqa\[adapters\]'"):
        adapters.apply(nn.Linear(2, 2), "lora")
    with pytest.raises(BigqaError, match=r"pip install 'bigqa\[deepspeed\]'"):
        sharding._deepspeed("cpu")


def test_a_trace_has_the_states_that_bitsandbytes_makes_and_codes_ahead_of_them() -> None:
    parameters = [nn.Parameter(torch.zeros(size)) for size in (100, 5000, 4096)]
    library = pytest.importorskip("bitsandbytes.optim").AdamW8bit(parameters)
    for place, parameter in enumerate(parameters):
        library.init_state(library.param_groups[0], parameter, 0, place)
    made = {one.data_ptr(): one.nbytes for one in state_tensors(library)}
    strategy = Strategy(precision="bf16", device="cuda", optimizer="adamw8bit")
    ours = [(one.dtype, one.nbytes) for one in state_tensors(StandIn([{"params": parameters}], strategy))]
    assert sorted(size for _, size in ours) == sorted(made.values())
    assert [size for _, size in ours[:5]] == [400, 400, 1024, 1024, 5000]  # codes come with the first of 8 bits
