"""How a weight on the host is stepped. In: a weight, its gradient. Out: both changed weights and states.

Exact: AdamW in fp32, for which gradients wait until the global norm is known. At random: as `engine.optim.rounding`.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bigqa.engine.optim import moments
from bigqa.engine.optim.moments import NAMES
from bigqa.engine.optim.optimizers import BETAS
from bigqa.engine.optim.pieces import pieces_of
from bigqa.engine.optim.rounding import RoundedAdamW
from bigqa.engine.stream.shelf import Shelf
from bigqa.engine.stream.store import Gradient, Weight
from bigqa.strategy import Strategy

Makers = dict[str, Callable[[], Tensor]]
AT_ONCE = 2**18
"""Elements: what a step of them holds stays in a processor's cache, where masters are put together and taken apart."""


class HostSteps(Protocol):
    """One way to step."""

    waits: bool
    """Whether all gradients wait on the host for the norm."""

    def make_states(self, weight: Weight) -> None:
        """Make what is kept of a weight."""

    def passes(self, weight: Weight) -> list[Tensor]:
        """Return what a step reads and writes of a weight, flat: the weight first."""

    def step(self, weight: Weight, gradient: Gradient, lr: float, decay: float, factor: Tensor) -> None:
        """Step a weight; `factor`: what its gradient is multiplied by."""

    def draw_from(self, step: int, seed: int) -> None:
        """Say what random numbers of a step follow from."""

    def moments(self, weight: Weight) -> Makers:
        """Return what makes the moments, fp32, by `exp_avg.NAME`; none before the first step."""

    def scales(self, weight: Weight) -> Makers:
        """Return what makes their scales, where they are kept in 8 bits."""

    def load(self, weight: Weight, kept: Any, step: int, scales: Any) -> None:
        """Take moments as they are after `step` steps."""

    def forget(self, weights: Iterable[Weight]) -> None:
        """Drop all states."""


def steps_of(strategy: Strategy, shelf: Shelf, *, eps: float) -> HostSteps:
    """Return how a strategy steps."""
    if strategy.precision == "bf16-sr":
        return RandomSteps(shelf, eps, eight_bit=strategy.optimizer != "adamw")
    return ExactSteps(shelf, eps)


class ExactSteps:
    """AdamW in fp32, as `torch.optim.AdamW` steps; see `Weight` for the masters."""

    waits = True

    def __init__(self, shelf: Shelf, eps: float) -> None:
        self.shelf, self.eps = shelf, eps

    def make_states(self, weight: Weight) -> None:
        weight.states = {"step": 0} | {name: self.shelf.states(weight.low.numel(), torch.float32) for name in NAMES}

    def passes(self, weight: Weight) -> list[Tensor]:
        return [*weight.parts, *(weight.states[name] for name in NAMES)]

    def draw_from(self, step: int, seed: int) -> None:
        """Nothing is drawn."""

    def step(self, weight: Weight, gradient: Gradient, lr: float, decay: float, factor: Tensor) -> None:
        states = weight.states
        states["step"] += 1
        step = torch.full((), float(states["step"]))
        first, second = (states[name] for name in NAMES)
        pieces = (slice(begin, begin + AT_ONCE) for begin in range(0, weight.low.numel(), AT_ONCE))
        for piece in self.shelf.along(pieces, changed=self.passes(weight), read=gradient.tensors):
            master, scaled = weight.piece(piece), gradient.piece(piece).mul_(factor)
            torch._fused_adamw_(
                [master], [scaled], [first[piece]], [second[piece]], [], [step], lr=lr, beta1=BETAS[0], beta2=BETAS[1],
                weight_decay=decay, eps=self.eps, amsgrad=False, maximize=False,
            )  # fmt: skip
            weight.put(piece, master)

    def moments(self, weight: Weight) -> Makers:
        if not weight.states["step"]:
            return {}
        return {f"{name}.{weight.name}": functools.partial(self._read, weight, name) for name in NAMES}

    def _read(self, weight: Weight, name: str) -> Tensor:
        moment: Tensor = weight.states[name].view(weight.shape).clone()
        self.shelf.leave([weight.states[name]])
        return moment

    def scales(self, weight: Weight) -> Makers:
        return {}

    def load(self, weight: Weight, kept: Any, step: int, scales: Any) -> None:
        weight.states["step"] = step
        for name, moment in zip(NAMES, kept, strict=True):
            flat, values = weight.states[name], moment.reshape(-1)
            for piece in self.shelf.along(pieces_of(flat), changed=[flat]):
                flat[piece].copy_(values[piece])

    def forget(self, weights: Iterable[Weight]) -> None:
        for weight in weights:
            weight.states = {}


