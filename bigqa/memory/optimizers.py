"""Optimizers as far as memory goes, for kernels that do not run without data. In: parameters. Out: their state.

Each form is that of the implementation which `engine.optimizers` names: what it keeps, and what it holds for a moment.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bigqa.engine.optim.moments import BLOCK
from bigqa.engine.optim.optimizers import BETAS
from bigqa.engine.optim.pieces import pieces_of
from bigqa.engine.optim.rounding import SMALLEST_8BIT, RoundedAdamW, unpack_without_data
from bigqa.strategy import Strategy

SMALLEST_PAGED = 100_000
"""Elements. Source: bitsandbytes, `Optimizer8bit.get_state_buffer`."""


def stand_in(groups: list[dict[str, Any]], strategy: Strategy) -> torch.optim.Optimizer:
    """Return the optimizer of a trace, its state made: our own one itself, a stand-in for one that needs data."""
    if strategy.precision == "bf16-sr":
        optimizer = RoundedAdamW(groups, lr=0.0, eps=1e-6, betas=BETAS, eight_bit=strategy.optimizer != "adamw")
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.make_state(parameter)
        return optimizer
    return StandIn(groups, strategy)


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Yield what an optimizer keeps."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


class StandIn(torch.optim.Optimizer):
    """Keeps the state that AdamW keeps, and does nothing else.

    Fused AdamW and bitsandbytes' kernels on a GPU step in place and hold nothing for a moment.
    """

    def __init__(self, groups: list[dict[str, Any]], strategy: Strategy) -> None:
        super().__init__(groups, {"lr": 0.0})
        self.kind = strategy.optimizer
        self.unpacks = strategy.optimizer != "adamw"
        self.managed_bytes = 0
        self.lacks_codes = self.unpacks and strategy.device == "cuda"
        self.kept_elsewhere = strategy.offload_optimizer != "none"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    self.state[parameter] = dict(self._state(parameter))

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Hold what each parameter's step holds; the state is there."""
        for group in self.param_groups if self.unpacks else ():
            for parameter in group["params"]:
                flat = parameter.view(-1)
                for piece in pieces_of(flat):
                    unpack_without_data(flat[piece])

    def _state(self, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
        if self.kept_elsewhere:
            return
        if self.kind == "adamw":  # as `torch.optim.AdamW` makes them
            yield "step", parameter.new_zeros((), dtype=torch.float32)
        if self.kind == "adamw" or parameter.numel() < SMALLEST_8BIT:
            dtype = parameter.dtype if self.kind == "adamw" else torch.float32
            for name in ("exp_avg", "exp_avg_sq"):
                yield name, torch.zeros_like(parameter, dtype=dtype)
        else:
            # What codes mean, once for each moment, ahead of the first parameter's (`Optimizer2State.init_state`).
            for number in ("1", "2") if self.lacks_codes else ():
                yield f"qmap{number}", parameter.new_zeros(256, dtype=torch.float32)
            self.lacks_codes = False
            for number in ("1", "2"):
                if self.kind == "paged-adamw8bit" and parameter.numel() >= SMALLEST_PAGED:
                    self.managed_bytes += parameter.numel()
                else:
                    yield f"state{number}", torch.zeros_like(parameter, dtype=torch.uint8)
            for number in ("1", "2"):
                yield f"absmax{number}", parameter.new_zeros(-(-parameter.numel() // BLOCK), dtype=torch.float32)
