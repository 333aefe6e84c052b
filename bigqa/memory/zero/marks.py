"""Where DeepSpeed has its hands in a pass: gradients that are complete, modules that begin and end.

In: a model whose micro-batch is traced. Out: marks between the events. The hooks are put as DeepSpeed puts its own
(0.19, `parameter_offload.py`), since where they lie decides when weights come and go: a module that is called with
keywords alone, or with tokens, has no hook at the end of its backward pass.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Kind = Literal["gradient", "forward", "forward-end", "backward", "backward-end", "hold", "let-go"]


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that is done before an event."""

    before: int
    """Number of the event."""
    kind: Kind
    number: int
    """Of the parameter, or of the module."""
    storage: int = 0
    """Of the gradient."""


class _AtBackward(torch.autograd.Function):
    """Does nothing but call back when a gradient passes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, call: Callable[[], None]) -> Tensor:  # type: ignore[override]
        """Pass a tensor on."""
        ctx.call = call
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        """Pass its gradient on."""
        ctx.call()
        return gradient, None


class LinearOfShardedWeights(torch.autograd.Function):
    """A linear layer as DeepSpeed replaces it in ZeRO-3: its bias is added in place, and all gradients come at once.

    Source: `runtime/zero/linear.py`, `LinearFunctionForZeroStage3`.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Multiply, and add the bias."""
        ctx.save_for_backward(value, weight, bias)
        if value.dim() == 2 and bias is not None:
            return torch.addmm(bias, value, weight.t())
        result = value.matmul(weight.t())
        if bias is not None:
            result += bias
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        """Return the gradients of value, weight and bias."""
        value, weight, bias = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        of_value = gradient.matmul(weight) if ctx.needs_input_grad[0] else None
        of_weight = flat.t().matmul(value.reshape(-1, value.shape[-1])) if ctx.needs_input_grad[1] else None
        of_bias = None
        if bias is not None and ctx.needs_input_grad[2]:
            of_bias = gradient.sum([*range(gradient.dim() - 1)])
        return of_value, of_weight, of_bias


def watch_gradients(model: nn.Module, note: Callable[[int, Tensor], None]) -> None:
    """Call back as each parameter's gradient is complete, and let go of it."""
    for number, parameter in enumerate(model.parameters()):
        if not parameter.requires_grad:  # such as RoFormer's positions
            continue

        def hook(of: Tensor, number: int = number) -> None:
            assert of.grad is not None
            note(number, of.grad)
            of.grad = None

        parameter.register_post_accumulate_grad_hook(hook)


def watch_modules(model: nn.Module, note: Callable[[Kind, int], None]) -> None:
    """Call back as modules begin and end, forward and backward."""
    for number, module in enumerate(model.modules()):
        _watch(module, number, note)


class _Watched:
    """How often a module is in the graph, and how many of its inputs still wait for a gradient."""

    def __init__(self) -> None:
        self.passes = self.waiting = 0


def _watch(module: nn.Module, number: int, note: Callable[[Kind, int], None]) -> None:
    state = _Watched()

    def before_backward() -> None:
        if state.passes > 0:
            note("backward", number)
            state.passes -= 1

    def after_backward() -> None:
        state.waiting -= 1
        if state.waiting == 0:
            note("backward-end", number)

    def at_output(tensor: Tensor) -> Tensor:
        state.passes += 1
        passed: Tensor = _AtBackward.apply(tensor, before_backward)  # type: ignore[no-untyped-call]
        return passed

    def at_input(tensor: Tensor) -> Tensor:
        if tensor.requires_grad:
            state.waiting += 1
        passed: Tensor = _AtBackward.apply(tensor, after_backward)  # type: ignore[no-untyped-call]
        return passed

    def before(_: nn.Module, inputs: Any) -> Any:
        note("forward", number)

    def begin(_: nn.Module, inputs: Any) -> Any:
        state.waiting = 0
        return _on_tensors(at_input, inputs)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(lambda *_: note("forward-end", number))
    module.register_forward_hook(lambda _, inputs, output: _on_tensors(at_output, output))
    module.register_forward_pre_hook(begin)


def _on_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (tuple, list)):
        found = [_on_tensors(function, one) for one in value]
        return value.__class__(*found) if hasattr(value, "_fields") else value.__class__(found)
    if isinstance(value, dict):
        for key in value:
            value[key] = _on_tensors(function, value[key])
    return value


@contextlib.contextmanager
def sharded_linear() -> Iterator[None]:
    """Replace `linear`, as DeepSpeed does."""
    plain = functional.linear
    functional.linear = LinearOfShardedWeights.apply  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.linear = plain
