"""AdamW on bf16 weights without fp32 masters: results are rounded at random, so that small changes are not lost.

In: bf16 parameters. Out: an optimizer. A weight of 1.0 in bf16 has its neighbours 0.004 away and a step of 1e-5 would
always round back; rounded up with the right probability, steps are kept on average. Moments are bf16, rounded at random
as well, or bitsandbytes' 8-bit codes. Works on pieces of a parameter, so that what is held for a moment stays small.

Source: stochastic rounding for training, arXiv:2010.06192.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bigqa.engine.attention.kernels import STAND_IN_FOR
from bigqa.engine.optim.moments import BLOCK, NAMES
from bigqa.engine.optim.pieces import pieces_of

Make = Callable[[int, torch.dtype], Tensor]
SMALLEST_8BIT = 4096
"""As bitsandbytes: smaller parameters keep bf16 moments."""
QUIET_NAN = 0x7FC00000
"""Bits of an fp32 NaN that bf16 has as well. Finite values and infinity, as integers, are smaller."""
UNPACKED = 5
"""fp32 tensors: both moments, the gradient, and two steps of the denominator."""


class RoundedAdamW(torch.optim.Optimizer):
    """AdamW (arXiv:1711.05101) with random rounding."""

    def __init__(
        self, groups: Any, *, lr: float, eps: float, betas: tuple[float, float], eight_bit: bool = False,
        make: Make | None = None,
    ) -> None:  # fmt: skip
        """`make`: makes flat states of zeros, in host memory; none: they lie beside their parameter."""
        super().__init__(groups, {"lr": lr, "eps": eps, "betas": betas, "weight_decay": 0.0})
        self.eight_bit, self._make = eight_bit, make
        self._generator: torch.Generator | None = None
        self._seeds = (0, 0, 0)

    def draw_from(self, step: int, seed: int, index: int = 0) -> None:
        """Seed the rounding of a step: it is the same on every process, and after a resume."""
        self._seeds = (seed, step, index)
        self._generator = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step every parameter that has a gradient."""
        self._generator = None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.step_one(group, parameter, parameter.grad)

    def make_state(self, parameter: nn.Parameter) -> dict[str, Any]:
        """Make a parameter's state, if it has none, and return it."""
        state = self.state[parameter]
        if state:
            return state
        state["step"] = 0
        if self.eight_bit and parameter.numel() >= SMALLEST_8BIT:
            blocks = -(-parameter.numel() // BLOCK)
            for number, signed in (("1", True), ("2", False)):
                state[f"state{number}"] = self._zeros(parameter, torch.uint8)
                state[f"absmax{number}"] = (
                    torch.zeros(blocks, dtype=torch.float32, device=parameter.device)
                    if self._make is None
                    else self._make(blocks, torch.float32)
                )
                state[f"qmap{number}"] = _code(parameter.device, signed=signed)
        else:
            state |= {name: self._zeros(parameter, parameter.dtype) for name in NAMES}
        return state

    def _zeros(self, parameter: nn.Parameter, dtype: torch.dtype) -> Tensor:
        if self._make is None:
            return torch.zeros_like(parameter, dtype=dtype)
        return self._make(parameter.numel(), dtype).view(parameter.shape)

    def kept_of(self, parameter: nn.Parameter) -> list[Tensor]:
        """Return what is kept of a parameter for each element, or block of them: flat."""
        kept = [value for name, value in self.state[parameter].items() if name not in ("step", "qmap1", "qmap2")]
        return [value.view(-1) for value in kept]

    def step_one(
        self, group: dict[str, Any], parameter: nn.Parameter, gradient: Any, pieces: Iterable[slice] | None = None
    ) -> None:
        """Step a parameter; of its gradient nothing is asked but flat pieces. `pieces`: those of `pieces_of`."""
        state = self.make_state(parameter)
        state["step"] += 1
        weights, flat_gradient = parameter.view(-1), gradient.view(-1)
        for piece in pieces_of(weights) if pieces is None else pieces:
            exact, exact_gradient = weights[piece].float(), flat_gradient[piece].float()
            step = self._step_8bit if "state1" in state else self._step_bf16
            step(group, state, piece, exact, exact_gradient)
            self._round(exact, weights[piece])
            del exact, exact_gradient  # else they are held while the next piece's are made

    def _step_bf16(self, group: dict[str, Any], state: dict[str, Any], piece: slice, weight: Tensor, g: Tensor) -> None:
        kept = [state[name].view(-1)[piece] for name in NAMES]
        first, second = (moment.float() for moment in kept)
        if not weight.is_meta:
            beta1, beta2 = group["betas"]
            torch._fused_adamw_(
                [weight], [g], [first], [second], [], [torch.full((), float(state["step"]), device=weight.device)],
                lr=float(group["lr"]), beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"],
                amsgrad=False, maximize=False,
            )  # fmt: skip
        for exact, moment in zip((first, second), kept, strict=True):
            self._round(exact, moment)

    def _step_8bit(self, group: dict[str, Any], state: dict[str, Any], piece: slice, weight: Tensor, g: Tensor) -> None:
        if weight.is_meta:
            unpack_without_data(weight)
            return
        from bigqa.engine.optim.eight_bit import step_8bit

        step_8bit(group, state, piece, weight, g)

    def _round(self, exact: Tensor, out: Tensor) -> None:
        """Add a number from 0 to 1 of bf16's last place to fp32 values, and cut off what bf16 has no place for."""
        count = exact.numel()
        noise = torch.empty(-(-count // 4), dtype=torch.int64, device=exact.device)
        # One draw of 64 bits makes four numbers: several times faster than a draw for each.
        noise.random_(torch.iinfo(torch.int64).min, None, generator=self._generator_for(exact))
        draws = noise.view(torch.int16)[:count].bitwise_and_(0x7FFF)
        # A GPU's own NaN has all bits set but the sign: anything added to it would carry over and make it zero.
        bits = exact.view(torch.int32).clamp_(max=QUIET_NAN)
        # The odd numbers below 2**16 are as fair, and leave alone what bf16 holds exactly.
        bits.add_(draws, alpha=2).add_(1).bitwise_and_(-0x10000)
        out.copy_(exact)

    def _generator_for(self, tensor: Tensor) -> torch.Generator | None:
        if tensor.is_meta:
            return None
        if self._generator is None:
            seed, step, index = self._seeds
            mixed = (seed * 1_000_003 + step) * 1_000_003 + index
            self._generator = torch.Generator(tensor.device).manual_seed(mixed & (2**63 - 1))
        return self._generator


def unpack_without_data(piece: Tensor) -> None:
    """Hold for a moment, in a trace, what bitsandbytes' 8-bit step holds: on a CPU it unpacks, on a GPU nothing.

    Source: its backends/cpu/ops.py, `_optimizer_update_8bit_blockwise_cpu`.
    """
    if STAND_IN_FOR.get() == "cpu":
        held = [torch.empty_like(piece, dtype=torch.float32) for _ in range(UNPACKED)]
        held.clear()


def _code(device: torch.device, *, signed: bool) -> Tensor:
    if device.type == "meta":
        return torch.zeros(256, device=device)
    from bitsandbytes.functional import create_dynamic_map

    code: Tensor = create_dynamic_map(signed=signed).to(device)
    return code
