"""Gradient release: each parameter steps as soon as its gradient is whole, and the gradient is freed.

In: a model and a maker of optimizers. Out: an `Update` that never holds all gradients of a step at once.

The global norm is known only when the last gradient is, so gradients are clipped by the norm of the step before: in the
run's first step, which has none, each parameter by its own norm. That is rounding of a kind, and tier 1 says so.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bigqa.engine.optim.pieces import pieces_of
from bigqa.engine.optim.precision import Weights
from bigqa.engine.optim.update import Update

MakeOptimizer = Callable[[dict[str, Any]], torch.optim.Optimizer]
"""Takes one group of parameters."""


class ReleasedUpdate(Update):
    """Steps parameters within the backward pass of the last micro-batch. For one process: nothing is averaged."""

    def __init__(
        self, model: nn.Module, weights: Weights, groups: list[dict[str, Any]], make: MakeOptimizer, *, clip: float
    ) -> None:
        single = {p: make(group | {"params": [p]}) for group in groups for p in group["params"]}
        super().__init__(model, weights, _Together(single), clip=clip)
        self._single = single
        self._is_last = False
        self._last_norm: Tensor | None = None
        self._squares: list[Tensor] = []
        for name, parameter in weights.model_parameters.items():
            parameter.register_post_accumulate_grad_hook(self._hook(weights.masters[name]))

    @contextlib.contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        """Release gradients in the last micro-batch alone: before, they are added up."""
        self._is_last = is_last
        try:
            yield
        finally:
            self._is_last = False

    def backward(self, loss: Tensor) -> None:
        """Add gradients up, or in the last micro-batch step with them."""
        if self._is_last and not self.changing:
            self.turn.acquire()  # until the step is over
        self.changing = self._is_last
        super().backward(loss)

    def step(self) -> Tensor:
        """Return the norm; the parameters have been stepped."""
        norm = torch.linalg.vector_norm(torch.stack(self._squares), 2.0)
        self._squares, self._last_norm = [], norm
        self.completed += 1
        if self.changing:
            self.changing = False
            self.turn.release()
        return norm

    def optimizer_of(self, master: nn.Parameter) -> torch.optim.Optimizer:
        """Return the optimizer that steps a parameter."""
        return self._single[master]

    def _hook(self, master: nn.Parameter) -> Callable[[Tensor], None]:
        def release(parameter: Tensor) -> None:
            if self._is_last and parameter.grad is not None:
                self.release(parameter, master)

        return release

    def release(self, parameter: Tensor, master: nn.Parameter) -> None:
        """Step a parameter whose gradient is whole, and free the gradient."""
        assert parameter.grad is not None
        if parameter is not master:
            master.grad, parameter.grad = parameter.grad.float(), None
        gradient = master.grad
        assert gradient is not None
        flat = gradient.view(-1)
        norm = torch.stack([torch.linalg.vector_norm(flat[piece].float(), 2.0) for piece in pieces_of(flat)]).norm()
        self._squares.append(norm)
        known = norm if self._last_norm is None else self._last_norm
        gradient.mul_(torch.clamp(self.clip / (known + 1e-6), max=1.0))
        self._single[master].step()
        del gradient
        master.grad = None
        if parameter is not master:
            with torch.no_grad():
                parameter.copy_(master)

    def _extras(self) -> dict[str, Any]:
        norm = {} if self._last_norm is None else {"last_norm": float(self._last_norm)}
        return super()._extras() | norm

    def _load_extras(self, extras: Mapping[str, Any]) -> None:
        super()._load_extras(extras)
        if extras.get("last_norm") is not None:
            device = next(iter(self.weights.masters.values())).device
            self._last_norm = torch.tensor(extras["last_norm"], device=device)


class _Together(torch.optim.Optimizer):
    """The groups of many optimizers as one, to set rates."""

    def __init__(self, single: Mapping[nn.Parameter, torch.optim.Optimizer]) -> None:
        self.param_groups = [group for optimizer in single.values() for group in optimizer.param_groups]
        self.single = single

    def draw_from(self, step: int, seed: int) -> None:
        """Tell every optimizer that draws."""
        for index, optimizer in enumerate(self.single.values()):
            draw = getattr(optimizer, "draw_from", None)
            if draw is not None:
                draw(step, seed, index)
