"""Gradient release and stochastic rounding, against the plain update and against what probability says."""

from typing import Any

import pytest
import torch
from test_engine import FP32, parts_for, rows
from torch import Tensor, nn

from bigqa.engine.attention.windows import STANDS_FOR
from bigqa.engine.loop.step import train_step
from bigqa.engine.optim.pieces import PIECE, pieces_of
from bigqa.engine.optim.rounding import RoundedAdamW
from bigqa.strategy import Strategy

ROUNDED = Strategy(precision="bf16-sr", device="cpu")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def trained(strategy: Strategy, steps: int = 6, clip: float = 1e9, pieces: int = 1) -> list[torch.Tensor]:
    parts = parts_for(network(), strategy, lr=0.01, clip=clip)
    data = rows(8)
    size = 8 // pieces
    for step in range(steps):
        batches = [parts.task.collate(data[i * size : (i + 1) * size]) for i in range(pieces)]
        for batch in batches:
            batch["input_ids"] = batch["input_ids"].to(next(parts.model.parameters()).dtype)
        parts.update.begin(step, 7)
        train_step(parts, batches, 8)
        assert all(p.grad is None for p in parts.model.parameters())
    return [p.detach().clone() for p in parts.update.weights.masters.values()]


@pytest.mark.parametrize("pieces", [1, 4])
def test_released_gradients_give_the_plain_step_where_nothing_is_clipped(pieces: int) -> None:
    plain, released = trained(FP32, pieces=pieces), trained(FP32.model_copy(update={"release": True}), pieces=pieces)
    for one, other in zip(plain, released, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_released_gradients_are_clipped_by_the_norm_before() -> None:
    parts = parts_for(nn.Linear(3, 1), FP32.model_copy(update={"release": True}), clip=0.5)
    seen: list[float] = []
    for parameter, optimizer in parts.update._single.items():  # type: ignore[attr-defined]
        real = optimizer.step

        def step(parameter: nn.Parameter = parameter, real=real) -> None:  # type: ignore[no-untyped-def]
            assert parameter.grad is not None
            seen.append(float(parameter.grad.norm()))
            real()

        optimizer.step = step
    batch = parts.task.collate(rows(4))
    _, first = train_step(parts, [batch], 4)
    assert len(seen) == 2 and all(norm <= 0.5 + 1e-6 for norm in seen)
    seen.clear()
    parts.update.load(parts.update.state(), 1)  # a resumed run goes on with the norm that it had
    _, second = train_step(parts, [batch], 4)
    whole = sum(norm**2 for norm in seen) ** 0.5
    assert whole == pytest.approx(float(second) * 0.5 / float(first), rel=1e-4)


def test_gradients_are_freed_one_by_one() -> None:
    parts = parts_for(network(), FP32.model_copy(update={"release": True}))
    live: list[int] = []
    for parameter in parts.model.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _: live.append(sum(p.grad is not None for p in parts.model.parameters()))
        )
    train_step(parts, [parts.task.collate(rows(4))], 4)
    assert live == [0, 0, 0, 0]


def test_rounding_keeps_values_on_average() -> None:
    """1 + 2**-10 lies an eighth of the way from 1 to its neighbour in bf16, 1 + 2**-7."""
    optimizer = RoundedAdamW([nn.Parameter(torch.zeros(1))], lr=0.1, eps=1e-8, betas=(0.9, 0.999))
    exact = torch.full((200_000,), 1 + 2**-10)
    rounded = torch.empty(200_000, dtype=torch.bfloat16)
    optimizer._round(exact, rounded)
    assert set(rounded.float().unique().tolist()) == {1.0, 1 + 2**-7}
    share = (rounded > 1).float().mean().item()
    assert share == pytest.approx(1 / 8, abs=4 * (1 / 8 * 7 / 8 / 200_000) ** 0.5)


