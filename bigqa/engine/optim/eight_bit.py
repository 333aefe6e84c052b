"""AdamW with 8-bit moments: bitsandbytes' own kernels, on a CPU piece by piece, on a GPU without waiting for them.

In: parameters and gradients. Out: stepped parameters. bitsandbytes unpacks a whole parameter's moments on a CPU, five
fp32 tensors of its size; blocks of 256 share a scale and nothing else, so pieces give the same to the bit. On a GPU its
own loop has the host wait after every parameter, so that nothing is launched ahead.
"""

import weakref
from typing import Any

import torch
from bitsandbytes.functional import optimizer_update_8bit_blockwise
from bitsandbytes.optim import AdamW8bit
from torch import Tensor, nn

from bigqa.engine.cudart import free
from bigqa.engine.optim.moments import BLOCK
from bigqa.engine.optim.pieces import pieces_of


class PiecewiseAdamW8bit(AdamW8bit):
    """Steps large parameters on a CPU by pieces, and one after the other without a wait; kernels are bitsandbytes'."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step every parameter that has a gradient: all on one stream, so that each finds what the one before left."""
        self.begin()
        waits_for: torch.device | None = None
        for gindex, group in enumerate(self.param_groups):
            for pindex, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.init_state(group, p, gindex, pindex)
                self.prefetch_state(p)
                self.update_step(group, p, gindex, pindex)
                waits_for = p.device if self.is_paged and p.device.type == "cuda" else waits_for
        if waits_for is not None:  # the host can touch paged states: once a step, they are there for it
            torch.cuda.synchronize(waits_for)

    def get_state_buffer(self, p: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Make a part of a state; one in managed memory is freed with its last tensor, as bitsandbytes never does."""
        buffer: Tensor = super().get_state_buffer(p, dtype)
        if getattr(buffer, "is_paged", False):
            pages = self.page_mng.paged_tensors  # holds all that there ever were
            if pages and pages[-1] is buffer:
                pages.pop()
                weakref.finalize(buffer.untyped_storage(), free, buffer.data_ptr()).atexit = False
        return buffer

    def begin(self) -> None:
        """Do what bitsandbytes does once, before there are states."""
        if not self.initialized:
            self.check_overrides()
            self.to_gpu()
            self.initialized = True

    @torch.no_grad()
    def update_step(self, group: dict[str, Any], p: nn.Parameter, gindex: int, pindex: int) -> None:
        """Step one parameter."""
        state = self.state[p]
        if p.device.type != "cpu" or state["state1"].dtype != torch.uint8:
            super().update_step(group, p, gindex, pindex)
            return
        state["step"] += 1
        assert p.grad is not None
        options = self.get_config(gindex, pindex, group)
        weights, gradient = p.data.view(-1), p.grad.reshape(-1)
        for piece in pieces_of(weights):
            step_8bit(options, state, piece, weights[piece], gradient[piece])


def step_8bit(group: dict[str, Any], state: dict[str, Any], piece: slice, weight: Tensor, gradient: Tensor) -> None:
    """Step a piece of a parameter, given as such, with its moments, which are whole."""
    blocks = slice(piece.start // BLOCK, -(-piece.stop // BLOCK))
    (codes1, scales1), (codes2, scales2) = (
        (state[f"state{number}"].view(-1)[piece], state[f"absmax{number}"][blocks]) for number in "12"
    )
    beta1, beta2 = group["betas"][:2]
    optimizer_update_8bit_blockwise(
        "adam", gradient, weight, codes1, codes2, beta1, beta2, 0.0, 0.0, group["eps"], state["step"], group["lr"],
        state["qmap1"], state["qmap2"], scales1, scales2, group["weight_decay"],
    )  # fmt: skip
