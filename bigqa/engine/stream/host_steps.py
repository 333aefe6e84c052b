"""How a weight on the host is stepped. In: a weight, its gradient. Out: both changed weights and states.

Exact: AdamW in fp32, for which gradients wait until the global norm is known. At random: as `engine.optim.rounding`.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bigqa.engine.optim import moments
from bigqa.engine.optim.moments import NAMES
from bigqa.engine.optim.optimizers import BETAS
from bigqa.engine.optim.rounding import RoundedAdamW
from bigqa.engine.stream.link import Link
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


def steps_of(strategy: Strategy, link: Link, *, eps: float) -> HostSteps:
    """Return how a strategy steps."""
    if strategy.precision == "bf16-sr":
        return RandomSteps(link, eps, eight_bit=strategy.optimizer != "adamw")
    return ExactSteps(link, eps)


class ExactSteps:
    """AdamW in fp32, as `torch.optim.AdamW` steps; see `Weight` for the masters."""

    waits = True

    def __init__(self, link: Link, eps: float) -> None:
        self.link, self.eps = link, eps

    def make_states(self, weight: Weight) -> None:
        weight.states = {"step": 0} | {name: self.link.kept(weight.low.numel(), torch.float32) for name in NAMES}

    def draw_from(self, step: int, seed: int) -> None:
        """Nothing is drawn."""

    def step(self, weight: Weight, gradient: Gradient, lr: float, decay: float, factor: Tensor) -> None:
        states = weight.states
        states["step"] += 1
        step = torch.full((), float(states["step"]))
        first, second = (states[name] for name in NAMES)
        for begin in range(0, weight.low.numel(), AT_ONCE):
            piece = slice(begin, begin + AT_ONCE)
            master, scaled = weight.piece(piece), gradient.piece(piece).mul_(factor)
            torch._fused_adamw_(
                [master], [scaled], [first[piece]], [second[piece]], [], [step], lr=lr, beta1=BETAS[0], beta2=BETAS[1],
                weight_decay=decay, eps=self.eps, amsgrad=False, maximize=False,
            )  # fmt: skip
            weight.put(piece, master)

    def moments(self, weight: Weight) -> Makers:
        if not weight.states["step"]:
            return {}
        return {f"{name}.{weight.name}": weight.states[name].view(weight.shape).clone for name in NAMES}

    def scales(self, weight: Weight) -> Makers:
        return {}

    def load(self, weight: Weight, kept: Any, step: int, scales: Any) -> None:
        weight.states["step"] = step
        for name, moment in zip(NAMES, kept, strict=True):
            weight.states[name].copy_(moment.reshape(-1))

    def forget(self, weights: Iterable[Weight]) -> None:
        for weight in weights:
            weight.states = {}


class RandomSteps:
    """bf16 weights alone, rounded at random; moments in bf16 or 8 bits."""

    waits = False

    def __init__(self, link: Link, eps: float, *, eight_bit: bool) -> None:
        self.link = link
        self._parameters: dict[str, nn.Parameter] = {}
        """Of each weight, seen in its shape."""
        self._decays: dict[str, bool] = {}
        self.optimizer = RoundedAdamW(
            [{"params": [nn.Parameter(torch.zeros(1, device="cpu"))]}], lr=0.0, eps=eps, betas=BETAS,
            eight_bit=eight_bit,
        )  # fmt: skip
        self._seeds = (0, 0)

    def make_states(self, weight: Weight) -> None:
        self._parameters[weight.name] = nn.Parameter(weight.low.view(weight.shape))
        shape = nn.Parameter(torch.empty(weight.shape, dtype=weight.low.dtype, device="meta"))
        state = self.optimizer.make_state(shape)  # the weight's own is made when it is stepped
        self.link.kept_bytes += sum(one.nbytes for one in state.values() if isinstance(one, Tensor))
        del self.optimizer.state[shape]

    def draw_from(self, step: int, seed: int) -> None:
        self._seeds = step, seed

    def step(self, weight: Weight, gradient: Gradient, lr: float, decay: float, factor: Tensor) -> None:
        parameter = self._parameters[weight.name]
        number = list(self._parameters).index(weight.name)
        self.optimizer.draw_from(*self._seeds, number)
        group = self.optimizer.param_groups[0] | {"lr": lr, "weight_decay": decay}
        with torch.no_grad():
            self.optimizer.step_one(group, parameter, _Scaled(gradient, factor))

    def moments(self, weight: Weight) -> Makers:
        return moments.makers(weight.name, self.optimizer, self._parameters[weight.name])

    def scales(self, weight: Weight) -> Makers:
        return moments.scale_makers(weight.name, self.optimizer, self._parameters[weight.name])

    def load(self, weight: Weight, kept: Any, step: int, scales: Any) -> None:
        moments.put(self.optimizer, self._parameters[weight.name], kept, step, scales)

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