def test_what_bf16_holds_is_left_alone() -> None:
    optimizer = RoundedAdamW([nn.Parameter(torch.zeros(1))], lr=0.1, eps=1e-8, betas=(0.9, 0.999))
    exact = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, -3.0, 2.0**100, -(2.0**-100)]).repeat(1000)
    rounded = torch.empty(8000, dtype=torch.bfloat16)
    optimizer._round(exact.clone(), rounded)
    assert torch.equal(rounded.float(), exact)


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0x7FC00000, -0x400000], ids=["gpu", "arm", "x86"])
def test_what_is_no_number_stays_none(bits: int) -> None:
    """A GPU's is 0x7fffffff (PTX ISA, floating-point instructions): as -0.0 it would be trained on, and none told."""
    optimizer = RoundedAdamW([nn.Parameter(torch.zeros(1))], lr=0.1, eps=1e-8, betas=(0.9, 0.999))
    infinite = torch.tensor([float("inf"), -float("inf")])
    exact = torch.cat([torch.full((1000,), bits, dtype=torch.int32).view(torch.float32), infinite])
    rounded = torch.empty(1002, dtype=torch.bfloat16)
    optimizer._round(exact, rounded)
    assert rounded[:1000].isnan().all() and torch.equal(rounded[1000:].float(), infinite)


@pytest.mark.parametrize("eight_bit", [False, True])
def test_random_rounding_follows_adamw(eight_bit: bool) -> None:
    """Steps of 1e-4 are lost in bf16 at 1.0, whose neighbour below is 0.004 away; on average none may be."""
    if eight_bit:
        pytest.importorskip("bitsandbytes")
    start = torch.ones(64 * 1024)
    exact, rounded = nn.Parameter(start.clone()), nn.Parameter(start.bfloat16())
    plain = torch.optim.AdamW([exact], lr=1e-4, eps=1e-6, weight_decay=0.01)
    ours = RoundedAdamW(
        [{"params": [rounded], "weight_decay": 0.01}], lr=1e-4, eps=1e-6, betas=(0.9, 0.999), eight_bit=eight_bit
    )
    for step in range(40):
        gradient = torch.randn(start.shape, generator=torch.Generator().manual_seed(step)) * 0.1 + 1.0
        exact.grad, rounded.grad = gradient, gradient.bfloat16()
        ours.draw_from(step, 1)
        plain.step()
        ours.step()
    moved = 1 - exact.mean().item()
    assert 1 - rounded.float().mean().item() == pytest.approx(moved, rel=0.03)


def test_a_step_draws_the_same_whenever_it_is_run() -> None:
    assert all(torch.equal(a, b) for a, b in zip(trained(ROUNDED), trained(ROUNDED), strict=True))


def test_pieces_of_a_large_parameter_are_stepped_alike() -> None:
    count = PIECE + 4096
    parameter = nn.Parameter(torch.ones(count, dtype=torch.bfloat16))
    optimizer = RoundedAdamW([parameter], lr=0.5, eps=1e-8, betas=(0.9, 0.999))
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for piece in (parameter[:PIECE], parameter[PIECE:]):
        assert piece.float().mean().item() == pytest.approx(1 - 0.5, rel=1e-3)


def test_8_bit_steps_by_pieces_are_those_of_bitsandbytes_to_the_bit() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from bigqa.engine.optim.eight_bit import PiecewiseAdamW8bit

    shapes = [(2 * PIECE + 700,), (100, 300), (64,)]  # several pieces, one piece, too small for 8 bits

    def trained(kind: Any) -> list[Tensor]:
        random = torch.Generator().manual_seed(3)
        parameters = [nn.Parameter(torch.randn(shape, generator=random)) for shape in shapes]
        optimizer = kind(parameters, lr=1e-2, eps=1e-6, weight_decay=0.1)
        for _ in range(4):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=random)
            optimizer.step()
        moments = [optimizer.state[parameter][name] for parameter in parameters for name in ("state1", "state2")]
        return [parameter.detach() for parameter in parameters] + moments

    ours, theirs = trained(PiecewiseAdamW8bit), trained(bitsandbytes.optim.AdamW8bit)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_without_data_the_first_piece_stands_for_all() -> None:
    flat = torch.empty(3 * PIECE + 1, device="meta")
    assert [(piece.stop, STANDS_FOR.get()) for piece in pieces_of(flat)] == [(PIECE, 4)]
    assert STANDS_FOR.get() == 1
    covered = torch.zeros(3 * PIECE + 1)
    for piece in pieces_of(covered):
        covered[piece] += 1
    assert bool((covered == 1).all())