class RandomSteps:
    """bf16 weights alone, rounded at random; moments in bf16 or 8 bits."""

    waits = False

    def __init__(self, shelf: Shelf, eps: float, *, eight_bit: bool) -> None:
        self.shelf = shelf
        self._parameters: dict[str, nn.Parameter] = {}
        """Of each weight, seen in its shape."""
        self._decays: dict[str, bool] = {}
        self.optimizer = RoundedAdamW(
            [{"params": [nn.Parameter(torch.zeros(1, device="cpu"))]}], lr=0.0, eps=eps, betas=BETAS,
            eight_bit=eight_bit, make=self._make if shelf.states_on_disk else None,
        )  # fmt: skip
        self._seeds = (0, 0)

    def make_states(self, weight: Weight) -> None:
        self._parameters[weight.name] = parameter = nn.Parameter(weight.low.view(weight.shape))
        on_disk = self.shelf.states_on_disk  # which is asked for all of its room at the start
        if on_disk and self.shelf.link.device.type != "meta":
            self.optimizer.make_state(parameter)
            return
        shape = nn.Parameter(torch.empty(weight.shape, dtype=weight.low.dtype, device="meta"))
        state = self.optimizer.make_state(shape)  # in memory the weight's own is made when it is stepped
        tensors = (one for one in state.values() if isinstance(one, Tensor))
        self.shelf.link.kept_bytes += sum(one.nbytes for one in tensors if one.is_meta)
        if on_disk:
            self.optimizer.state[parameter] = state
        del self.optimizer.state[shape]

    def passes(self, weight: Weight) -> list[Tensor]:
        return [weight.low, *self.optimizer.kept_of(self._parameters[weight.name])]

    def _make(self, count: int, dtype: torch.dtype) -> Tensor:
        return self.shelf.states(count, dtype)

    def draw_from(self, step: int, seed: int) -> None:
        self._seeds = step, seed

    def step(self, weight: Weight, gradient: Gradient, lr: float, decay: float, factor: Tensor) -> None:
        parameter = self._parameters[weight.name]
        number = list(self._parameters).index(weight.name)
        self.optimizer.draw_from(*self._seeds, number)
        group = self.optimizer.param_groups[0] | {"lr": lr, "weight_decay": decay}
        pieces = self.shelf.along(pieces_of(weight.low), changed=self.passes(weight))
        with torch.no_grad():
            self.optimizer.step_one(group, parameter, _Scaled(gradient, factor), pieces)

    def moments(self, weight: Weight) -> Makers:
        if not self._stepped(weight):
            return {}
        makers = moments.makers(weight.name, self.optimizer, self._parameters[weight.name])
        return {name: functools.partial(self._read, weight, make) for name, make in makers.items()}

    def _read(self, weight: Weight, make: Callable[[], Tensor]) -> Tensor:
        moment = make()
        self.shelf.leave(self.passes(weight))
        return moment

    def scales(self, weight: Weight) -> Makers:
        if not self._stepped(weight):
            return {}
        return moments.scale_makers(weight.name, self.optimizer, self._parameters[weight.name])

    def _stepped(self, weight: Weight) -> bool:
        return bool(self.optimizer.state.get(self._parameters[weight.name], {}).get("step"))

    def load(self, weight: Weight, kept: Any, step: int, scales: Any) -> None:
        moments.put(self.optimizer, self._parameters[weight.name], kept, step, scales)
        for _ in self.shelf.along(pieces_of(weight.low), changed=self.passes(weight)):
            pass  # written out

    def forget(self, weights: Iterable[Weight]) -> None:
        self.optimizer.state.clear()
        self._parameters.clear()


class _Scaled:
    """A gradient of which pieces are asked for."""

    def __init__(self, gradient: Gradient, factor: Tensor) -> None:
        self.gradient, self.factor = gradient, factor

    def view(self, *_: int) -> "_Scaled":
        return self

    def __getitem__(self, piece: slice) -> Tensor:
        return self.gradient.piece(piece).mul_(self.factor)
